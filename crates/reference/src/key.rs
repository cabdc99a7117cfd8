//! ECDSA keys on P-256 (with SHA-256) and P-384 (with SHA-384), as OpenSSL keeps
//! them, and signatures as OpenSSL and PKCS #11 give them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::{Decode as _, Encode as _, pem};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _};
use sha2::{Digest as _, Sha256};
use x509_cert::spki::SubjectPublicKeyInfoOwned;
use zeroize::Zeroizing;

/// The curve of a key, which decides the hash too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// P-256 with SHA-256.
    P256,
    /// P-384 with SHA-384.
    P384,
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        })
    }
}

/// A private key. Wiped from memory when dropped.
pub struct SigningKey(Private);

enum Private {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
}

impl SigningKey {
    /// Reads a key from PEM: PKCS#8 (`PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`),
    /// not encrypted.
    ///
    /// # Errors
    /// See [`ReadKeyError`].
    pub fn from_pem(text: &str) -> Result<Self, ReadKeyError> {
        let (label, der) = block(text)?;
        let private = match label {
            "PRIVATE KEY" => p256::SecretKey::from_pkcs8_der(&der)
                .map(|key| Private::P256(key.into()))
                .or_else(|_| {
                    p384::SecretKey::from_pkcs8_der(&der).map(|key| Private::P384(key.into()))
                })
                .ok(),
            "EC PRIVATE KEY" => p256::SecretKey::from_sec1_der(&der)
                .map(|key| Private::P256(key.into()))
                .or_else(|_| {
                    p384::SecretKey::from_sec1_der(&der).map(|key| Private::P384(key.into()))
                })
                .ok(),
            _ => return Err(ReadKeyError::NotPrivate),
        };
        private.map(Self).ok_or(ReadKeyError::Kind)
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(match &self.0 {
            Private::P256(key) => Public::P256(*key.verifying_key()),
            Private::P384(key) => Public::P384(*key.verifying_key()),
        })
    }

    /// Signs; the result is DER. The same message gives the same signature
    /// (RFC 6979).
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.0 {
            Private::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
            Private::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
        }
    }

    /// Signs; the result is `r || s`, as COSE has it (RFC 9053, 2.1).
    pub(crate) fn sign_fixed(&self, message: &[u8]) -> Vec<u8> {
        match &self.0 {
            Private::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Private::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
        }
    }
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(Public);

#[derive(Clone, PartialEq, Eq)]
enum Public {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, {})", self.curve(), self.hint())
    }
}

impl PublicKey {
    /// Reads a public key: SubjectPublicKeyInfo in PEM (`PUBLIC KEY`) or DER. A
    /// private key is refused: who verifies must not have it.
    ///
    /// # Errors
    /// See [`ReadKeyError`].
    pub fn read(bytes: &[u8]) -> Result<Self, ReadKeyError> {
        const DER_SEQUENCE: u8 = 0x30;
        let decoded;
        let der = if bytes.first() == Some(&DER_SEQUENCE) {
            bytes
        } else {
            let text = str::from_utf8(bytes).map_err(|_| ReadKeyError::NotPem)?;
            let (label, der) = block(text)?;
            if label != "PUBLIC KEY" {
                return Err(ReadKeyError::NotPublic);
            }
            decoded = der;
            &decoded
        };
        // One encoding, without anything after it.
        let info = SubjectPublicKeyInfoOwned::from_der(der).map_err(|_| ReadKeyError::Kind)?;
        let der = info.to_der().map_err(|_| ReadKeyError::Kind)?;
        p256::ecdsa::VerifyingKey::from_public_key_der(&der)
            .map(|key| Self(Public::P256(key)))
            .or_else(|_| {
                p384::ecdsa::VerifyingKey::from_public_key_der(&der)
                    .map(|key| Self(Public::P384(key)))
            })
            .map_err(|_| ReadKeyError::Kind)
    }

    /// The curve.
    pub fn curve(&self) -> Curve {
        match self.0 {
            Public::P256(_) => Curve::P256,
            Public::P384(_) => Curve::P384,
        }
    }

    /// What a Sigstore bundle names the key by: base64 of the SHA-256 of its
    /// SubjectPublicKeyInfo. Decides nothing.
    pub fn hint(&self) -> String {
        STANDARD.encode(self.key_id())
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(crate) fn key_id(&self) -> Vec<u8> {
        let info = match &self.0 {
            Public::P256(key) => key.to_public_key_der(),
            Public::P384(key) => key.to_public_key_der(),
        };
        // A key that was read has an encoding; an empty hint would name none.
        info.map(|info| Sha256::digest(info.as_bytes()).to_vec())
            .unwrap_or_default()
    }

    /// Verifies a signature in DER.
    ///
    /// # Errors
    /// When it is no signature, or not of this message by this key.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        let refused = |_| SignatureError::Refused;
        match &self.0 {
            Public::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .and_then(|signature| key.verify(message, &signature))
                .map_err(refused),
            Public::P384(key) => p384::ecdsa::Signature::from_der(signature)
                .and_then(|signature| key.verify(message, &signature))
                .map_err(refused),
        }
    }

