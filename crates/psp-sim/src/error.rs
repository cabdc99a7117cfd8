//! Why the development PKI cannot be made or read.

use der::oid::ObjectIdentifier;
use jiff::Timestamp;

/// The development PKI cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key cannot be generated.
    #[error("cannot generate a {kind} key")]
    GenerateKey {
        /// Kind of the key.
        kind: &'static str,
    },
    /// Signing failed.
    #[error("cannot sign")]
    Sign,
    /// A certificate cannot be written or read.
    #[error("cannot write or read a certificate")]
    Certificate(#[from] der::Error),
    /// A date is out of range.
    #[error("the date {0} is out of range for a certificate")]
    Date(Timestamp),
    /// The key is not an unencrypted PKCS#8 key on P-384.
    #[error("not an unencrypted PKCS#8 key on P-384")]
    ParseKey,
    /// The chain has not three certificates.
    #[error("the chain has {got} certificates, not endorsement key, intermediate and ARK")]
    ChainLength {
        /// Certificates in the chain.
        got: usize,
    },
    /// The key is not the one of the certificate.
    #[error("the key is not that of the first certificate")]
    KeyMismatch,
    /// The certificate lacks an extension of the vendor, or has a malformed one.
    #[error("the endorsement key's extension {0} is missing or malformed")]
    Extension(ObjectIdentifier),
    /// The VLEK is not one for this processor.
    #[error("the VLEK is of another product or TCB than the processor")]
    VlekMismatch,
}
