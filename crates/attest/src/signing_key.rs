//! Keys and signatures as people keep them: PEM files of OpenSSL, and what a
//! hardware security module answers.
//!
//! Only P-384 is accepted, and never an encrypted file: a passphrase on a
//! command line or in a variable is no better than none.

use assay_tee::id_block::{EcdsaPublicKey, EcdsaSignature};
use der::Decode as _;
use der::oid::ObjectIdentifier;
use der::pem;
use p384::SecretKey;
use p384::ecdsa::signature::Signer as _;
use p384::ecdsa::{Signature, SigningKey};
use p384::elliptic_curve::sec1::ToSec1Point as _;
use p384::pkcs8::PrivateKeyInfoRef;
use sec1::EcPrivateKey;
use x509_cert::spki::SubjectPublicKeyInfoOwned;
use zeroize::Zeroizing;

const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// What certificates and keys of other kinds are called.
const OTHER_KEYS: [(ObjectIdentifier, &str); 5] = [
    (
        ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"),
        "on P-256",
    ),
    (ObjectIdentifier::new_unwrap("1.3.132.0.35"), "on P-521"),
    (ObjectIdentifier::new_unwrap("1.3.132.0.10"), "on secp256k1"),
    (
        ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1"),
        "an RSA key",
    ),
    (
        ObjectIdentifier::new_unwrap("1.3.101.112"),
        "an Ed25519 key",
    ),
];

/// A private key on P-384. Wiped from memory when dropped.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// Reads a key from PEM: PKCS#8 (`PRIVATE KEY`) or SEC 1
    /// (`EC PRIVATE KEY`), not encrypted.
    ///
    /// # Errors
    /// See [`ReadKeyError`].
    pub fn from_pem(text: &str) -> Result<Self, ReadKeyError> {
        match Block::find(text)? {
            Block::Private { label, der } => read_private(label, &der).map(|key| Self(key.into())),
            Block::Public { .. } => Err(ReadKeyError::NotPrivate),
        }
    }

    /// The public key.
    pub fn public_key(&self) -> EcdsaPublicKey {
        to_stored(&p384::PublicKey::from(self.0.verifying_key()))
    }

    /// Signs with SHA-384. The same message gives the same signature (RFC 6979).
    pub fn sign(&self, message: &[u8]) -> EcdsaSignature {
        let signature: Signature = self.0.sign(message);
        EcdsaSignature::from_fixed(&fixed(&signature))
    }
}

/// Reads a public key: SubjectPublicKeyInfo as PEM or DER, or the public half of
/// a private key in PEM.
///
/// # Errors
/// See [`ReadKeyError`].
pub fn read_public_key(bytes: &[u8]) -> Result<EcdsaPublicKey, ReadKeyError> {
    const DER_SEQUENCE: u8 = 0x30;
    if bytes.first() == Some(&DER_SEQUENCE) {
        return read_public("PUBLIC KEY", bytes);
    }
    let text = str::from_utf8(bytes).map_err(|_| ReadKeyError::NotPem)?;
    match Block::find(text)? {
        Block::Public { label, der } => read_public(label, &der),
        Block::Private { label, der } => Ok(to_stored(&read_private(label, &der)?.public_key())),
    }
}

/// Reads a signature: `r || s` of 48 bytes each, big-endian (PKCS #11), or DER
/// (OpenSSL).
///
/// # Errors
/// When it is neither, or r or s is out of range.
pub fn read_signature(bytes: &[u8]) -> Result<EcdsaSignature, ReadSignatureError> {
    let signature = if bytes.len() == 96 {
        Signature::from_slice(bytes)
    } else {
        Signature::from_der(bytes)
    };
    signature
        .map(|signature| EcdsaSignature::from_fixed(&fixed(&signature)))
        .map_err(|_| ReadSignatureError { got: bytes.len() })
}

/// A PEM block that holds a key.
enum Block {
    Private {
        label: &'static str,
        der: Zeroizing<Vec<u8>>,
    },
    Public {
        label: &'static str,
        der: Vec<u8>,
    },
}

impl Block {
    /// The first block of `text` that is no curve's parameters: OpenSSL writes
    /// those before a key.
    fn find(text: &str) -> Result<Self, ReadKeyError> {
        const BEGIN: &str = "-----BEGIN ";
        const DASHES: &str = "-----";
        let mut rest = text;
        while let Some(start) = rest.find(BEGIN) {
            let block = rest.get(start..).unwrap_or_default();
            let after = block.get(BEGIN.len()..).unwrap_or_default();
            let (label, body) = after.split_once(DASHES).ok_or(ReadKeyError::NotPem)?;
            let end = format!("{DASHES}END {label}{DASHES}");
            let (body, next) = body.split_once(&end).ok_or(ReadKeyError::NotPem)?;
            if label == "EC PARAMETERS" {
                rest = next;
                continue;
            }
            if label == "ENCRYPTED PRIVATE KEY" || body.contains("ENCRYPTED") {
                return Err(ReadKeyError::Encrypted);
            }
            let label = match label {
                "PRIVATE KEY" => "PRIVATE KEY",
                "EC PRIVATE KEY" => "EC PRIVATE KEY",
                "PUBLIC KEY" => "PUBLIC KEY",
                other => return Err(ReadKeyError::Label(other.to_owned())),
            };
            let block = block
                .get(..block.len() - next.len())
                .ok_or(ReadKeyError::NotPem)?;
            let (_, der) = pem::decode_vec(block.as_bytes())
                .map_err(|_| ReadKeyError::Malformed { label, at: None })?;
            return Ok(if label == "PUBLIC KEY" {
                Self::Public { label, der }
            } else {
                Self::Private {
                    label,
                    der: Zeroizing::new(der),
                }
            });
        }
        Err(ReadKeyError::NotPem)
    }
}