    /// A signature as DER, from DER or `r || s`, after verifying it.
    ///
    /// # Errors
    /// When it is no signature, or not of this message by this key.
    pub fn accept_signature(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<Vec<u8>, SignatureError> {
        let form = || SignatureError::Form {
            got: signature.len(),
            curve: self.curve(),
        };
        let der = match &self.0 {
            Public::P256(_) if signature.len() == 64 => {
                p256::ecdsa::Signature::from_slice(signature)
                    .map(|signature| signature.to_der().as_bytes().to_vec())
                    .map_err(|_| form())?
            }
            Public::P384(_) if signature.len() == 96 => {
                p384::ecdsa::Signature::from_slice(signature)
                    .map(|signature| signature.to_der().as_bytes().to_vec())
                    .map_err(|_| form())?
            }
            _ if signature.first() == Some(&0x30) => signature.to_vec(),
            _ => return Err(form()),
        };
        self.verify(message, &der)?;
        Ok(der)
    }

    /// As [`PublicKey::accept_signature`], as `r || s`.
    pub(crate) fn accept_fixed_signature(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<Vec<u8>, SignatureError> {
        let der = self.accept_signature(message, signature)?;
        let fixed = match &self.0 {
            Public::P256(_) => p256::ecdsa::Signature::from_der(&der)
                .map(|signature| signature.to_bytes().to_vec()),
            Public::P384(_) => p384::ecdsa::Signature::from_der(&der)
                .map(|signature| signature.to_bytes().to_vec()),
        };
        fixed.map_err(|_| SignatureError::Refused)
    }
}

/// The label and content of the file's key. OpenSSL puts the curve's parameters
/// before a SEC 1 key.
fn block(text: &str) -> Result<(&'static str, Zeroizing<Vec<u8>>), ReadKeyError> {
    const PARAMETERS_END: &str = "-----END EC PARAMETERS-----";
    let text = match text.split_once(PARAMETERS_END) {
        Some((_, rest)) => rest,
        None => text,
    }
    .trim_start();
    if text.contains("ENCRYPTED") {
        return Err(ReadKeyError::Encrypted);
    }
    let (label, der) = pem::decode_vec(text.as_bytes()).map_err(|_| ReadKeyError::NotPem)?;
    let der = Zeroizing::new(der);
    match label {
        "PRIVATE KEY" => Ok(("PRIVATE KEY", der)),
        "EC PRIVATE KEY" => Ok(("EC PRIVATE KEY", der)),
        "PUBLIC KEY" => Ok(("PUBLIC KEY", der)),
        other => Err(ReadKeyError::Label(other.to_owned())),
    }
}

/// A file holds no key that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadKeyError {
    /// There is no PEM block, or it is damaged.
    #[error("not one PEM block with a key; export the key again with `openssl pkey`")]
    NotPem,
    /// The private key is encrypted.
    #[error(
        "the private key is encrypted; decrypt it, or leave it where it is and sign with `assay \
         policy export --unsigned` and `assemble`"
    )]
    Encrypted,
    /// A private key is needed.
    #[error(
        "this is a public key, and signing needs the private one; give its file, or sign elsewhere \
         with `assay policy export --unsigned` and `assemble`"
    )]
    NotPrivate,
    /// A public key is needed.
    #[error(
        "this is a private key, which a verifier must not have; give the public one, made with \
         `openssl pkey -in KEY.pem -pubout`"
    )]
    NotPublic,
    /// The block holds something else.
    #[error("the PEM block {0:?} is no key; give PRIVATE KEY, EC PRIVATE KEY or PUBLIC KEY")]
    Label(String),
    /// The key is of another kind, or damaged.
    #[error(
        "not a key on P-256 or P-384, or damaged; make one with `openssl genpkey -algorithm EC \
         -pkeyopt ec_paramgen_curve:P-384 -out KEY.pem`"
    )]
    Kind,
}

/// A signature is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The bytes are no signature on the key's curve.
    #[error(
        "{got} bytes are no ECDSA {curve} signature; give DER, as OpenSSL writes it, or r and s, \
         big-endian"
    )]
    Form {
        /// Number of bytes.
        got: usize,
        /// The key's curve.
        curve: Curve,
    },
    /// The signature is not of this message by this key.
    #[error("the signature does not verify under the given key; give the key that signed")]
    Refused,
}
