//! Signing and verifying ID blocks (SEV-SNP ABI, SNP_LAUNCH_FINISH), and
//! comparing one with what a report says was launched.
//!
//! The layout is in [`assay_tee::id_block`]. Signing is deterministic, so that
//! the same inputs give the same files.

use assay_tee::Sha384Digest;
use assay_tee::id_block::{EcdsaSignature, IdAuth, IdBlock, KeyAndSignature};
use assay_tee::report::{AttestationReport, ParseReportError};
use serde::Serialize;

use crate::crypto::{VerifySignatureError, verify_ecdsa_p384_sha384};
pub use crate::signing_key::{
    PrivateKey, ReadKeyError, ReadSignatureError, read_public_key, read_signature,
};

/// Signs `block` with the ID key, and the ID key with the author key.
pub fn sign(block: &IdBlock, id_key: &PrivateKey, author_key: Option<&PrivateKey>) -> IdAuth {
    let id = KeyAndSignature {
        key: id_key.public_key(),
        signature: id_key.sign(&block.encode()),
    };
    let author = author_key.map(|author_key| KeyAndSignature {
        key: author_key.public_key(),
        signature: author_key.sign(&id.key.encode()),
    });
    IdAuth::new(&id, author.as_ref())
}

/// Puts signatures that were made elsewhere together, after verifying them.
///
/// # Errors
/// When a signature does not verify.
pub fn assemble(
    block: &IdBlock,
    id: &KeyAndSignature,
    author: Option<&KeyAndSignature>,
) -> Result<IdAuth, VerifyIdBlockError> {
    let auth = IdAuth::new(id, author);
    verify(block, &auth)?;
    Ok(auth)
}

/// Who signed an ID block, as reports name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Signers {
    /// ID_KEY_DIGEST.
    pub id_key_digest: Sha384Digest,
    /// AUTHOR_KEY_DIGEST, where there is an author key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author_key_digest: Option<Sha384Digest>,
}

impl Signers {
    /// The digests of the keys in `auth`. Nothing is verified.
    pub fn claimed_by(auth: &IdAuth) -> Self {
        Self {
            id_key_digest: auth.id_key.digest(),
            author_key_digest: auth.has_author_key().then(|| auth.author_key.digest()),
        }
    }
}

/// Verifies the block's signature by the ID key, and the ID key's by the author
/// key where there is one.
///
/// # Errors
/// When a signature does not verify, or one is there without its key.
pub fn verify(block: &IdBlock, auth: &IdAuth) -> Result<Signers, VerifyIdBlockError> {
    let verify_one = |key: [u8; 97], message: &[u8], signature: &EcdsaSignature| {
        verify_ecdsa_p384_sha384(&key, message, &signature.to_fixed())
    };
    verify_one(
        auth.id_key.to_point(),
        &block.encode(),
        &auth.id_block_signature,
    )
    .map_err(VerifyIdBlockError::Block)?;
    if auth.has_author_key() {
        verify_one(
            auth.author_key.to_point(),
            &auth.id_key.encode(),
            &auth.id_key_signature,
        )
        .map_err(VerifyIdBlockError::IdKey)?;
    } else if !auth.id_key_signature.is_absent() {
        return Err(VerifyIdBlockError::NoAuthorKey);
    }
    Ok(Signers::claimed_by(auth))
}

/// A signature of an ID block's authentication does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyIdBlockError {
    /// The block is not what the ID key signed.
    #[error(
        "the ID block is not what the ID key signed: the block was changed, or the signature is \
         of another key or message; sign this block again"
    )]
    Block(#[source] VerifySignatureError),
    /// The ID key is not what the author key signed.
    #[error(
        "the ID key is not what the author key signed: one of the keys was changed, or the \
         signature is of another key or message; sign the ID key again"
    )]
    IdKey(#[source] VerifySignatureError),
    /// There is a signature of the ID key, but no author key.
    #[error("there is a signature of the ID key but no author key; add the author key")]
    NoAuthorKey,
}

/// A field of a report that is not what the ID block asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportDifference {
    /// Name of the field in the ABI.
    pub field: &'static str,
    /// What the ID block asks for.
    pub expected: String,
    /// What the report says.
    pub observed: String,
}

/// Every field of `report` that differs from a launch with this block and these
/// signers; empty when the report shows such a launch. The report's own
/// signature is not verified here.
///
/// # Errors
/// When the report's key information is invalid.
pub fn differences(
    block: &IdBlock,
    signers: &Signers,
    report: &AttestationReport,
) -> Result<Vec<ReportDifference>, ParseReportError> {
    let author_enabled = report.key_info()?.author_key_enabled;
    let author_digest = signers
        .author_key_digest
        .map_or([0; 48], |digest| *digest.as_bytes());
    let rows = [
        (
            "MEASUREMENT",
            hex::encode(block.launch_digest),
            hex::encode(report.measurement),
        ),
        (
            "FAMILY_ID",
            hex::encode(block.family_id),
            hex::encode(report.family_id),
        ),
        (
            "IMAGE_ID",
            hex::encode(block.image_id),
            hex::encode(report.image_id),
        ),
        (
            "GUEST_SVN",
            block.guest_svn.to_string(),
            report.guest_svn.to_string(),
        ),
        (
            "POLICY",
            format!("{:#x}", block.policy),
            format!("{:#x}", report.policy),
        ),
        (
            "ID_KEY_DIGEST",
            signers.id_key_digest.to_hex(),
            hex::encode(report.id_key_digest),
        ),
        (
            "AUTHOR_KEY_EN",
            signers.author_key_digest.is_some().to_string(),
            author_enabled.to_string(),
        ),
        (
            "AUTHOR_KEY_DIGEST",
            hex::encode(author_digest),
            hex::encode(report.author_key_digest),
        ),
    ];
    Ok(rows
        .into_iter()
        .filter(|(_, expected, observed)| expected != observed)
        .map(|(field, expected, observed)| ReportDifference {
            field,
            expected,
            observed,
        })
        .collect())
}

#[cfg(test)]
mod tests;
