//! The messages of KBS 0.4.0 and the rule that binds them into evidence.
//!
//! Only the shapes that a SEV-SNP guest needs. Types that are
//! hashed refuse unknown fields, because the hash is made over what was parsed.

use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

use crate::jwe::TeePublicKey;

/// The only protocol version that is spoken.
pub const VERSION: &str = "0.4.0";
/// Path of the authentication request.
pub const AUTH_PATH: &str = "/kbs/v0/auth";
/// Path of the attestation request.
pub const ATTEST_PATH: &str = "/kbs/v0/attest";
/// Path below which resources are.
pub const RESOURCE_PATH: &str = "/kbs/v0/resource";
/// Name of the cookie that carries the session.
pub const SESSION_COOKIE: &str = "kbs-session-id";
/// Prefix of the `type` of an error; the error's kind follows.
pub const ERROR_TYPE_PREFIX: &str = "https://github.com/confidential-containers/kbs/errors/";
/// The hash that binds runtime data into SNP evidence.
pub const HASH_ALGORITHM: &str = "sha384";
/// Format name of the instance data as init-data.
pub const INIT_DATA_FORMAT: &str = "json";
/// Additional evidence of a guest without further devices.
pub const NO_ADDITIONAL_EVIDENCE: &str = "{}";

/// The guest asks for a challenge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request {
    /// Protocol version.
    pub version: String,
    /// The TEE's name; `snp` here.
    pub tee: String,
    /// `{"supported-hash-algorithms": […]}`, or an empty string.
    #[serde(default)]
    pub extra_params: Value,
}

impl Request {
    /// The TEE name of SEV-SNP, real or simulated.
    pub const TEE_SNP: &'static str = "snp";

    /// The request of an SNP guest.
    pub fn snp() -> Self {
        Self {
            version: VERSION.to_owned(),
            tee: Self::TEE_SNP.to_owned(),
            extra_params: json!({ "supported-hash-algorithms": [HASH_ALGORITHM] }),
        }
    }

    /// Whether the guest can hash with [`HASH_ALGORITHM`]. A guest that names
    /// no algorithm uses the TEE's default, which for SNP is the same.
    pub fn supports_hash(&self) -> bool {
        match self.extra_params.get("supported-hash-algorithms") {
            None => true,
            Some(Value::Array(names)) => names
                .iter()
                .filter_map(Value::as_str)
                .any(|name| name == HASH_ALGORITHM),
            Some(_) => false,
        }
    }
}

/// The broker's challenge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Challenge {
    /// The nonce. Opaque to the guest.
    pub nonce: String,
    /// `{"selected-hash-algorithm": "sha384"}`, or an empty string.
    #[serde(default)]
    pub extra_params: Value,
}

impl Challenge {
    /// A challenge to answer with [`HASH_ALGORITHM`].
    pub fn new(nonce: String) -> Self {
        Self {
            nonce,
            extra_params: json!({ "selected-hash-algorithm": HASH_ALGORITHM }),
        }
    }

    /// A challenge of a profile that leaves no choice of a hash.
    pub const fn without_hash(nonce: String) -> Self {
        Self {
            nonce,
            extra_params: Value::String(String::new()),
        }
    }

    /// The algorithm that the broker selected, if it named one.
    pub fn selected_hash(&self) -> Option<&str> {
        self.extra_params
            .get("selected-hash-algorithm")
            .and_then(Value::as_str)
    }
}

/// What the guest binds into its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RuntimeData {
    /// The challenge's nonce, unchanged.
    pub nonce: String,
    /// The key that resources are encrypted to.
    pub tee_pubkey: TeePublicKey,
}

impl RuntimeData {
    /// The canonical JSON whose hash is in the evidence.
    ///
    /// # Errors
    /// Never for a value of this type; the encoder's error is passed on.
    pub fn binding(&self, additional_evidence: &str) -> Result<Vec<u8>, EncodeCanonicalError> {
        encode_canonical(&json!({
            "additional-evidence": additional_evidence,
            "nonce": self.nonce,
            "tee-pubkey": self.tee_pubkey,
        }))
    }

    /// REPORT_DATA: SHA-384 of [`RuntimeData::binding`], then 16 zero bytes.
    ///
    /// # Errors
    /// As [`RuntimeData::binding`].
    pub fn report_data(&self, additional_evidence: &str) -> Result<[u8; 64], EncodeCanonicalError> {
        let digest = Sha384::digest(self.binding(additional_evidence)?);
        let mut report_data = [0; 64];
        for (to, from) in report_data.iter_mut().zip(digest) {
            *to = from;
        }
        Ok(report_data)
    }
}

/// Data that the untrusted host handed to the guest, bound by HOST_DATA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitData {
    /// How to read `body`: [`INIT_DATA_FORMAT`].
    pub format: String,
    /// The document, byte for byte.
    pub body: String,
}

/// The evidence of the TEE and its devices. Our guests send [`SnpEvidence`], those
/// of others what their attesters make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompositeEvidence<E = SnpEvidence> {
    /// The SNP report.
    pub primary_evidence: E,
    /// Evidence of further devices: a JSON object, as a string.
    pub additional_evidence: String,
}

/// SNP evidence as raw bytes, so that the verifier reads what was signed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpEvidence {
    /// The attestation report.
    #[serde(with = "base64_bytes")]
    pub report: Vec<u8>,
    /// The certificate table of an extended report request; empty without one.
    #[serde(default, with = "base64_bytes")]
    pub certificates: Vec<u8>,
}

impl std::fmt::Debug for SnpEvidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnpEvidence")
            .field("report", &format_args!("{} bytes", self.report.len()))
            .field(
                "certificates",
                &format_args!("{} bytes", self.certificates.len()),
            )
            .finish()
    }
}

