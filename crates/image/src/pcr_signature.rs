//! Signatures of expected PCR values, which let a TPM release a secret to every UKI
//! that somebody signed (systemd-measure(1), `.pcrsig` and `.pcrpkey`).
//!
//! What is signed is the digest of the policy "PCR 11 has this value" (TPM 2.0
//! Library, part 3, TPM2_PolicyPCR), in the SHA-256 bank, once for each phase of the
//! boot. `.pcrpkey` is measured into PCR 11 and `.pcrsig` is not, so the key must be
//! in a UKI before its values can be signed, and the signatures can be made elsewhere.
//!
//! They have no time and no random number in them (RSA, PKCS #1 v1.5).

use assay_tee::Sha256Digest;
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use der::asn1::ObjectIdentifier;
use der::pem::{self, LineEnding};
use der::{Decode as _, Encode as _};
use serde::{Deserialize, Serialize};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::authenticode::SigningKey;
use crate::pcr::{BootPath, PredictPcrError, predict_pcrs};
use crate::uki::{OptionalSections, PCRPKEY, PCRSIG, ParseUkiError, parse_uki};

/// The PCR that the UKI's sections and the phases of the boot are measured into.
const PCR: u8 = 11;
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const PUBLIC_KEY: &str = "PUBLIC KEY";

/// TPM2_CC_PolicyPCR.
const POLICY_PCR: u32 = 0x17f;
/// TPML_PCR_SELECTION of PCR 11 in the bank TPM2_ALG_SHA256, of three bytes.
const SELECTION: [u8; 10] = [0, 0, 0, 1, 0x00, 0x0b, 3, 0, 1 << (PCR - 8), 0];

/// The public RSA key of who signs PCR values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrKey {
    /// SubjectPublicKeyInfo, DER.
    der: Vec<u8>,
    /// RSAPublicKey, DER.
    rsa: Vec<u8>,
}

/// A file that holds no usable public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadPcrKeyError {
    /// Not PEM.
    #[error("no public key in PEM; make one with `openssl pkey -in KEY -pubout`")]
    NotPem,
    /// A PEM file of something else.
    #[error("the PEM block is {0:?}, expected \"{PUBLIC_KEY}\"")]
    Label(String),
    /// Not a key.
    #[error("the public key is no SubjectPublicKeyInfo")]
    Der(#[source] der::Error),
    /// What verifies such a signature in a guest takes RSA alone.
    #[error("the public key has algorithm {0}; PCR values are signed with RSA, so make one of RSA")]
    NotRsa(String),
}

impl PcrKey {
    /// Reads a key from PEM (`PUBLIC KEY`).
    pub fn from_pem(text: &[u8]) -> Result<Self, ReadPcrKeyError> {
        let (label, der) = pem::decode_vec(text).map_err(|_| ReadPcrKeyError::NotPem)?;
        if label != PUBLIC_KEY {
            return Err(ReadPcrKeyError::Label(label.to_owned()));
        }
        Self::from_der(&der)
    }

    fn from_der(der: &[u8]) -> Result<Self, ReadPcrKeyError> {
        let info = SubjectPublicKeyInfoOwned::from_der(der).map_err(ReadPcrKeyError::Der)?;
        if info.algorithm.oid != RSA {
            return Err(ReadPcrKeyError::NotRsa(info.algorithm.oid.to_string()));
        }
        Ok(Self {
            rsa: info.subject_public_key.raw_bytes().to_vec(),
            der: info.to_der().map_err(ReadPcrKeyError::Der)?,
        })
    }

    /// SHA-256 of the key as RSAPublicKey (RFC 8017, A.1.1): `pkfp` of a signature.
    pub fn fingerprint(&self) -> Sha256Digest {
        Sha256Digest::of(&self.rsa)
    }

    /// The one PEM form of the key, as OpenSSL writes it.
    pub fn to_pem(&self) -> String {
        pem::encode_string(PUBLIC_KEY, LineEnding::LF, &self.der).unwrap_or_default()
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.rsa)
            .verify(message, signature)
            .is_ok()
    }
}

/// What signs the PCR values of a UKI.
#[derive(Debug)]
pub struct PcrSigner {
    /// The key that becomes [`PCRPKEY`].
    pub key: PcrKey,
    /// The phases to sign for, each as systemd-pcrphase measures it: words with
    /// colons between, none for a guest that measures none.
    pub phases: Vec<String>,
    /// How the signatures come about.
    pub by: PcrSignedBy,
}

