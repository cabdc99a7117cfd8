//! Certificates and keys of Secure Boot. Firmware verifies RSA signatures with
//! PKCS #1 v1.5 (UEFI 2.10, §32.4.1): other keys sign what nothing would boot.

use std::fmt;

use assay_tee::Sha256Digest;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{
    KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey,
};
use der::asn1::{ObjectIdentifier, UintRef};
use der::{Decode as _, Sequence, pem};
use x509_cert::Certificate;
use zeroize::Zeroizing;

use super::message::issuer_and_serial;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const DER_SEQUENCE: u8 = 0x30;

/// 2048 bits are what every firmware with Secure Boot takes, and the least that
/// aws-lc does. Firmware differs in what it takes beyond 4096.
const KEY_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// RSAPublicKey (RFC 8017, A.1.1).
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    #[allow(dead_code, reason = "part of the structure")]
    exponent: UintRef<'a>,
}

/// A certificate that firmware may have in its `db`, of an RSA key with 2048 to
/// 4096 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningCertificate {
    der: Vec<u8>,
    subject: String,
    issuer_and_serial: Vec<u8>,
    public_key: Vec<u8>,
    key_bits: usize,
}

/// A certificate that cannot verify a signature in firmware.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadCertificateError {
    /// Neither PEM nor DER.
    #[error("no certificate in PEM or DER, or more than one; give the signing certificate alone")]
    NotPem,
    /// A PEM file of something else.
    #[error("the PEM block is {0:?}, expected \"CERTIFICATE\"; give the certificate of the key")]
    Label(String),
    /// Not X.509.
    #[error("the certificate is not X.509")]
    X509(#[source] der::Error),
    /// Firmware verifies only RSA.
    #[error("the certificate's key has algorithm {0}; firmware verifies RSA, so make one of RSA")]
    NotRsa(String),
    /// Too few bits, or too many.
    #[error(
        "the certificate's key has {0} bits; make one of {min} to {max}",
        min = KEY_BITS.start(), max = KEY_BITS.end()
    )]
    KeyBits(usize),
}

impl SigningCertificate {
    /// Reads a certificate: PEM or DER.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReadCertificateError> {
        if bytes.first() == Some(&DER_SEQUENCE) {
            return Self::from_der(bytes);
        }
        let (label, der) = pem::decode_vec(bytes).map_err(|_| ReadCertificateError::NotPem)?;
        if label != "CERTIFICATE" {
            return Err(ReadCertificateError::Label(label.to_owned()));
        }
        Self::from_der(&der)
    }

    /// Reads a certificate in DER.
    pub(super) fn from_der(bytes: &[u8]) -> Result<Self, ReadCertificateError> {
        use ReadCertificateError::{KeyBits, NotRsa, X509};
        let certificate = Certificate::from_der(bytes).map_err(X509)?;
        let body = certificate.tbs_certificate();
        let key = body.subject_public_key_info();
        if key.algorithm.oid != RSA {
            return Err(NotRsa(key.algorithm.oid.to_string()));
        }
        let public_key = key.subject_public_key.raw_bytes().to_vec();
        let rsa = RsaPublicKey::from_der(&public_key).map_err(X509)?;
        let modulus = rsa.modulus.as_bytes();
        let unused = modulus.first().map_or(0, |byte| byte.leading_zeros());
        let key_bits = (8 * modulus.len()).saturating_sub(unused as usize);
        if !KEY_BITS.contains(&key_bits) {
            return Err(KeyBits(key_bits));
        }
        Ok(Self {
            der: bytes.to_vec(),
            subject: body.subject().to_string(),
            issuer_and_serial: issuer_and_serial(&certificate).map_err(X509)?,
            public_key,
            key_bits,
        })
    }

    /// The certificate, DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the certificate.
    pub fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(&self.der)
    }

    /// Whom it names.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Bits of the key.
    pub fn key_bits(&self) -> usize {
        self.key_bits
    }

    pub(super) fn issuer_and_serial(&self) -> &[u8] {
        &self.issuer_and_serial
    }

    /// Whether `signature` is this key's, of `message`.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key)
            .verify(message, signature)
            .is_ok()
    }
}

/// A private RSA key.
pub struct SigningKey(KeyPair);

/// A file that holds no usable private key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadKeyError {
    /// Not PEM.
    #[error("no private key in PEM")]
    NotPem,
    /// A passphrase would be needed.
    #[error(
        "the private key is encrypted; decrypt it, or leave it where it is and sign with `assay \
         sign-uki prepare` and `assemble`"
    )]
    Encrypted,
    /// A PEM file of something else.
    #[error(
        "the PEM block is {0:?}, expected \"PRIVATE KEY\" or \"RSA PRIVATE KEY\": firmware \
         verifies RSA"
    )]
    Label(String),
    /// Not RSA, or out of range.
    #[error(
        "the private key is no RSA key of {min} to {max} bits; make one with `openssl genpkey \
         -algorithm RSA -pkeyopt rsa_keygen_bits:3072`",
        min = KEY_BITS.start(), max = KEY_BITS.end()
    )]
    NotRsa,
}

impl SigningKey {
    /// Reads a key from PEM: PKCS #8 (`PRIVATE KEY`) or PKCS #1
    /// (`RSA PRIVATE KEY`), not encrypted.
    pub fn from_pem(text: &[u8]) -> Result<Self, ReadKeyError> {
        let (label, der) = pem::decode_vec(text).map_err(|_| {
            let encrypted = text.windows(9).any(|window| window == b"ENCRYPTED");
            if encrypted {
                ReadKeyError::Encrypted
            } else {
                ReadKeyError::NotPem
            }
        })?;
        let der = Zeroizing::new(der);
        let key = match label {
            "PRIVATE KEY" => KeyPair::from_pkcs8(&der),
            "RSA PRIVATE KEY" => KeyPair::from_der(&der),
            "ENCRYPTED PRIVATE KEY" => return Err(ReadKeyError::Encrypted),
            other => return Err(ReadKeyError::Label(other.to_owned())),
        };
        let key = key.map_err(|_| ReadKeyError::NotRsa)?;
        if !KEY_BITS.contains(&(8 * key.public_modulus_len())) {
            return Err(ReadKeyError::NotRsa);
        }
        Ok(Self(key))
    }

    /// The public key: SubjectPublicKeyInfo, DER.
    pub(crate) fn public_key(&self) -> Option<Vec<u8>> {
        let der = self.0.public_key().as_der().ok()?;
        Some(der.as_ref().to_vec())
    }

    /// Signs with SHA-256. The same message gives the same signature.
    pub(crate) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        // PKCS #1 v1.5 takes no random numbers.
        let random = SystemRandom::new();
        self.0
            .sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
            .ok()?;
        Some(signature)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}
