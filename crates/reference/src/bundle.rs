//! Sigstore bundles (media type `application/vnd.dev.sigstore.bundle.v0.3+json`,
//! protobuf-specs `sigstore_bundle.proto`) with a DSSE envelope that a key
//! signed, and their verification.
//!
//! A bundle names its key by a hint only; who verifies brings the key.

use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dsse::{Envelope, EnvelopeSignature, PAYLOAD_TYPE, pre_authentication_encoding};
use crate::key::{PublicKey, SignatureError, SigningKey};
use crate::statement::{Statement, StatementError};

/// Media type of a bundle.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A bundle as it was read: not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    payload: Vec<u8>,
    signature: Vec<u8>,
    hint: String,
}

impl Bundle {
    /// Signs a statement.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn sign(statement: &Statement, key: &SigningKey) -> Result<Self, BundleError> {
        let payload = statement.encode().map_err(BundleError::Encode)?;
        let signature = key.sign(&pre_authentication_encoding(PAYLOAD_TYPE, &payload));
        Ok(Self {
            payload,
            signature,
            hint: key.public_key().hint(),
        })
    }

    /// Puts a signature that was made elsewhere to its statement, as
    /// [`Statement::encode`] wrote it. `signature` is DER or `r || s`, over
    /// [`pre_authentication_encoding`].
    ///
    /// # Errors
    /// When the statement or the signature is refused; see [`BundleError`].
    pub fn assemble(
        statement: &[u8],
        key: &PublicKey,
        signature: &[u8],
    ) -> Result<Self, BundleError> {
        Statement::parse(statement).map_err(BundleError::Statement)?;
        let message = pre_authentication_encoding(PAYLOAD_TYPE, statement);
        let signature = key
            .accept_signature(&message, signature)
            .map_err(BundleError::Signature)?;
        Ok(Self {
            payload: statement.to_vec(),
            signature,
            hint: key.hint(),
        })
    }

    /// Signs a statement of another predicate, as it is encoded.
    pub fn sign_payload(payload: Vec<u8>, key: &SigningKey) -> Self {
        let signature = key.sign(&pre_authentication_encoding(PAYLOAD_TYPE, &payload));
        Self {
            payload,
            signature,
            hint: key.public_key().hint(),
        }
    }

    /// Puts a signature that was made elsewhere to a statement of another
    /// predicate. `signature` is DER or `r || s`, over
    /// [`pre_authentication_encoding`].
    ///
    /// # Errors
    /// When it is no signature, or not of this statement by this key.
    pub fn assemble_payload(
        payload: Vec<u8>,
        key: &PublicKey,
        signature: &[u8],
    ) -> Result<Self, SignatureError> {
        let message = pre_authentication_encoding(PAYLOAD_TYPE, &payload);
        let signature = key.accept_signature(&message, signature)?;
        Ok(Self {
            payload,
            signature,
            hint: key.hint(),
        })
    }

    /// The signed bytes, where one of `keys` signed them.
    ///
    /// # Errors
    /// When none of them did.
    pub fn verify_payload(&self, keys: &[PublicKey]) -> Result<&[u8], SignatureError> {
        let message = pre_authentication_encoding(PAYLOAD_TYPE, &self.payload);
        keys.iter()
            .any(|key| key.verify(&message, &self.signature).is_ok())
            .then_some(self.payload.as_slice())
            .ok_or(SignatureError::Refused)
    }

    /// The bundle as JSON.
    ///
    /// # Errors
    /// Never for a value of this type; the encoder's error is passed on.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeCanonicalError> {
        encode_canonical(&BundleJson {
            media_type: MEDIA_TYPE.to_owned(),
            verification_material: Material {
                public_key: Some(Hint {
                    hint: self.hint.clone(),
                }),
                ..Material::default()
            },
            dsse_envelope: Some(Envelope {
                payload: STANDARD.encode(&self.payload),
                payload_type: PAYLOAD_TYPE.to_owned(),
                signatures: vec![EnvelopeSignature {
                    sig: STANDARD.encode(&self.signature),
                    keyid: String::new(),
                }],
            }),
            message_signature: None,
        })
    }

    /// Reads a bundle. Entries of transparency logs and timestamps are let
    /// through and decide nothing.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let bundle: BundleJson = serde_json::from_slice(bytes).map_err(BundleError::Parse)?;
        if bundle.media_type != MEDIA_TYPE {
            return Err(BundleError::MediaType(bundle.media_type));
        }
        let material = bundle.verification_material;
        if material.certificate.is_some() || material.x509_certificate_chain.is_some() {
            return Err(BundleError::Certificate);
        }
        let hint = material.public_key.ok_or(BundleError::NoKey)?.hint;
        if bundle.message_signature.is_some() {
            return Err(BundleError::MessageSignature);
        }
        let envelope = bundle.dsse_envelope.ok_or(BundleError::MessageSignature)?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(BundleError::PayloadType(envelope.payload_type));
        }
        let [signature] = envelope.signatures.as_slice() else {
            return Err(BundleError::Signatures(envelope.signatures.len()));
        };
        let decode = |field, text: &str| {
            STANDARD
                .decode(text)
                .map_err(|source| BundleError::Base64 { field, source })
        };
        Ok(Self {
            payload: decode("dsseEnvelope.payload", &envelope.payload)?,
            signature: decode("dsseEnvelope.signatures.sig", &signature.sig)?,
            hint,
        })
    }

    /// The signed bytes, believed by nobody yet.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }
}

