//! The guest's side of the handshake, as values: each state of the session is a
//! type, so that a step out of order does not compile.
//!
//! ```text
//! GuestSession ── auth_request ──► broker ── on_challenge ──► ChallengedSession
//! ChallengedSession ── report_data ──► processor
//!                   ── attest_request ──► broker ── on_token ──► AttestedSession
//! AttestedSession ── resource_request ──► broker ── on_resource ──► plain bytes
//! ```
//!
//! The key is made with the session and dies with it: an attestation binds one
//! key, and another attestation makes another.

mod volume;

use std::fmt;

use assay_tee::canonical::EncodeCanonicalError;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::jwe::{Jwe, JweError, RecipientKey, TeePublicKey};
use crate::messages::{
    ATTEST_PATH, AUTH_PATH, Attestation, Challenge, CompositeEvidence, ErrorInformation,
    HASH_ALGORITHM, INIT_DATA_FORMAT, InitData, NO_ADDITIONAL_EVIDENCE, RESOURCE_PATH, Request,
    RuntimeData, SESSION_COOKIE, SnpEvidence, TokenResponse,
};
use crate::volume::VolumeError;

/// Longest text of the broker that an error repeats.
const MAX_DETAIL: usize = 512;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum GuestSessionError {
    /// No key could be made.
    #[error("cannot make the session's key")]
    MakeKey(#[source] JweError),
    /// A message could not be written.
    #[error("cannot encode the request")]
    EncodeRequest(#[source] serde_json::Error),
    /// The runtime data has no canonical form.
    #[error("cannot encode the runtime data")]
    EncodeRuntimeData(#[source] EncodeCanonicalError),
    /// The broker refused.
    #[error("the broker refused with status {status}: {kind}: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Kind of KBS error, such as `AttestationFailed`; empty when the
        /// answer is not a KBS error.
        kind: String,
        /// The broker's explanation.
        detail: String,
    },
    /// The broker's answer is not the message that belongs here.
    #[error("cannot read the broker's {message}")]
    ParseResponse {
        /// The message that was expected.
        message: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The broker set no session cookie.
    #[error("the broker's challenge has no {SESSION_COOKIE} cookie")]
    MissingCookie,
    /// The broker wants another hash.
    #[error("the broker selected the hash {got:?}, only {HASH_ALGORITHM} is known")]
    UnknownHash {
        /// What it selected.
        got: String,
    },
    /// A resource's path is not three names.
    #[error("not a resource path of three names: {0:?}")]
    ResourcePath(String),
    /// The resource does not decrypt.
    #[error("cannot decrypt the resource")]
    Decrypt(#[source] JweError),
    /// The keys of a volume cannot be used.
    #[error("cannot use the keys of the volume")]
    Volume(#[source] VolumeError),
}

/// A request to send to the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Absolute path.
    pub path: String,
    /// Header fields.
    pub headers: Vec<(&'static str, String)>,
    /// The body; empty for `GET`.
    pub body: Vec<u8>,
}

impl fmt::Debug for HttpRequest {
    /// Without header values: the token is a bearer's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} ({} bytes)",
            self.method,
            self.path,
            self.body.len()
        )
    }
}

/// The broker's response.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// Header fields; names in any case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl fmt::Debug for HttpResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.status, self.body.len())
    }
}

impl HttpResponse {
    /// Reads the message of a successful response; any other is a refusal.
    fn message<T: serde::de::DeserializeOwned>(
        &self,
        message: &'static str,
    ) -> Result<T, GuestSessionError> {
        if self.status != 200 {
            return Err(self.refusal());
        }
        serde_json::from_slice(&self.body)
            .map_err(|source| GuestSessionError::ParseResponse { message, source })
    }

    fn refusal(&self) -> GuestSessionError {
        let (kind, detail) = match serde_json::from_slice::<ErrorInformation>(&self.body) {
            Ok(error) => (error.kind().to_owned(), error.detail),
            Err(_) => (
                String::new(),
                String::from_utf8_lossy(&self.body).into_owned(),
            ),
        };
        let printable = |text: String| -> String {
            text.chars()
                .filter(|c| !c.is_control())
                .take(MAX_DETAIL)
                .collect()
        };
        GuestSessionError::Refused {
            status: self.status,
            kind: printable(kind),
            detail: printable(detail),
        }
    }

    /// The value of the session cookie.
    fn session_cookie(&self) -> Option<String> {
        self.headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"))
            .filter_map(|(_, value)| value.split(';').next()?.split_once('='))
            .find(|(name, _)| name.trim() == SESSION_COOKIE)
            .map(|(_, value)| value.trim().to_owned())
            .filter(|value| !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic()))
    }
}

fn post<T: Serialize>(
    path: &str,
    cookie: Option<&str>,
    message: &T,
) -> Result<HttpRequest, GuestSessionError> {
    let mut headers = vec![("content-type", "application/json".to_owned())];
    headers.extend(cookie.map(cookie_header));
    let body = serde_json::to_vec(message).map_err(GuestSessionError::EncodeRequest)?;
    Ok(HttpRequest {
        method: "POST",
        path: path.to_owned(),
        headers,
        body,
    })
}

