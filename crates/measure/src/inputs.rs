//! What of firmware and kernel matters for a launch digest: a few hundred bytes
//! that stand for megabytes, so that a digest can be recomputed for any shape,
//! years later, without the files.
//!
//! Whoever takes inputs from elsewhere trusts their author as much as one who
//! takes the files: the digests in them are not checked against anything.

use assay_tee::LaunchDigest;
use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{OvmfMetadata, ParseOvmfError, Section, SectionKind, parse_ovmf};
use assay_tee::page_info::PageType;
use serde::{Deserialize, Serialize};

use crate::context::{LaunchContext, UpdateError};
use crate::pages::PageHasher;
use crate::sha384::Page;
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
    /// The running launch digest after the pages of the self-contained IGVM file
    /// of firmware and kernel, which are the same for every number of virtual
    /// CPUs and every CPU model: what is left to measure are the save areas of
    /// an OVMF guest. `None` where there is no such file, or it is not known.
    /// [`crate::igvm::measure_igvm_pages`] computes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub igvm_digest: Option<LaunchDigest>,
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
    /// Not all pages were measured, or more than all.
    #[error("{measured:#x} bytes of firmware were measured, but it has {length:#x}")]
    Incomplete {
        /// Bytes that were measured.
        measured: u64,
        /// Bytes that the image has.
        length: u64,
    },
}

/// A measurement of firmware piece by piece, for images that are not in memory
/// as a whole.
#[derive(Debug, Clone)]
pub struct FirmwareMeasurement {
    metadata: OvmfMetadata,
    pages: PageHasher,
}

impl FirmwareMeasurement {
    /// Nothing of the image that has this metadata is measured.
    pub fn new(metadata: OvmfMetadata) -> Self {
        Self {
            metadata,
            pages: PageHasher::default(),
        }
    }

    /// Measures the image's next pages.
    pub fn update(&mut self, pages: &[Page]) {
        self.pages.update(pages);
    }

    /// What a launch digest depends on.
    ///
    /// # Errors
    /// When not exactly the whole image was measured.
    pub fn finish(self) -> Result<FirmwareInputs, FirmwareInputsError> {
        let Self { metadata, pages } = self;
        let pages = pages.finish();
        let (measured, length) = (
            pages.length(),
            (1_u64 << 32).saturating_sub(metadata.base_gpa),
        );
        if measured != length {
            return Err(FirmwareInputsError::Incomplete { measured, length });
        }
        let mut context = LaunchContext::new();
        context
            .update_hashed(RegionKind::Firmware, metadata.base_gpa, &pages)
            .map_err(FirmwareInputsError::Update)?;
        Ok(FirmwareInputs {
            base_gpa: metadata.base_gpa,
            digest: context.finish().digest(),
            sections: metadata.sections,
            reset_eip: metadata.reset_eip,
            hashes_table_gpa: metadata.hashes_table.map(|area| area.gpa),
        })
    }
}

impl FirmwareInputs {
    /// Measures the pages of an OVMF image and reads its metadata.
    ///
    /// # Errors
    /// When the bytes are no OVMF image.
    pub fn from_bytes(firmware: &[u8]) -> Result<Self, FirmwareInputsError> {
        let metadata = parse_ovmf(firmware).map_err(FirmwareInputsError::Parse)?;
        let (pages, _) = firmware.as_chunks();
        let mut measurement = FirmwareMeasurement::new(metadata);
        measurement.update(pages);
        measurement.finish()
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
            igvm_digest: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(base_gpa: u64) -> OvmfMetadata {
        OvmfMetadata {
            base_gpa,
            sections: Vec::new(),
            reset_eip: None,
            hashes_table: None,
        }
    }

    fn pages(count: u8) -> Vec<[u8; 4096]> {
        (0..count).map(|page| [page / 3; 4096]).collect()
    }

    #[test]
    fn pieces_are_measured_as_the_whole() {
        let image = pages(200);
        let measurement = FirmwareMeasurement::new(metadata((1 << 32) - 200 * 4096));
        let in_pieces = |piece: usize| {
            let mut measurement = measurement.clone();
            image
                .chunks(piece)
                .for_each(|pages| measurement.update(pages));
            measurement.finish().unwrap()
        };
        let whole = in_pieces(200);
        for piece in [1, 3, 7, 16, 199] {
            assert_eq!(in_pieces(piece), whole, "{piece} pages at a time");
        }
    }

    #[test]
    fn a_part_of_an_image_has_no_digest() {
        let mut measurement = FirmwareMeasurement::new(metadata((1 << 32) - 3 * 4096));
        measurement.update(&pages(2));
        let error = FirmwareInputsError::Incomplete {
            measured: 0x2000,
            length: 0x3000,
        };
        assert_eq!(measurement.clone().finish(), Err(error));
        let last = pages(1);
        measurement.update(&last);
        assert!(measurement.clone().finish().is_ok());
        measurement.update(&last);
        assert!(measurement.finish().is_err());
    }
}