/// How signatures of PCR values come about.
#[derive(Debug)]
pub enum PcrSignedBy {
    /// Not yet: the UKI gets the key alone.
    Nobody,
    /// By the private key.
    Key(SigningKey),
    /// Elsewhere, over [`policy_digest`] for each of the phases in order.
    Signatures(Vec<Vec<u8>>),
}

/// PCR values that cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignPcrsError {
    /// What there is to sign cannot be told.
    #[error("cannot predict PCR {PCR}")]
    Predict(#[source] PredictPcrError),
    /// Signatures for other phases than were asked for.
    #[error("there are {signatures} signatures for {phases} phases; give one for each, in order")]
    Count {
        /// Signatures given.
        signatures: usize,
        /// Phases given.
        phases: usize,
    },
    /// What was signed, by whom, or with what padding is another.
    #[error(
        "the signature for phase {phase:?} is not one of this UKI by the given key: sign what \
         `assay pcrs --policy-digest` writes for this very UKI, with RSA (PKCS #1 v1.5) and SHA-256"
    )]
    NotTheSignature {
        /// The phase.
        phase: String,
    },
    /// The key signs nothing.
    #[error("the key cannot sign")]
    Key,
}

impl PcrSigner {
    /// A signer whose public key is that of its private one.
    pub fn with_key(key: SigningKey, phases: Vec<String>) -> Result<Self, ReadPcrKeyError> {
        let der = key.public_key().ok_or(ReadPcrKeyError::NotPem)?;
        Ok(Self {
            key: PcrKey::from_der(&der)?,
            phases,
            by: PcrSignedBy::Key(key),
        })
    }

    /// The signatures of a UKI that has the key; `None` where nobody signs.
    pub fn sign(&self, uki: &Bytes) -> Result<Option<PcrSignatures>, SignPcrsError> {
        let count = self.phases.len();
        let made = match &self.by {
            PcrSignedBy::Nobody => return Ok(None),
            PcrSignedBy::Signatures(made) if made.len() != count => {
                return Err(SignPcrsError::Count {
                    signatures: made.len(),
                    phases: count,
                });
            }
            PcrSignedBy::Signatures(made) => made.clone(),
            PcrSignedBy::Key(_) => Vec::new(),
        };
        let mut sha256 = Vec::with_capacity(count);
        for (index, phase) in self.phases.iter().enumerate() {
            let policy = policy_digest(uki, phase).map_err(SignPcrsError::Predict)?;
            let signature = match &self.by {
                PcrSignedBy::Key(key) => key.sign(policy.as_bytes()).ok_or(SignPcrsError::Key)?,
                _ => made.get(index).cloned().unwrap_or_default(),
            };
            if !self.key.has_signed(policy.as_bytes(), &signature) {
                return Err(SignPcrsError::NotTheSignature {
                    phase: phase.clone(),
                });
            }
            sha256.push(Signature {
                pcrs: [PCR],
                key: self.key.fingerprint().to_hex(),
                policy: policy.to_hex(),
                made: STANDARD.encode(&signature),
            });
        }
        Ok(Some(PcrSignatures { sha256 }))
    }
}

/// The digest of the policy that a UKI's PCR 11 satisfies in a phase: what is to be
/// signed with RSA (PKCS #1 v1.5) and SHA-256.
pub fn policy_digest(uki: &Bytes, phase: &str) -> Result<Sha256Digest, PredictPcrError> {
    // PCR 11 is the same whichever way the UKI is booted.
    let prediction = predict_pcrs(uki, BootPath::DirectKernel, &phase_words(phase))?;
    let value = prediction.value(PCR).unwrap_or(Sha256Digest::new([0; 32]));
    let values = Sha256Digest::of(value.as_bytes());
    let command = POLICY_PCR.to_be_bytes();
    let policy = [&[0; 32], command.as_slice(), &SELECTION, values.as_bytes()];
    Ok(Sha256Digest::of(&policy.concat()))
}

/// The words of a phase.
pub fn phase_words(phase: &str) -> Vec<String> {
    let words = phase.split(':').filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// The content of [`PCRSIG`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcrSignatures {
    sha256: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    pcrs: [u8; 1],
    #[serde(rename = "pkfp")]
    key: String,
    #[serde(rename = "pol")]
    policy: String,
    #[serde(rename = "sig")]
    made: String,
}