fn cookie_header(session: &str) -> (&'static str, String) {
    ("cookie", format!("{SESSION_COOKIE}={session}"))
}

/// A session that has asked for nothing yet.
pub struct GuestSession {
    key: RecipientKey,
    public_key: TeePublicKey,
}

impl GuestSession {
    /// Makes a session and its key.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self, GuestSessionError> {
        let key = RecipientKey::generate().map_err(GuestSessionError::MakeKey)?;
        let public_key = key.public_key().map_err(GuestSessionError::MakeKey)?;
        Ok(Self {
            key,
            public_key: TeePublicKey::new(&public_key),
        })
    }

    /// Asks for a challenge.
    ///
    /// # Errors
    /// When the message cannot be written.
    pub fn auth_request(&self) -> Result<HttpRequest, GuestSessionError> {
        post(AUTH_PATH, None, &Request::snp())
    }

    /// Takes the broker's answer to [`GuestSession::auth_request`].
    ///
    /// # Errors
    /// When the broker refused, set no session or wants another hash.
    pub fn on_challenge(
        self,
        response: &HttpResponse,
    ) -> Result<ChallengedSession, GuestSessionError> {
        let challenge: Challenge = response.message("challenge")?;
        match challenge.selected_hash() {
            None | Some(HASH_ALGORITHM) => {}
            Some(got) => {
                return Err(GuestSessionError::UnknownHash {
                    got: got.to_owned(),
                });
            }
        }
        let cookie = response
            .session_cookie()
            .ok_or(GuestSessionError::MissingCookie)?;
        let runtime_data = RuntimeData {
            nonce: challenge.nonce,
            tee_pubkey: self.public_key,
        };
        Ok(ChallengedSession {
            key: self.key,
            cookie,
            runtime_data,
        })
    }
}

/// A session that has a challenge to answer.
pub struct ChallengedSession {
    key: RecipientKey,
    cookie: String,
    runtime_data: RuntimeData,
}

impl ChallengedSession {
    /// REPORT_DATA to request evidence over.
    ///
    /// # Errors
    /// When the runtime data has no canonical form.
    pub fn report_data(&self) -> Result<[u8; 64], GuestSessionError> {
        self.runtime_data
            .report_data(NO_ADDITIONAL_EVIDENCE)
            .map_err(GuestSessionError::EncodeRuntimeData)
    }

    /// Presents evidence and the instance data, byte for byte as the host
    /// handed it over.
    ///
    /// # Errors
    /// When the message cannot be written.
    pub fn attest_request(
        &self,
        evidence: SnpEvidence,
        instance_data: &str,
    ) -> Result<HttpRequest, GuestSessionError> {
        let attestation = Attestation {
            init_data: Some(InitData {
                format: INIT_DATA_FORMAT.to_owned(),
                body: instance_data.to_owned(),
            }),
            runtime_data: self.runtime_data.clone(),
            tee_evidence: CompositeEvidence {
                primary_evidence: evidence,
                additional_evidence: NO_ADDITIONAL_EVIDENCE.to_owned(),
            },
        };
        post(ATTEST_PATH, Some(&self.cookie), &attestation)
    }

    /// Takes the broker's answer to [`ChallengedSession::attest_request`].
    ///
    /// # Errors
    /// When the broker refused the evidence.
    pub fn on_token(self, response: &HttpResponse) -> Result<AttestedSession, GuestSessionError> {
        let TokenResponse { token } = response.message("token")?;
        Ok(AttestedSession {
            key: self.key,
            cookie: self.cookie,
            token,
        })
    }
}

/// A session whose evidence was accepted.
pub struct AttestedSession {
    key: RecipientKey,
    cookie: String,
    token: String,
}

impl AttestedSession {
    /// The attestation result, a JWT.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Asks for the resource `repository/type/tag`.
    ///
    /// # Errors
    /// When `path` is not three names of letters, digits, `-`, `_` and `.`.
    pub fn resource_request(&self, path: &str) -> Result<HttpRequest, GuestSessionError> {
        let names: Vec<&str> = path.split('/').collect();
        if names.len() != 3 || !names.iter().all(|name| is_name(name)) {
            return Err(GuestSessionError::ResourcePath(path.to_owned()));
        }
        Ok(HttpRequest {
            method: "GET",
            path: format!("{RESOURCE_PATH}/{path}"),
            headers: vec![
                cookie_header(&self.cookie),
                ("authorization", format!("Bearer {}", self.token)),
            ],
            body: Vec::new(),
        })
    }

