//! The attestation result as a token: an ES256 JWT in the shape of an EAT
//! Attestation Result (EAR), as Key Broker Service clients expect it.
//!
//! The token names the appraisal that it stands for by pod and nonce, so that a
//! release can ask whether that appraisal is still the one in force.

use std::fmt;

use assay_attest::Claims as EvidenceClaims;
use assay_protocol::broker::Profile;
use assay_protocol::jwe::TeePublicKey;
use assay_protocol::messages::RuntimeData;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::appraisal::Appraisal;

/// Longest life of a token in seconds.
pub const TOKEN_LIFETIME_SECONDS: i64 = 300;
/// `iss` of every token.
const ISSUER: &str = "assay-broker";
/// `eat_profile` of every token.
const PROFILE: &str = "tag:assay.dev,2026:ear";

/// AR4SI trustworthiness value: affirming.
const AFFIRMING: i8 = 2;
/// AR4SI trustworthiness value of hardware: warning. What simulates a processor
/// protects nothing, and a relying party that asks for affirming refuses it.
const HARDWARE_UNSAFE: i8 = 32;

/// Why a token is not made or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The signing key cannot be used.
    #[error("the token signing key is not an EC key on P-256")]
    Key,
    /// The token could not be signed.
    #[error("cannot sign the token")]
    Sign(#[source] jsonwebtoken::errors::Error),
    /// It is not a token of this broker.
    #[error("not a token of this broker")]
    Verify(#[source] jsonwebtoken::errors::Error),
    /// Its time is over, or has not come.
    #[error("the token has expired")]
    Expired,
}

/// Claims of a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// The profile of the token.
    pub eat_profile: String,
    /// Who issued it.
    pub iss: String,
    /// When it was issued, in seconds since 1970.
    pub iat: i64,
    /// When it expires, in seconds since 1970.
    pub exp: i64,
    /// The software that verified.
    #[serde(rename = "ear.verifier-id")]
    pub verifier_id: VerifierId,
    /// The appraised part: the guest.
    pub submods: Submods,
}

/// The software that verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifierId {
    /// Who makes it.
    pub developer: String,
    /// Its version.
    pub build: String,
}

/// The appraised parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submods {
    /// The guest.
    pub cpu0: Submod,
}

/// The appraisal of one part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submod {
    /// Overall status: the worst of the vector.
    #[serde(rename = "ear.status")]
    pub status: Status,
    /// Trustworthiness by area.
    #[serde(rename = "ear.trustworthiness-vector")]
    pub vector: TrustworthinessVector,
    /// The policy, by the digest of its specification.
    #[serde(rename = "ear.appraisal-policy-id")]
    pub policy: String,
    /// What the evidence says.
    #[serde(rename = "ear.veraison.annotated-evidence")]
    pub evidence: AnnotatedEvidence,
    /// Whose guest it is.
    #[serde(rename = "dev.assay.instance")]
    pub instance: InstanceClaims,
    /// The profile of the session, where it is not the usual one.
    #[serde(
        default,
        rename = "dev.assay.profile",
        skip_serializing_if = "Profile::is_default"
    )]
    pub profile: Profile,
}

/// Overall status (EAR).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Real hardware, every check passed.
    Affirming,
    /// Every check passed, and a simulation stands in for the hardware.
    Warning,
}

/// Trustworthiness by area (AR4SI).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TrustworthinessVector {
    /// The attester is who it says it is.
    pub instance_identity: i8,
    /// It is configured as known.
    pub configuration: i8,
    /// It runs what is known.
    pub executables: i8,
    /// The hardware is genuine.
    pub hardware: i8,
}

/// What the evidence says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnnotatedEvidence {
    /// The report's claims.
    pub snp: Value,
    /// What the evidence binds: nonce and key.
    pub runtime_data_claims: RuntimeData,
}

/// Whose guest it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceClaims {
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the ConfidentialDeployment.
    pub deployment: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the MeasuredImage.
    pub image: String,
    /// Root of trust, as in records.
    pub trust_domain: String,
    /// Whether a simulation stands in for the hardware.
    pub simulated: bool,
}

