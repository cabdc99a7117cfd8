//! Signatures that a UKI is built with: for Secure Boot, and of its PCR values.

use bytes::Bytes;

use super::BuildError;
use crate::authenticode::{ImageSigner, copy_signatures};
use crate::pcr_signature::{PcrSigner, copy_pcr_sections, verify_pcr_signatures};
use crate::rope::Rope;
use crate::uki::{UkiParts, encode_uki};

/// What signs an artifact's UKI.
#[derive(Debug, Clone, Copy, Default)]
pub struct Signers<'a> {
    /// For Secure Boot.
    pub secure_boot: Option<&'a ImageSigner>,
    /// The PCR values that it leaves.
    pub pcrs: Option<&'a PcrSigner>,
}

/// Where the signatures of a UKI come from.
#[derive(Clone, Copy)]
pub(super) enum Signing<'a> {
    /// Signers.
    By(Signers<'a>),
    /// Another UKI, which is signed for these phases of the boot.
    As {
        uki: &'a Bytes,
        phases: &'a [String],
    },
}

impl Signing<'_> {
    /// The UKI with all that is signed.
    pub(super) fn encode_uki(self, parts: &mut UkiParts<'_>) -> Result<Rope, BuildError> {
        self.add_pcr_sections(parts)?;
        let uki = encode_uki(parts).map_err(BuildError::Uki)?;
        match self {
            Self::By(Signers {
                secure_boot: None, ..
            }) => Ok(uki),
            Self::By(Signers {
                secure_boot: Some(signer),
                ..
            }) => signer.sign(&uki.to_bytes()).map(Rope::from),
            Self::As { uki: signed, .. } => {
                copy_signatures(signed, &uki.to_bytes()).map(|copy| copy.map_or(uki, Rope::from))
            }
        }
        .map_err(BuildError::Sign)
    }

    /// The key is measured and the signatures are of what is measured, so they are
    /// made for a UKI that has the key.
    fn add_pcr_sections(self, parts: &mut UkiParts<'_>) -> Result<(), BuildError> {
        let encode = |parts: &UkiParts<'_>| {
            let uki = encode_uki(parts).map_err(BuildError::Uki)?;
            Ok(uki.to_bytes())
        };
        match self {
            Self::By(Signers {
                pcrs: Some(signer), ..
            }) => {
                parts.optional.pcr_public_key = Some(signer.key.to_pem().into());
                let signatures = signer.sign(&encode(parts)?);
                let signatures = signatures.map_err(BuildError::SignPcrs)?;
                parts.optional.pcr_signatures = signatures.map(|it| it.encode().into());
            }
            Self::By(_) => {}
            Self::As { uki, phases } => {
                let copied = copy_pcr_sections(uki);
                parts.optional.pcr_public_key = copied.pcr_public_key;
                if copied.pcr_signatures.is_some() {
                    parts.optional.pcr_signatures = copied.pcr_signatures;
                    if verify_pcr_signatures(&encode(parts)?, phases).is_err() {
                        parts.optional.pcr_signatures = None;
                    }
                }
            }
        }
        Ok(())
    }

    /// The phases of the boot for which PCR values are signed.
    pub(super) fn phases(&self) -> &[String] {
        match self {
            Self::By(signers) => signers.pcrs.map_or(&[], |signer| &signer.phases),
            Self::As { phases, .. } => phases,
        }
    }
}