    /// Takes the broker's answer to [`AttestedSession::resource_request`] and
    /// decrypts the resource.
    ///
    /// # Errors
    /// When the broker refused or the resource is not for this session's key.
    pub fn on_resource(
        &self,
        response: &HttpResponse,
    ) -> Result<Zeroizing<Vec<u8>>, GuestSessionError> {
        let jwe: Jwe = response.message("resource")?;
        jwe.decrypt(&self.key).map_err(GuestSessionError::Decrypt)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(cookie: &str, body: &str) -> HttpResponse {
        HttpResponse {
            status: 200,
            headers: vec![("Set-Cookie".to_owned(), cookie.to_owned())],
            body: body.as_bytes().to_vec(),
        }
    }

    const COOKIE: &str = "kbs-session-id=abc; HttpOnly; Path=/";
    const CHALLENGE: &str =
        r#"{"nonce":"bm9uY2U=","extra-params":{"selected-hash-algorithm":"sha384"}}"#;

    fn attested() -> AttestedSession {
        let session = GuestSession::new().unwrap();
        let session = session.on_challenge(&challenge(COOKIE, CHALLENGE)).unwrap();
        session
            .on_token(&challenge("", r#"{"token":"t"}"#))
            .unwrap()
    }

    #[test]
    fn a_session_from_challenge_to_resource() {
        let session = GuestSession::new().unwrap();
        assert_eq!(session.auth_request().unwrap().path, AUTH_PATH);
        let session = session.on_challenge(&challenge(COOKIE, CHALLENGE)).unwrap();
        let report_data = session.report_data().unwrap();
        let evidence = SnpEvidence {
            report: vec![1],
            certificates: vec![],
        };
        let request = session.attest_request(evidence, r#"{"a":1}"#).unwrap();
        assert!(
            request
                .headers
                .contains(&("cookie", "kbs-session-id=abc".to_owned()))
        );
        let sent: Attestation = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(sent.init_data.unwrap().body, r#"{"a":1}"#);
        assert_eq!(
            sent.runtime_data
                .report_data(&sent.tee_evidence.additional_evidence)
                .unwrap(),
            report_data
        );

        let session = session
            .on_token(&challenge("", r#"{"token":"t"}"#))
            .unwrap();
        let request = session.resource_request("ns/web/tls").unwrap();
        assert_eq!(request.path, "/kbs/v0/resource/ns/web/tls");
        assert!(
            request
                .headers
                .contains(&("authorization", "Bearer t".to_owned()))
        );
        let jwe = Jwe::encrypt(b"secret", &sent.runtime_data.tee_pubkey).unwrap();
        let body = serde_json::to_vec(&jwe).unwrap();
        let secret = session.on_resource(&HttpResponse {
            status: 200,
            headers: vec![],
            body,
        });
        assert_eq!(secret.unwrap().as_slice(), b"secret");
    }

    #[test]
    fn refusals_carry_kind_and_detail() {
        let body = r#"{"type":"https://github.com/confidential-containers/kbs/errors/AttestationFailed","detail":"MeasurementUnknown"}"#;
        let response = HttpResponse {
            status: 401,
            headers: vec![],
            body: body.into(),
        };
        let Err(GuestSessionError::Refused {
            status: 401,
            kind,
            detail,
        }) = GuestSession::new().unwrap().on_challenge(&response)
        else {
            panic!("not refused")
        };
        assert_eq!(
            (kind.as_str(), detail.as_str()),
            ("AttestationFailed", "MeasurementUnknown")
        );
    }

    #[test]
    fn a_refusal_that_is_not_json_is_bounded_and_printable() {
        let response = HttpResponse {
            status: 502,
            headers: vec![],
            body: b"\x1b[31mbad\n".repeat(1000),
        };
        let GuestSessionError::Refused { kind, detail, .. } = response.refusal() else {
            panic!("not refused")
        };
        assert_eq!(kind, "");
        assert_eq!(detail.chars().count(), MAX_DETAIL);
        assert!(!detail.contains(char::is_control));
    }

    #[test]
    fn challenges_without_session_or_with_another_hash_are_refused() {
        let session = || GuestSession::new().unwrap();
        for cookie in ["", "other=1", "kbs-session-id=", "kbs-session-id=a b"] {
            assert!(
                matches!(
                    session().on_challenge(&challenge(cookie, CHALLENGE)),
                    Err(GuestSessionError::MissingCookie)
                ),
                "{cookie}"
            );
        }
        let sha512 = CHALLENGE.replace("sha384", "sha512");
        assert!(matches!(
            session().on_challenge(&challenge(COOKIE, &sha512)),
            Err(GuestSessionError::UnknownHash { .. })
        ));
        assert!(matches!(
            session().on_challenge(&challenge(COOKIE, "{}")),
            Err(GuestSessionError::ParseResponse { .. })
        ));
    }

    #[test]
    fn resource_paths_are_three_names() {
        let session = attested();
        assert!(session.resource_request("ns/web-1/tls.key").is_ok());
        for path in [
            "", "a/b", "a/b/c/d", "a//c", "../b/c", "a/b/c?x", "a/b/c d", "a/b/%2e",
        ] {
            assert!(
                matches!(
                    session.resource_request(path),
                    Err(GuestSessionError::ResourcePath(_))
                ),
                "{path}"
            );
        }
    }
}