impl Claims {
    /// The claims of an accepted appraisal; nothing for a rejected one.
    pub fn of(appraisal: &Appraisal, namespace: &str, runtime_data: &RuntimeData) -> Option<Self> {
        let expires_at = appraisal.status.expires_at.as_ref()?.0.as_second();
        let claims = appraisal
            .claims
            .as_ref()
            .filter(|_| appraisal.is_accepted())?;
        let iat = appraisal.status.verified_at.0.as_second();
        let simulated = appraisal.is_simulated();
        let (status, hardware) = if simulated {
            (Status::Warning, HARDWARE_UNSAFE)
        } else {
            (Status::Affirming, AFFIRMING)
        };
        let vector = TrustworthinessVector {
            instance_identity: AFFIRMING,
            configuration: AFFIRMING,
            executables: AFFIRMING,
            hardware,
        };
        Some(Self {
            eat_profile: PROFILE.to_owned(),
            iss: ISSUER.to_owned(),
            iat,
            exp: expires_at.min(iat.saturating_add(TOKEN_LIFETIME_SECONDS)),
            verifier_id: VerifierId {
                developer: "https://assay.dev".to_owned(),
                build: env!("CARGO_PKG_VERSION").to_owned(),
            },
            submods: Submods {
                cpu0: Submod {
                    status,
                    vector,
                    policy: appraisal.status.policy_hash.clone(),
                    evidence: AnnotatedEvidence {
                        snp: evidence_claims(claims),
                        runtime_data_claims: runtime_data.clone(),
                    },
                    instance: InstanceClaims {
                        namespace: namespace.to_owned(),
                        deployment: appraisal.spec.deployment_ref.name.clone(),
                        pod: appraisal.spec.pod_ref.name.clone(),
                        pod_uid: appraisal.spec.pod_ref.uid.clone(),
                        image: appraisal.spec.image_ref.name.clone(),
                        trust_domain: appraisal.status.trust_domain.clone(),
                        simulated,
                    },
                    profile: appraisal.profile,
                },
            },
        })
    }

    /// Whose guest it is.
    pub fn instance(&self) -> &InstanceClaims {
        &self.submods.cpu0.instance
    }

    /// The nonce of the appraisal.
    pub fn nonce(&self) -> &str {
        &self.submods.cpu0.evidence.runtime_data_claims.nonce
    }

    /// The profile of the session.
    pub const fn profile(&self) -> Profile {
        self.submods.cpu0.profile
    }

    /// HOST_DATA of the evidence, hex.
    pub fn host_data(&self) -> Option<&str> {
        self.submods.cpu0.evidence.snp.get("host_data")?.as_str()
    }

    /// REPORT_ID of the evidence: which guest it is of, for as long as that runs.
    pub fn report_id(&self) -> Option<&str> {
        self.submods.cpu0.evidence.snp.get("report_id")?.as_str()
    }

    /// The key that resources are encrypted to.
    pub fn tee_pubkey(&self) -> &TeePublicKey {
        &self.submods.cpu0.evidence.runtime_data_claims.tee_pubkey
    }
}

fn evidence_claims(claims: &EvidenceClaims) -> Value {
    json!({
        "measurement": claims.measurement.to_hex(),
        "report_id": claims.report_id,
        "report_data": claims.report_data,
        "host_data": claims.host_data,
        "report_digest": claims.report_digest,
        "vmpl": claims.vmpl,
        "guest_svn": claims.guest_svn,
        "guest_policy": claims.guest_policy,
        "platform_info": claims.platform_info,
        "product": claims.product,
        "tcb": claims.tcb,
    })
}

/// Signs and verifies tokens.
pub struct TokenKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
    kid: String,
    jwk: Value,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({})", self.kid)
    }
}

impl TokenKey {
    /// From an EC key on P-256.
    ///
    /// # Errors
    /// When the key is of another kind.
    pub fn new(key: &KeyPair) -> Result<Self, TokenError> {
        let [0x04, coordinates @ ..] = key.der_bytes() else {
            return Err(TokenError::Key);
        };
        let (x, y) = coordinates
            .split_at_checked(32)
            .filter(|(_, y)| y.len() == 32)
            .ok_or(TokenError::Key)?;
        let (x, y) = (
            BASE64_URL_SAFE_NO_PAD.encode(x),
            BASE64_URL_SAFE_NO_PAD.encode(y),
        );
        // RFC 7638: members in lexical order, no white space.
        let thumbprint = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid = BASE64_URL_SAFE_NO_PAD
            .encode(assay_tee::Sha256Digest::of(thumbprint.as_bytes()).as_bytes());
        Ok(Self {
            encoding: EncodingKey::from_ec_der(key.serialized_der()),
            decoding: DecodingKey::from_ec_components(&x, &y).map_err(|_| TokenError::Key)?,
            jwk: json!({
                "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig",
                "kid": kid, "x": x, "y": y,
            }),
            kid,
        })
    }

