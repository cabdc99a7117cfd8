//! Signatures of EFI executables, as Secure Boot verifies them: Microsoft,
//! *Windows Authenticode Portable Executable Signature Format*, and UEFI 2.10,
//! §32.5.
//!
//! A signature has no time and no random number in it (RSA, PKCS #1 v1.5), so
//! that a signed image is as reproducible as an unsigned one: who has the
//! signature can make the same file without the key.
//!
//! The digest that is signed leaves out what signing changes. Launch digests do
//! not: they are of the whole file.

mod key;
mod message;
mod table;

use assay_tee::Sha256Digest;
use serde::Serialize;

use crate::pe::{ParsePeError, PeImage};

pub use key::{ReadCertificateError, ReadKeyError, SigningCertificate, SigningKey};
use message::{Message, ParseMessageError};
use table::{Entry, append_entry, parse_entries};

/// An image that cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignImageError {
    /// Not a PE image.
    #[error("cannot read the image")]
    Pe(#[source] ParsePeError),
    /// The headers have no place for a certificate table.
    #[error("the image's headers have no entry for a certificate table")]
    NoDirectory,
    /// Signatures, but not where the format wants them.
    #[error("the image's certificate table does not end the file")]
    TableNotLast,
    /// The format counts in 32 bits.
    #[error("the image is too large to be signed")]
    TooLarge,
    /// A message has no encoding: never for these types.
    #[error("cannot encode the signature")]
    Encode(#[source] der::Error),
    /// What was signed, by whom, or with what padding is another.
    #[error(
        "the signature is not one of this image by the certificate's key: sign what `assay \
         sign-uki prepare` writes for this very image, with RSA (PKCS #1 v1.5) and SHA-256, and \
         give the certificate of the key"
    )]
    NotTheSignature,
    /// The key signs nothing.
    #[error("the key cannot sign")]
    Key,
}

/// What signs an image.
#[derive(Debug)]
pub struct ImageSigner {
    /// The certificate that the firmware must know.
    pub certificate: SigningCertificate,
    /// How the signature comes about.
    pub by: SignedBy,
}

/// How a signature comes about.
#[derive(Debug)]
pub enum SignedBy {
    /// By the certificate's key.
    Key(SigningKey),
    /// Elsewhere, over [`signed_attributes`] of the same image.
    Signature(Vec<u8>),
}

impl ImageSigner {
    /// The image with a signature more.
    pub fn sign(&self, image: &[u8]) -> Result<Vec<u8>, SignImageError> {
        let image = table::aligned(image);
        let digest = digest_of(&image).map_err(SignImageError::Pe)?;
        let attributes = message::encode_attributes(digest).map_err(SignImageError::Encode)?;
        let signature = match &self.by {
            SignedBy::Key(key) => key.sign(&attributes).ok_or(SignImageError::Key)?,
            SignedBy::Signature(signature) => signature.clone(),
        };
        if !self.certificate.has_signed(&attributes, &signature) {
            return Err(SignImageError::NotTheSignature);
        }
        let message = message::encode(digest, &self.certificate, &signature);
        append_entry(&image, &message.map_err(SignImageError::Encode)?)
    }
}

/// `image` with the signatures that another image has; `None` where that has
/// none, or `image` is not what they sign.
pub fn copy_signatures(from: &[u8], image: &[u8]) -> Result<Option<Vec<u8>>, SignImageError> {
    let Ok(entries) = parse_entries(from) else {
        return Ok(None);
    };
    let mut signed = table::aligned(image).into_owned();
    let digest = digest_of(&signed).map_err(SignImageError::Pe)?;
    for entry in &entries {
        let is_of_image = entry
            .message()
            .is_ok_and(|message| message.image_digest == digest);
        if !is_of_image {
            return Ok(None);
        }
        signed = append_entry(&signed, entry.content())?;
    }
    Ok((!entries.is_empty()).then_some(signed))
}

/// The bytes to sign with RSA (PKCS #1 v1.5) and SHA-256 for a signature of
/// `image`: the signed attributes (RFC 2315, §9.2). They are the same for every
/// certificate.
pub fn signed_attributes(image: &[u8]) -> Result<Vec<u8>, SignImageError> {
    let digest = digest_of(&table::aligned(image)).map_err(SignImageError::Pe)?;
    message::encode_attributes(digest).map_err(SignImageError::Encode)
}

fn digest_of(image: &[u8]) -> Result<Sha256Digest, ParsePeError> {
    PeImage::parse(image)?.authenticode_digest(image)
}

/// Whose signature an image has. That says nothing of whether anybody should
/// trust them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSignature {
    /// The certificate's subject.
    pub subject: String,
    /// SHA-256 of the certificate.
    pub certificate: Sha256Digest,
    /// Bits of its RSA key.
    pub key_bits: usize,
}

/// A certificate table that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSignaturesError {
    /// Not a PE image.
    #[error("cannot read the image")]
    Pe(#[source] ParsePeError),
    /// The table is not at the end, where signing puts it.
    #[error("the certificate table does not end the file")]
    TableNotLast,
    /// An entry is no entry.
    #[error("entry {index} of the certificate table does not lie in it")]
    Entry {
        /// Its place, from 0.
        index: usize,
    },
}

/// A signature that is none of the image.
#[derive(Debug, thiserror::Error)]
pub enum VerifySignatureError {
    /// Not a PKCS #7 message.
    #[error("entry of type {kind:#x}, revision {revision:#x}, is no PKCS #7 signature")]
    Kind {
        /// wCertificateType.
        kind: u16,
        /// wRevision.
        revision: u16,
    },
    /// The message is not as Authenticode wants it.
    #[error("cannot read the signature")]
    Message(#[source] ParseMessageError),
    /// The signer's certificate cannot be used.
    #[error("cannot use the signer's certificate")]
    Certificate(#[source] ReadCertificateError),
    /// Another image was signed.
    #[error("the signature is of an image with digest {signed}, this one has {actual}")]
    OtherImage {
        /// What the message says.
        signed: Sha256Digest,
        /// What the image has.
        actual: Sha256Digest,
    },
    /// The certificate's key did not make the signature.
    #[error("the signature is not by the key of its certificate")]
    NotSigned,
}

/// The signatures of an image, each verified with the certificate that it
/// brings. Without any the list is empty.
pub fn verify_signatures(
    image: &[u8],
) -> Result<Vec<Result<ImageSignature, VerifySignatureError>>, ParseSignaturesError> {
    let entries = parse_entries(image)?;
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let digest = digest_of(image).map_err(ParseSignaturesError::Pe)?;
    let verify = |entry: &Entry<'_>| verify_message(&entry.message()?, digest);
    Ok(entries.iter().map(verify).collect())
}

fn verify_message(
    message: &Message<'_>,
    actual: Sha256Digest,
) -> Result<ImageSignature, VerifySignatureError> {
    if message.image_digest != actual {
        return Err(VerifySignatureError::OtherImage {
            signed: message.image_digest,
            actual,
        });
    }
    let certificate = SigningCertificate::from_der(message.certificate)
        .map_err(VerifySignatureError::Certificate)?;
    if !certificate.has_signed(&message.attributes, message.signature) {
        return Err(VerifySignatureError::NotSigned);
    }
    Ok(ImageSignature {
        subject: certificate.subject().to_owned(),
        certificate: certificate.digest(),
        key_bits: certificate.key_bits(),
    })
}

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
pub(crate) mod tests;