fn read_private(label: &'static str, der: &[u8]) -> Result<SecretKey, ReadKeyError> {
    let malformed = |error: der::Error| ReadKeyError::at(label, &error);
    let unspecific = || ReadKeyError::Malformed { label, at: None };
    if label == "EC PRIVATE KEY" {
        let key = EcPrivateKey::from_der(der).map_err(malformed)?;
        if let Some(curve) = key.parameters.and_then(sec1::EcParameters::named_curve) {
            check_curve(curve)?;
        }
        return SecretKey::from_sec1_der(der).map_err(|_| unspecific());
    }
    let info = PrivateKeyInfoRef::from_der(der).map_err(malformed)?;
    check_curve(
        info.algorithm
            .parameters_oid()
            .unwrap_or(info.algorithm.oid),
    )?;
    SecretKey::try_from(info).map_err(|_| unspecific())
}

fn read_public(label: &'static str, der: &[u8]) -> Result<EcdsaPublicKey, ReadKeyError> {
    let info = SubjectPublicKeyInfoOwned::from_der(der)
        .map_err(|error| ReadKeyError::at(label, &error))?;
    let curve = info
        .algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.decode_as::<ObjectIdentifier>().ok());
    check_curve(curve.unwrap_or(info.algorithm.oid))?;
    let point = info.subject_public_key.as_bytes().unwrap_or_default();
    p384::PublicKey::from_sec1_bytes(point)
        .map(|key| to_stored(&key))
        .map_err(|_| ReadKeyError::Malformed { label, at: None })
}

fn check_curve(curve: ObjectIdentifier) -> Result<(), ReadKeyError> {
    if curve == SECP384R1 {
        return Ok(());
    }
    let name = OTHER_KEYS.iter().find(|(oid, _)| *oid == curve);
    Err(ReadKeyError::Curve(name.map_or_else(
        || format!("of kind {curve}"),
        |(_, name)| (*name).to_owned(),
    )))
}

fn to_stored(key: &p384::PublicKey) -> EcdsaPublicKey {
    let point = key.to_sec1_point(false);
    let mut coordinates = [0; 96];
    for (to, from) in coordinates.iter_mut().zip(point.as_bytes().iter().skip(1)) {
        *to = *from;
    }
    EcdsaPublicKey::from_coordinates(&coordinates)
}

fn fixed(signature: &Signature) -> [u8; 96] {
    signature.to_bytes().into()
}

/// A file is no key that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadKeyError {
    /// There is no PEM block.
    #[error(
        "not a PEM file with a key; convert it with `openssl pkey -inform DER -in FILE -out \
         KEY.pem`"
    )]
    NotPem,
    /// The private key is encrypted.
    #[error(
        "the private key is encrypted; decrypt it with `openssl pkey -in FILE -out KEY.pem`, or \
         leave it where it is and sign with `assay id-block prepare` and `assemble`"
    )]
    Encrypted,
    /// A private key is needed, this is a public one.
    #[error(
        "this is a public key, and signing needs the private one; give the private key's file, or \
         sign elsewhere with `assay id-block prepare` and `assemble`"
    )]
    NotPrivate,
    /// The block holds something else.
    #[error("the PEM block {0:?} is no key; give PRIVATE KEY, EC PRIVATE KEY or PUBLIC KEY")]
    Label(String),
    /// The block cannot be decoded.
    #[error("the PEM block {label:?} is damaged{}; export the key again", Offset(*at))]
    Malformed {
        /// Label of the block.
        label: &'static str,
        /// Offset in its DER, where known.
        at: Option<u32>,
    },
    /// The key is of another kind, or on another curve.
    #[error(
        "the key is {0}, but the processor takes P-384 only; make one with `openssl genpkey \
         -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out KEY.pem`"
    )]
    Curve(String),
}

impl ReadKeyError {
    fn at(label: &'static str, error: &der::Error) -> Self {
        Self::Malformed {
            label,
            at: error.position().map(u32::from),
        }
    }
}

/// Writes a known offset.
struct Offset(Option<u32>);

impl std::fmt::Display for Offset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(at) => write!(f, " at byte {at}"),
            None => Ok(()),
        }
    }
}

/// Bytes are no signature on P-384.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{got} bytes are no ECDSA P-384 signature; give DER, as OpenSSL writes it, or r and s of 48 \
     bytes each, big-endian"
)]
pub struct ReadSignatureError {
    got: usize,
}

#[cfg(test)]
mod tests;