impl PcrSignatures {
    /// Reads a section.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The section's bytes, as ukify writes them: with a space after each comma and
    /// colon.
    pub fn encode(&self) -> Vec<u8> {
        let signature = |it: &Signature| {
            format!(
                "{{\"pcrs\": [{PCR}], \"pkfp\": \"{}\", \"pol\": \"{}\", \"sig\": \"{}\"}}",
                it.key, it.policy, it.made
            )
        };
        let all: Vec<_> = self.sha256.iter().map(signature).collect();
        format!("{{\"sha256\": [{}]}}", all.join(", ")).into_bytes()
    }
}

/// Who signed the PCR values of a UKI, and for which phases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PcrSignatureSummary {
    /// SHA-256 of the public key ([`PcrKey::fingerprint`]).
    pub key: Sha256Digest,
    /// The phases, in the order of the signatures; empty text stands for a guest
    /// that measures none.
    pub phases: Vec<String>,
}

/// Signatures that are not of the UKI's PCR values.
#[derive(Debug, thiserror::Error)]
pub enum VerifyPcrSignaturesError {
    /// Not a UKI.
    #[error("cannot read the UKI")]
    Uki(#[source] ParseUkiError),
    /// Signatures without the key.
    #[error("the UKI has {PCRSIG} but no {PCRPKEY} to verify it with")]
    NoKey,
    /// A section is not what it must be.
    #[error("cannot read section {0}")]
    Section(&'static str),
    /// Nothing to compare with.
    #[error("cannot predict PCR {PCR}")]
    Predict(#[source] PredictPcrError),
    /// Other phases are signed.
    #[error("{signatures} signatures are there, for {phases} phases")]
    Count {
        /// Signatures in the UKI.
        signatures: usize,
        /// Phases that there should be.
        phases: usize,
    },
    /// Another UKI, another phase, or another key.
    #[error("the signature for phase {phase:?} is not of this UKI by the key in {PCRPKEY}")]
    NotSigned {
        /// The phase.
        phase: String,
    },
}

/// Verifies that a UKI's signatures are by its own key, of its own values in these
/// phases. `None` where it has no signatures.
pub fn verify_pcr_signatures(
    uki: &Bytes,
    phases: &[String],
) -> Result<Option<PcrSignatureSummary>, VerifyPcrSignaturesError> {
    use VerifyPcrSignaturesError::{Count, NoKey, NotSigned, Predict, Section, Uki};
    let content = parse_uki(uki).map_err(Uki)?;
    let Some(signatures) = content.section(PCRSIG) else {
        return Ok(None);
    };
    let key = content.section(PCRPKEY).ok_or(NoKey)?;
    let key = PcrKey::from_pem(key).map_err(|_| Section(PCRPKEY))?;
    let signatures = PcrSignatures::parse(signatures).map_err(|_| Section(PCRSIG))?;
    if signatures.sha256.len() != phases.len() {
        return Err(Count {
            signatures: signatures.sha256.len(),
            phases: phases.len(),
        });
    }
    for (signature, phase) in signatures.sha256.iter().zip(phases) {
        let policy = policy_digest(uki, phase).map_err(Predict)?;
        let made = STANDARD.decode(&signature.made).unwrap_or_default();
        let right = signature.pcrs == [PCR]
            && signature.key == key.fingerprint().to_hex()
            && signature.policy == policy.to_hex()
            && key.has_signed(policy.as_bytes(), &made);
        if !right {
            return Err(NotSigned {
                phase: phase.clone(),
            });
        }
    }
    Ok(Some(PcrSignatureSummary {
        key: key.fingerprint(),
        phases: phases.to_vec(),
    }))
}

/// The sections about PCR values that a UKI has, to be put into another that is
/// built like it.
pub fn copy_pcr_sections(from: &Bytes) -> OptionalSections {
    let content = parse_uki(from).ok();
    let section = |name| content.as_ref()?.section(name).cloned();
    OptionalSections {
        pcr_public_key: section(PCRPKEY),
        pcr_signatures: section(PCRSIG),
        ..OptionalSections::default()
    }
}

#[cfg(test)]
pub(crate) mod tests;
