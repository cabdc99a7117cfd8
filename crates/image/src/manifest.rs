//! `manifest.json`: what an artifact consists of.
//!
//! It is a table of contents, not evidence. Whoever relies on an artifact reads
//! it with [`crate::read`], which recomputes every value here from the bytes.

use std::collections::BTreeMap;

use assay_measure::MeasurementInputs;
use assay_tee::Sha256Digest;
use assay_tee::guest_config::RootFs;
use serde::{Deserialize, Serialize};

use crate::hardening::{Setting, SettingState};
use crate::pcr_signature::PcrSignatureSummary;
use crate::recipe::{Compression, GitSource, Layout, PinnedReference, UkiFiles};

/// File name of the manifest in an artifact.
pub const MANIFEST_PATH: &str = "manifest.json";
/// File name of the UKI in an artifact.
pub const UKI_PATH: &str = "uki.efi";
/// File name of the firmware in an artifact.
pub const FIRMWARE_PATH: &str = "firmware.fd";
/// File name of the root disk in an artifact.
pub const ROOT_DISK_PATH: &str = "rootfs.img";
/// Serial of the virtio disk that carries the root disk.
pub const ROOT_DISK_SERIAL: &str = "assay-root";

/// What an artifact consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Version of this document: [`Manifest::VERSION`].
    pub version: u32,
    /// The unified kernel image.
    pub uki: Uki,
    /// The firmware.
    pub firmware: FileEntry,
    /// How the workload's files reach the guest.
    pub layout: Layout,
    /// The root disk, where the layout has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<RootDisk>,
    /// What the launch digests of the artifact follow from, for every launch
    /// shape, without its files.
    pub measurement: MeasurementInputs,
    /// What keeps the guest from doing more than its image asks for, and why the
    /// rest is off. Reasons are the recipe's; nothing else says them.
    pub hardening: BTreeMap<Setting, SettingState>,
    /// What it was made of.
    pub inputs: Inputs,
    /// What made it.
    pub builder: Builder,
}

impl Manifest {
    /// The version that this crate reads and writes.
    pub const VERSION: u32 = 1;
}

/// A file of the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileEntry {
    /// Path relative to the artifact's root.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: Sha256Digest,
    /// Number of bytes.
    pub size: u64,
}

/// The unified kernel image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Uki {
    /// Path relative to the artifact's root.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: Sha256Digest,
    /// Number of bytes.
    pub size: u64,
    /// The PE sections that are a UKI's, in file order.
    pub sections: Vec<Section>,
    /// Content of `.cmdline`.
    pub cmdline: String,
    /// Content of `.uname`: the kernel's release.
    pub uname: String,
    /// What [`crate::pcr`] predicts that a boot from QEMU's `-kernel` leaves in
    /// a TPM's SHA-256 bank, where there is one.
    pub pcrs: BTreeMap<u8, Sha256Digest>,
    /// SHA-256 of the certificates of those who signed it for Secure Boot, in the
    /// order of the signatures. Whether they are to be trusted is for the firmware.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<Sha256Digest>,
    /// Who signed the values that PCR 11 has in which phases of the boot. Whether
    /// the key is to be trusted is for who seals secrets to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcr_signatures: Option<PcrSignatureSummary>,
}

/// A PE section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Name, such as `.linux`.
    pub name: String,
    /// Where the content is in the file, in bytes from its start.
    pub offset: u64,
    /// Virtual size in bytes.
    pub size: u64,
    /// SHA-256 of those bytes: what the stub measures.
    pub sha256: Sha256Digest,
}

/// The root disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RootDisk {
    /// Path relative to the artifact's root.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: Sha256Digest,
    /// Number of bytes.
    pub size: u64,
    /// How the files on it are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Serial of the virtio disk, and the parameters that the guest checks
    /// every block against: always [`RootFs::DmVerity`].
    pub root: RootFs,
}

/// What an artifact was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Inputs {
    /// The workload's container image.
    pub rootfs: PinnedReference,
    /// The boot kit.
    pub boot_kit: PinnedReference,
    /// SHA-256 of the guest agent.
    pub agent: Sha256Digest,
    /// Files of the boot kit that the UKI has as sections of their own.
    #[serde(default, skip_serializing_if = "UkiFiles::is_empty")]
    pub uki: UkiFiles,
    /// Where the recipe comes from, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
}

/// What made an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Builder {
    /// Version of this crate.
    pub version: String,
    /// Versions of codecs whose output the artifact holds, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub codecs: BTreeMap<String, String>,
}