/// The guest's answer to the challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Attestation<E = SnpEvidence> {
    /// The instance data.
    pub init_data: Option<InitData>,
    /// What the evidence binds.
    pub runtime_data: RuntimeData,
    /// The evidence.
    pub tee_evidence: CompositeEvidence<E>,
}

/// The broker's answer to accepted evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenResponse {
    /// The attestation result as a JWT.
    pub token: String,
}

/// Why the broker refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInformation {
    /// [`ERROR_TYPE_PREFIX`] and the kind.
    #[serde(rename = "type")]
    pub error_type: String,
    /// For a person.
    pub detail: String,
}

impl ErrorInformation {
    /// An error of `kind`.
    pub fn new(kind: &str, detail: String) -> Self {
        Self {
            error_type: format!("{ERROR_TYPE_PREFIX}{kind}"),
            detail,
        }
    }

    /// The kind: the last segment of the type.
    pub fn kind(&self) -> &str {
        self.error_type.rsplit('/').next().unwrap_or_default()
    }
}

mod base64_bytes {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD
            .decode(text)
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime_data() -> RuntimeData {
        RuntimeData {
            nonce: "bm9uY2U=".to_owned(),
            tee_pubkey: TeePublicKey::Ec {
                crv: "P-256".to_owned(),
                alg: "ECDH-ES+A256KW".to_owned(),
                x: "eHg".to_owned(),
                y: "eXk".to_owned(),
            },
        }
    }

    #[test]
    fn binding_is_sorted_and_complete() {
        let binding = runtime_data().binding("{}").unwrap();
        assert_eq!(
            String::from_utf8(binding).unwrap(),
            r#"{"additional-evidence":"{}","nonce":"bm9uY2U=","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eHg","y":"eXk"}}"#
        );
    }

    #[test]
    fn report_data_is_padded_sha384_and_depends_on_every_part() {
        let good = runtime_data().report_data("{}").unwrap();
        assert_eq!(good[48..], [0; 16]);
        assert_eq!(
            good[..48],
            Sha384::digest(runtime_data().binding("{}").unwrap())[..]
        );
        let mut nonce = runtime_data();
        nonce.nonce.push('=');
        let mut key = runtime_data();
        key.tee_pubkey = TeePublicKey::Rsa {
            alg: "RSA-OAEP-256".to_owned(),
            n: "eHg".to_owned(),
            e: "AQAB".to_owned(),
        };
        for (changed, additional) in [(nonce, "{}"), (key, "{}"), (runtime_data(), "")] {
            assert_ne!(changed.report_data(additional).unwrap(), good);
        }
    }

    #[test]
    fn attestation_has_the_protocol_s_field_names() {
        let text = r#"{"init-data":{"format":"json","body":"{}"},"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"a","y":"b"}},"tee-evidence":{"primary_evidence":{"report":"AQI=","certificates":""},"additional_evidence":"{}"}}"#;
        let attestation: Attestation = serde_json::from_str(text).unwrap();
        assert_eq!(attestation.tee_evidence.primary_evidence.report, [1, 2]);
        assert_eq!(serde_json::to_string(&attestation).unwrap(), text);
        let extended = text.replacen(r#""nonce""#, r#""more":1,"nonce""#, 1);
        assert!(serde_json::from_str::<Attestation>(&extended).is_err());
    }

    #[test]
    fn hash_negotiation() {
        let mut request = Request::snp();
        assert!(request.supports_hash());
        request.extra_params = Value::String(String::new());
        assert!(request.supports_hash());
        request.extra_params = json!({ "supported-hash-algorithms": ["sha512"] });
        assert!(!request.supports_hash());
        request.extra_params = json!({ "supported-hash-algorithms": "sha384" });
        assert!(!request.supports_hash());
    }

    #[test]
    fn error_kind_is_the_last_segment() {
        let error = ErrorInformation::new("AttestationFailed", String::new());
        assert_eq!(error.kind(), "AttestationFailed");
    }

    /// Through the types of Confidential Containers and back.
    fn there_and_back<Ours, Theirs>(ours: &Ours)
    where
        Ours: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
        Theirs: Serialize + serde::de::DeserializeOwned,
    {
        let theirs: Theirs = serde_json::from_value(serde_json::to_value(ours).unwrap()).unwrap();
        let back: Ours = serde_json::from_value(serde_json::to_value(theirs).unwrap()).unwrap();
        assert_eq!(back, *ours);
    }

    #[test]
    fn messages_are_those_of_confidential_containers() {
        there_and_back::<_, kbs_types::Request>(&Request::snp());
        there_and_back::<_, kbs_types::Challenge>(&Challenge::new("bm9uY2U=".to_owned()));
        for tee_pubkey in [
            runtime_data().tee_pubkey,
            TeePublicKey::Rsa {
                alg: "RSA-OAEP-256".to_owned(),
                n: "eHg".to_owned(),
                e: "AQAB".to_owned(),
            },
        ] {
            there_and_back::<_, kbs_types::Attestation>(&Attestation {
                init_data: Some(InitData {
                    format: INIT_DATA_FORMAT.to_owned(),
                    body: "{}".to_owned(),
                }),
                runtime_data: RuntimeData {
                    tee_pubkey,
                    ..runtime_data()
                },
                tee_evidence: CompositeEvidence {
                    primary_evidence: SnpEvidence {
                        report: vec![1, 2],
                        certificates: vec![3],
                    },
                    additional_evidence: NO_ADDITIONAL_EVIDENCE.to_owned(),
                },
            });
        }
        there_and_back::<_, kbs_types::ErrorInformation>(&ErrorInformation::new(
            "PolicyDeny",
            "no".to_owned(),
        ));
    }
}
