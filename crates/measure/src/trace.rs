//! What was measured, region by region, in the order of measurement.
//!
//! Two launches whose digests differ agree up to the first region whose
//! `digest_after` differs: that region names the cause.

use assay_tee::page_info::PageType;
use assay_tee::{LaunchDigest, Sha256Digest, Sha384Digest};
use serde::{Deserialize, Serialize};

/// What a measured region is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionKind {
    /// The firmware image.
    Firmware,
    /// The SVSM binary.
    Svsm,
    /// Memory that the firmware uses before it can validate pages.
    SecMem,
    /// The secrets page.
    Secrets,
    /// The CPUID page.
    Cpuid,
    /// The SVSM's calling area.
    SvsmCaa,
    /// The page of the kernel hashes table.
    KernelHashes,
    /// The save area of a virtual CPU.
    Vmsa,
    /// Pages of an IGVM file that are nothing of the above.
    IgvmPages,
    /// A parameter area of an IGVM file, which the host fills.
    IgvmParameters,
}

/// A run of pages that was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeasuredRegion {
    /// What the region is for.
    pub kind: RegionKind,
    /// The page type given to the processor.
    pub page_type: PageType,
    /// Index of the virtual CPU that a save area belongs to, from zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Guest physical address of the first page.
    pub gpa: u64,
    /// Length in bytes.
    pub length: u64,
    /// SHA-384 of the content, where the region is one page whose content is
    /// measured. Firmware is summed up by `digest_after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Sha384Digest>,
    /// The running digest after the region.
    pub digest_after: LaunchDigest,
}

/// Bytes that SEV and SEV-ES measured: one stream, in which addresses play no
/// part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamedRegion {
    /// What the region is for.
    pub kind: RegionKind,
    /// Index of the virtual CPU that a save area belongs to, from zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Guest physical address of the first byte; save areas have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpa: Option<u64>,
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of the content.
    pub contents: Sha256Digest,
    /// The digest of everything up to the region's end.
    pub digest_after: Sha256Digest,
}