/// The statement of bundles that at least `threshold` of `keys` signed, valid at
/// `now`. A Sigstore bundle has one signature, so further signatures of the same
/// statement come in further bundles; a bundle that none of the keys signed is an
/// error, not a missing vote.
///
/// # Errors
/// See [`VerifyError`].
pub fn verify(
    bundles: &[Bundle],
    keys: &[PublicKey],
    threshold: usize,
    now: Timestamp,
) -> Result<Statement, VerifyError> {
    let mut distinct: Vec<&PublicKey> = Vec::new();
    for key in keys {
        if !distinct.contains(&key) {
            distinct.push(key);
        }
    }
    if threshold == 0 || threshold > distinct.len() {
        return Err(VerifyError::Threshold {
            threshold,
            keys: distinct.len(),
        });
    }
    let Some(first) = bundles.first() else {
        return Err(VerifyError::NoBundle);
    };
    let message = pre_authentication_encoding(PAYLOAD_TYPE, &first.payload);
    let mut signed = vec![false; distinct.len()];
    for (index, bundle) in bundles.iter().enumerate() {
        if bundle.payload != first.payload {
            return Err(VerifyError::Differ { index });
        }
        let signer = distinct
            .iter()
            .position(|key| key.verify(&message, &bundle.signature).is_ok())
            .ok_or_else(|| VerifyError::Signature {
                index,
                hint: bundle.hint.clone(),
            })?;
        if let Some(mark) = signed.get_mut(signer) {
            *mark = true;
        }
    }
    let got = signed.into_iter().filter(|mark| *mark).count();
    if got < threshold {
        return Err(VerifyError::TooFew { threshold, got });
    }
    let statement = Statement::parse(&first.payload).map_err(VerifyError::Statement)?;
    statement
        .predicate
        .validity
        .check(now)
        .map_err(VerifyError::Statement)?;
    Ok(statement)
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BundleJson {
    media_type: String,
    verification_material: Material,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dsse_envelope: Option<Envelope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message_signature: Option<Value>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Material {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<Hint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x509_certificate_chain: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tlog_entries: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp_verification_data: Option<Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hint {
    #[serde(default)]
    hint: String,
}

/// Bytes are no bundle, or it cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The bytes are no JSON of a bundle.
    #[error("not a Sigstore bundle in JSON; give what `assay policy export` wrote")]
    Parse(#[source] serde_json::Error),
    /// Another version of bundles.
    #[error("mediaType is {0:?}, expected {MEDIA_TYPE:?}; export again as version 0.3")]
    MediaType(String),
    /// Signed with a certificate.
    #[error(
        "verificationMaterial holds a certificate, and assay verifies with keys alone; verify it \
         with cosign, and have the statement signed with a key"
    )]
    Certificate,
    /// No key is named.
    #[error("verificationMaterial.publicKey is missing; sign the statement with a key")]
    NoKey,
    /// The bundle signs a file, not a statement.
    #[error("the bundle holds no dsseEnvelope, or a messageSignature; sign a statement instead")]
    MessageSignature,
    /// The envelope holds something else.
    #[error(
        "dsseEnvelope.payloadType is {0:?}, expected {PAYLOAD_TYPE:?}; sign a statement instead"
    )]
    PayloadType(String),
    /// Not exactly one signature.
    #[error(
        "dsseEnvelope.signatures has {0} entries, and a bundle has exactly one; give further \
         signatures in bundles of their own"
    )]
    Signatures(usize),
    /// Not base64.
    #[error("{field} is not base64; copy the bundle again")]
    Base64 {
        /// The member.
        field: &'static str,
        /// Why.
        #[source]
        source: base64::DecodeError,
    },
    /// The statement is refused.
    #[error("the statement is refused")]
    Statement(#[source] StatementError),
    /// The signature is refused.
    #[error("the signature is refused")]
    Signature(#[source] SignatureError),
    /// The statement cannot be written.
    #[error("write the statement")]
    Encode(#[source] EncodeCanonicalError),
}

/// A statement may not be relied on.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The threshold asks for nothing, or for more than there is.
    #[error("threshold is {threshold} of {keys} different keys; give 1 to {keys}")]
    Threshold {
        /// Signatures that are asked for.
        threshold: usize,
        /// Different keys.
        keys: usize,
    },
    /// There is nothing to verify.
    #[error("no bundle is given; name at least one")]
    NoBundle,
    /// Bundles sign different statements.
    #[error(
        "bundle {index} (counted from zero) signs another statement than the first; give bundles of one"
    )]
    Differ {
        /// Index of the bundle.
        index: usize,
    },
    /// None of the keys signed a bundle.
    #[error(
        "bundle {index} (counted from zero) is signed by none of the given keys; its hint is \
         {hint:?}: give the key that signed, or refuse the bundle"
    )]
    Signature {
        /// Index of the bundle.
        index: usize,
        /// What the bundle says of its key.
        hint: String,
    },
    /// Too few keys signed.
    #[error("{got} of the given keys signed, and {threshold} must; add bundles of the others")]
    TooFew {
        /// Signatures that are asked for.
        threshold: usize,
        /// Keys that signed.
        got: usize,
    },
    /// The signed bytes are no statement, or not valid now.
    #[error("the signed statement is refused")]
    Statement(#[source] StatementError),
}
