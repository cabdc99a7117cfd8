//! What of firmware and kernel matters for a launch digest: a few hundred bytes
//! that stand for megabytes, so that a digest can be recomputed for any shape,
//! years later, without the files.
//!
//! Whoever takes inputs from elsewhere trusts their author as much as one who
//! takes the files: the digests in them are not checked against anything.

use assay_tee::LaunchDigest;
use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{ParseOvmfError, Section, SectionKind, parse_ovmf};
use assay_tee::page_info::PageType;
use serde::{Deserialize, Serialize};

use crate::context::{LaunchContext, UpdateError};
use crate::trace::{MeasuredRegion, RegionKind};

/// Everything that a launch digest depends on besides the launch shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeasurementInputs {
    /// The firmware.
    pub firmware: FirmwareInputs,
    /// The hashes that the firmware verifies a direct boot against. `None` is
    /// a guest without `-kernel`, or with `kernel-hashes=off`.
    pub kernel_hashes: Option<KernelHashes>,
    /// The command line without its NUL, where it is known. No digest depends
    /// on it: its hash is measured, and this text only serves to explain a
    /// digest that differs. Read it through [`Self::known_cmdline`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// What of a firmware image matters for a launch digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FirmwareInputs {
    /// Guest physical address of the image, which ends at 4 GiB.
    pub base_gpa: u64,
    /// The running launch digest after the image's pages.
    pub digest: LaunchDigest,
    /// SEV metadata sections in file order.
    pub sections: Vec<Section>,
    /// Where application processors start.
    pub reset_eip: Option<u32>,
    /// Guest physical address at which the firmware looks for the hashes table.
    pub hashes_table_gpa: Option<u32>,
}

/// Firmware cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirmwareInputsError {
    /// The image's metadata cannot be read.
    #[error("read the firmware's metadata")]
    Parse(#[source] ParseOvmfError),
    /// The image's pages cannot be measured.
    #[error("measure the firmware's pages")]
    Update(#[source] UpdateError),
}

impl FirmwareInputs {
    /// Measures the pages of an OVMF image and reads its metadata.
    ///
    /// # Errors
    /// When the bytes are no OVMF image.
    pub fn from_bytes(firmware: &[u8]) -> Result<Self, FirmwareInputsError> {
        let metadata = parse_ovmf(firmware).map_err(FirmwareInputsError::Parse)?;
        let mut context = LaunchContext::new();
        context
            .update_normal(RegionKind::Firmware, metadata.base_gpa, firmware)
            .map_err(FirmwareInputsError::Update)?;
        Ok(Self {
            base_gpa: metadata.base_gpa,
            digest: context.finish().digest(),
            sections: metadata.sections,
            reset_eip: metadata.reset_eip,
            hashes_table_gpa: metadata.hashes_table.map(|area| area.gpa),
        })
    }

    /// The image as a measured region.
    pub fn region(&self) -> MeasuredRegion {
        MeasuredRegion {
            kind: RegionKind::Firmware,
            page_type: PageType::Normal,
            vcpu: None,
            gpa: self.base_gpa,
            length: (1_u64 << 32).saturating_sub(self.base_gpa),
            contents: None,
            digest_after: self.digest,
        }
    }

    /// Whether the firmware has the measured page for a hashes table, without
    /// which no kernel can be booted measured. Necessary, not sufficient: OVMF's
    /// generic build reserves the page and never verifies a kernel against it.
    pub fn supports_kernel_hashes(&self) -> bool {
        self.hashes_table_gpa.is_some()
            && self
                .sections
                .iter()
                .any(|section| section.kind == SectionKind::KernelHashes)
    }
}

impl MeasurementInputs {
    /// Measures an OVMF image and joins it with what it will boot.
    ///
    /// # Errors
    /// When the bytes are no OVMF image.
    pub fn from_bytes(
        firmware: &[u8],
        kernel_hashes: Option<KernelHashes>,
    ) -> Result<Self, FirmwareInputsError> {
        Ok(Self {
            firmware: FirmwareInputs::from_bytes(firmware)?,
            kernel_hashes,
            cmdline: None,
        })
    }

    /// The command line whose hash is measured: the recorded text, if it is the
    /// one that was hashed. The empty one is recognised without a record.
    pub fn known_cmdline(&self) -> Option<&str> {
        let hashes = self.kernel_hashes.as_ref()?;
        let is_hashed = |text: &&str| {
            KernelHashes::from_digests(hashes.kernel, None, text).cmdline == hashes.cmdline
        };
        self.cmdline
            .as_deref()
            .filter(is_hashed)
            .or_else(|| Some("").filter(is_hashed))
    }
}
