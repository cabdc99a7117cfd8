//! What SNP_LAUNCH_FINISH does with an ID block: it is verified here with code
//! of its own, so that it checks what the owner's tools make.

use assay_tee::id_block::{EcdsaPublicKey, EcdsaSignature, IdAuth, IdBlock, ParseIdBlockError};
use assay_tee::{AttestationReport, GuestPolicy, LaunchDigest};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

/// What the host hands over with SNP_LAUNCH_FINISH (ID_BLOCK_EN set).
#[derive(Debug, Clone, Copy)]
pub struct IdBlockInput<'a> {
    /// ID_BLOCK.
    pub block: &'a [u8],
    /// ID_AUTH.
    pub auth: &'a [u8],
    /// AUTH_KEY_EN: the ID key must be signed by the author key, whose digest is
    /// then reported.
    pub author_key_enabled: bool,
}

/// The processor refuses a launch because of its ID block. Names in
/// parentheses are the firmware's status codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdBlockError {
    /// Block or authentication cannot be read.
    #[error("cannot read the ID block (INVALID_PARAM)")]
    Parse(#[from] ParseIdBlockError),
    /// A signature does not verify.
    #[error("the {what}'s signature does not verify (BAD_SIGNATURE)")]
    Signature {
        /// What was signed.
        what: &'static str,
    },
    /// The guest was launched with another policy.
    #[error("the ID block wants guest policy {wanted:#x}, launched was {got:#x} (POLICY_FAILURE)")]
    Policy {
        /// The block's policy.
        wanted: u64,
        /// The guest's policy.
        got: u64,
    },
    /// The guest's launch digest is another.
    #[error("the ID block wants launch digest {wanted}, launched was {got} (BAD_MEASUREMENT)")]
    Measurement {
        /// The block's launch digest.
        wanted: LaunchDigest,
        /// The guest's launch digest.
        got: LaunchDigest,
    },
}

/// Checks the launch that `report` describes against the owner's wishes, and
/// puts the owner's identity into it.
pub(crate) fn apply(
    input: &IdBlockInput<'_>,
    report: &mut AttestationReport,
) -> Result<(), IdBlockError> {
    let block = IdBlock::parse(input.block)?;
    let auth = IdAuth::parse(input.auth)?;
    verify(
        "ID block",
        &auth.id_key,
        input.block,
        &auth.id_block_signature,
    )?;
    if input.author_key_enabled {
        verify(
            "ID key",
            &auth.author_key,
            &auth.id_key.encode(),
            &auth.id_key_signature,
        )?;
    }
    let got = GuestPolicy(report.policy.get());
    if block.policy() != got {
        return Err(IdBlockError::Policy {
            wanted: block.policy().0,
            got: got.0,
        });
    }
    if block.launch_digest() != report.launch_digest() {
        return Err(IdBlockError::Measurement {
            wanted: block.launch_digest(),
            got: report.launch_digest(),
        });
    }
    report.family_id = block.family_id;
    report.image_id = block.image_id;
    report.guest_svn = block.guest_svn;
    report.id_key_digest = *auth.id_key.digest().as_bytes();
    if input.author_key_enabled {
        report.author_key_digest = *auth.author_key.digest().as_bytes();
        // AUTHOR_KEY_EN is the lowest bit of the key information.
        report.key_info = (report.key_info.get() | 1).into();
    }
    Ok(())
}

fn verify(
    what: &'static str,
    key: &EcdsaPublicKey,
    message: &[u8],
    signature: &EcdsaSignature,
) -> Result<(), IdBlockError> {
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.to_point())
        .verify(message, &signature.to_fixed())
        .map_err(|_| IdBlockError::Signature { what })
}