    /// The public key as a JWK set.
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.jwk] })
    }

    /// Signs `claims`.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(TokenError::Sign)
    }

    /// Verifies signature, algorithm, issuer and time.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        // The library reads the system's clock; time is checked below.
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .map_err(TokenError::Verify)?
            .claims;
        let now = now.as_second();
        if claims.eat_profile != PROFILE {
            return Err(TokenError::Verify(
                jsonwebtoken::errors::ErrorKind::InvalidClaimFormat("eat_profile".to_owned())
                    .into(),
            ));
        }
        // Another replica's clock may be ahead by seconds.
        if now >= claims.exp || claims.iat > now.saturating_add(5) {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use jiff::ToSpan as _;

    #[test]
    fn a_token_round_trips() {
        let key = fixtures::token_key();
        let claims = fixtures::claims();
        let token = key.sign(&claims).unwrap();
        assert_eq!(key.verify(&token, fixtures::now()).unwrap(), claims);
        assert_eq!(claims.submods.cpu0.status, Status::Warning);
        assert!(claims.instance().simulated);
    }

    #[test]
    fn a_rejected_appraisal_has_no_claims() {
        let mut appraisal = fixtures::accepted();
        appraisal.status.verdict = assay_crds::v1alpha1::attestation_record::Verdict::Rejected;
        let runtime_data = fixtures::submission().runtime_data;
        assert_eq!(
            Claims::of(&appraisal, fixtures::NAMESPACE, &runtime_data),
            None
        );
    }

    #[test]
    fn a_token_lives_five_minutes_and_never_longer_than_the_verdict() {
        let key = fixtures::token_key();
        let claims = fixtures::claims();
        assert_eq!(claims.exp - claims.iat, TOKEN_LIFETIME_SECONDS);
        let token = key.sign(&claims).unwrap();
        let just = fixtures::now() + (TOKEN_LIFETIME_SECONDS - 1).seconds();
        assert!(key.verify(&token, just).is_ok());
        let over = fixtures::now() + TOKEN_LIFETIME_SECONDS.seconds();
        assert!(matches!(key.verify(&token, over), Err(TokenError::Expired)));
        let early = fixtures::now() - 6.seconds();
        assert!(matches!(
            key.verify(&token, early),
            Err(TokenError::Expired)
        ));

        let mut appraisal = fixtures::accepted();
        appraisal.status.expires_at = Some((fixtures::now() + 10.seconds()).into());
        let runtime_data = fixtures::submission().runtime_data;
        let claims = Claims::of(&appraisal, fixtures::NAMESPACE, &runtime_data).unwrap();
        assert_eq!(claims.exp - claims.iat, 10);
    }

    #[test]
    fn other_keys_algorithms_and_changed_claims_are_refused() {
        let key = fixtures::token_key();
        let token = key.sign(&fixtures::claims()).unwrap();
        let other = TokenKey::new(&KeyPair::generate().unwrap()).unwrap();
        assert!(matches!(
            other.verify(&token, fixtures::now()),
            Err(TokenError::Verify(_))
        ));

        let parts: Vec<&str> = token.split('.').collect();
        let payload = BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
        let payload = String::from_utf8(payload).unwrap();
        let changed = payload.replacen("\"simulated\":true", "\"simulated\":false", 1);
        assert_ne!(changed, payload);
        let changed = BASE64_URL_SAFE_NO_PAD.encode(changed);
        let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for forged in [
            format!("{}.{changed}.{}", parts[0], parts[2]),
            format!("{none}.{}.", parts[1]),
            format!("{}.{}.", parts[0], parts[1]),
            String::new(),
        ] {
            assert!(key.verify(&forged, fixtures::now()).is_err(), "{forged}");
        }
    }

    #[test]
    fn a_token_of_another_issuer_is_refused() {
        let key = fixtures::token_key();
        let mut claims = fixtures::claims();
        claims.iss = "somebody".to_owned();
        let token = key.sign(&claims).unwrap();
        assert!(matches!(
            key.verify(&token, fixtures::now()),
            Err(TokenError::Verify(_))
        ));
    }
}
