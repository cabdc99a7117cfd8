//! Reading an artifact back without believing its builder.
//!
//! Every value of the manifest is recomputed from the bytes, and what the UKI
//! will enforce (`guest.json`) is read from the UKI itself. An artifact whose
//! manifest says anything else is refused as a whole.

use std::collections::{HashMap, HashSet};

use assay_tee::guest_config::{GUEST_CONFIG_PATH, INITRAMFS_ROOT, RootFs};
use assay_tee::{GuestConfig, Sha256Digest};
use bytes::Bytes;

use crate::artifact::{
    MeasureArtifactError, ReadSignersError, measurement, uki_pcrs, uki_sections, uki_signers,
};
use crate::boot_kit::{BootKitError, check_firmware};
use crate::bzimage::{ParseKernelReleaseError, parse_kernel_release};
use crate::erofs::parse_compression;
use crate::flatten::{FlattenError, StoredLayer, flatten};
use crate::hardening::{Setting, parse_states};
use crate::initramfs::AGENT_PATH;
use crate::manifest::{
    FIRMWARE_PATH, MANIFEST_PATH, Manifest, ROOT_DISK_PATH, ROOT_DISK_SERIAL, UKI_PATH,
};
use crate::newc::{NewcEntry, ParseNewcError, parse_newc};
use crate::oci::ImageConfig;
use crate::pcr::PredictPcrError;
use crate::pcr_signature::{VerifyPcrSignaturesError, verify_pcr_signatures};
use crate::recipe::{Layout, RecipeError, full_cmdline};
use crate::rope::Rope;
use crate::tree::ResolveError;
use crate::uki::{
    CMDLINE, INITRD, LINUX, OSREL, ParseUkiError, SPLASH, UCODE, UNAME, UkiContent, parse_uki,
};
use crate::verity::{self, VerityError, VerityParameters, append_verity};

/// An artifact whose manifest was found to be true.
#[derive(Debug, Clone)]
pub struct ReadArtifact {
    /// The manifest.
    pub manifest: Manifest,
    /// What the guest agent will obey: from the UKI.
    pub guest_config: GuestConfig,
    /// The UKI.
    pub uki: Bytes,
    /// The firmware.
    pub firmware: Bytes,
    /// The root disk, where the layout has one.
    pub root_disk: Option<Bytes>,
}

/// The files of an artifact.
#[derive(Debug, Clone)]
pub struct ArtifactContent {
    /// `manifest.json`.
    pub manifest: Bytes,
    /// `uki.efi`.
    pub uki: Bytes,
    /// `firmware.fd`.
    pub firmware: Bytes,
    /// `rootfs.img`, where there is one.
    pub root_disk: Option<Bytes>,
}

/// An artifact that cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum ReadArtifactError {
    /// The image configuration is not one.
    #[error("artifact: cannot read the image configuration")]
    Config(#[source] serde_json::Error),
    /// The layers cannot be flattened.
    #[error("artifact: cannot flatten the layers")]
    Flatten(#[source] FlattenError),
    /// A file is missing.
    #[error("artifact: no file {path}")]
    MissingFile {
        /// Its name.
        path: &'static str,
    },
    /// A path leads nowhere.
    #[error("artifact: cannot follow a path")]
    Resolve(#[source] ResolveError),
    /// The manifest is not one.
    #[error("artifact: cannot read {MANIFEST_PATH}")]
    Manifest(#[source] serde_json::Error),
    /// A manifest of another builder.
    #[error("artifact: manifest version {0} is not supported, expected {expected}",
        expected = Manifest::VERSION)]
    Version(u32),
    /// The manifest says what is not so.
    #[error("artifact: the manifest's {field} is {claimed}, the files say {actual}")]
    Untrue {
        /// Path of the manifest's member.
        field: &'static str,
        /// The manifest's value.
        claimed: String,
        /// The value recomputed.
        actual: String,
    },
    /// The UKI is not one of ours.
    #[error("artifact: cannot read the UKI")]
    Uki(#[source] ParseUkiError),
    /// No launch digest can be told from the firmware.
    #[error("artifact: cannot measure what it boots")]
    Measure(#[source] MeasureArtifactError),
    /// What boots it cannot be told from the UKI.
    #[error("cannot predict the PCRs of the UKI")]
    Pcrs(#[source] PredictPcrError),
    /// The UKI is signed by nobody who can be named.
    #[error("artifact: cannot tell who signed the UKI")]
    Signers(#[source] ReadSignersError),
    /// PCR values are signed by nobody, or other ones.
    #[error("artifact: the UKI's signatures of PCR values are not what the manifest says")]
    PcrSignatures(#[source] VerifyPcrSignaturesError),
    /// The kernel does not say its release.
    #[error("artifact: cannot read the kernel's release")]
    Kernel(#[source] ParseKernelReleaseError),
    /// The initrd is not one of ours.
    #[error("artifact: cannot read the initrd")]
    Initrd(#[source] ParseNewcError),
    /// A file of the initrd is missing or has other names.
    #[error("artifact: the initrd must have the plain file {path}")]
    InitrdFile {
        /// Its path.
        path: &'static str,
    },
    /// An entry of the initrd is there twice, or does not lie in a directory
    /// that precedes it, so that the kernel could put it elsewhere.
    #[error("artifact: the initrd's entry {path:?} is not once, plainly, in a directory before it")]
    InitrdEntry {
        /// Its path.
        path: String,
    },
    /// An entry of the initrd is none of what an initrd consists of.
    #[error(
        "artifact: the initrd has {path:?}, which is neither the guest agent nor its \
         configuration, a module that it lists, or the workload's"
    )]
    InitrdForeign {
        /// Its path.
        path: String,
    },
    /// The command line has what no recipe may add.
    #[error("artifact: the command line undoes what the manifest says is on")]
    Cmdline(#[source] RecipeError),
    /// The manifest does not speak of every hardening, or without reasons.
    #[error("artifact: the manifest's hardening is not a state for each setting, with reasons")]
    Hardening,
    /// `guest.json` is not one.
    #[error("artifact: cannot read guest.json")]
    GuestConfig(#[source] serde_json::Error),
    /// The root disk's parameters are not ours.
    #[error("artifact: the root disk's {field} is not what this version writes")]
    RootDisk {
        /// Which parameter.
        field: &'static str,
    },
    /// The root disk has no whole blocks.
    #[error("artifact: cannot hash the root disk")]
    Verity(#[source] VerityError),
    /// The firmware would boot anything.
    #[error("artifact: the firmware is not usable")]
    Firmware(#[source] BootKitError),
}

/// Reads an artifact from the OCI image that carries it: its configuration and
/// its layers, verified against their digests by whoever pulled them.
pub fn read_artifact(
    config: &[u8],
    layers: &[StoredLayer],
) -> Result<ReadArtifact, ReadArtifactError> {
    read_artifact_content(&find_artifact_content(config, layers)?)
}

/// The files of the artifact that an OCI image carries. Nothing is checked but
/// that they are there.
pub fn find_artifact_content(
    config: &[u8],
    layers: &[StoredLayer],
) -> Result<ArtifactContent, ReadArtifactError> {
    let config: ImageConfig = serde_json::from_slice(config).map_err(ReadArtifactError::Config)?;
    let tree = flatten(layers, &config.rootfs.diff_ids).map_err(ReadArtifactError::Flatten)?;
    let optional = |path: &'static str| {
        let found = tree.file(path.as_bytes());
        Ok(found.map_err(ReadArtifactError::Resolve)?.cloned())
    };
    let file = |path: &'static str| optional(path)?.ok_or(ReadArtifactError::MissingFile { path });
    Ok(ArtifactContent {
        manifest: file(MANIFEST_PATH)?,
        uki: file(UKI_PATH)?,
        firmware: file(FIRMWARE_PATH)?,
        root_disk: optional(ROOT_DISK_PATH)?,
    })
}

/// Reads an artifact from its files.
pub fn read_artifact_content(content: &ArtifactContent) -> Result<ReadArtifact, ReadArtifactError> {
    let manifest: Manifest =
        serde_json::from_slice(&content.manifest).map_err(ReadArtifactError::Manifest)?;
    if manifest.version != Manifest::VERSION {
        return Err(ReadArtifactError::Version(manifest.version));
    }
    check_files(&manifest, content)?;
    check_firmware(&content.firmware).map_err(ReadArtifactError::Firmware)?;
    let uki = parse_uki(&content.uki).map_err(ReadArtifactError::Uki)?;
    check_uki(&manifest, content, &uki)?;
    let measurement = measurement(&content.firmware, &content.uki, manifest.uki.sha256)
        .map_err(ReadArtifactError::Measure)?;
    same("measurement", &manifest.measurement, &measurement)?;
    let guest_config = check_initrd(&manifest, &uki)?;
    check_hardening(&manifest, &guest_config)?;
    check_root(&manifest, &guest_config.root, content.root_disk.as_ref())?;
    Ok(ReadArtifact {
        manifest,
        guest_config,
        uki: content.uki.clone(),
        firmware: content.firmware.clone(),
        root_disk: content.root_disk.clone(),
    })
}

fn same<T: PartialEq + std::fmt::Debug>(
    field: &'static str,
    claimed: &T,
    actual: &T,
) -> Result<(), ReadArtifactError> {
    if claimed == actual {
        return Ok(());
    }
    Err(ReadArtifactError::Untrue {
        field,
        claimed: format!("{claimed:?}"),
        actual: format!("{actual:?}"),
    })
}

fn check_files(manifest: &Manifest, content: &ArtifactContent) -> Result<(), ReadArtifactError> {
    let Manifest { uki, firmware, .. } = manifest;
    same("uki.path", &uki.path.as_str(), &UKI_PATH)?;
    same("uki.size", &uki.size, &(content.uki.len() as u64))?;
    same("uki.sha256", &uki.sha256, &Sha256Digest::of(&content.uki))?;
    same("firmware.path", &firmware.path.as_str(), &FIRMWARE_PATH)?;
    same(
        "firmware.size",
        &firmware.size,
        &(content.firmware.len() as u64),
    )?;
    same(
        "firmware.sha256",
        &firmware.sha256,
        &Sha256Digest::of(&content.firmware),
    )?;
    let found = content.root_disk.as_ref();
    same(
        "rootDisk",
        &presence(manifest.root_disk.as_ref()),
        &presence(found),
    )?;
    let (Some(claimed), Some(disk)) = (&manifest.root_disk, found) else {
        return Ok(());
    };
    same("rootDisk.path", &claimed.path.as_str(), &ROOT_DISK_PATH)?;
    same("rootDisk.size", &claimed.size, &(disk.len() as u64))?;
    same("rootDisk.sha256", &claimed.sha256, &Sha256Digest::of(disk))
}

fn presence<T>(thing: Option<&T>) -> &'static str {
    thing.map_or("absent", |_| "present")
}

fn check_uki(
    manifest: &Manifest,
    content: &ArtifactContent,
    uki: &UkiContent,
) -> Result<(), ReadArtifactError> {
    let sections = uki_sections(&content.uki).map_err(ReadArtifactError::Uki)?;
    same("uki.sections", &manifest.uki.sections, &sections)?;
    let pcrs = uki_pcrs(&content.uki).map_err(ReadArtifactError::Pcrs)?;
    same("uki.pcrs", &manifest.uki.pcrs, &pcrs)?;
    let signers = uki_signers(&content.uki).map_err(ReadArtifactError::Signers)?;
    same("uki.signers", &manifest.uki.signers, &signers)?;
    let claimed = manifest.uki.pcr_signatures.as_ref();
    let phases = claimed.map_or(&[][..], |claimed| &claimed.phases);
    let found = verify_pcr_signatures(&content.uki, phases);
    let found = found.map_err(ReadArtifactError::PcrSignatures)?;
    same("uki.pcrSignatures", &claimed, &found.as_ref())?;
    for (name, given) in [
        (OSREL, &manifest.inputs.uki.os_release),
        (SPLASH, &manifest.inputs.uki.splash),
        (UCODE, &manifest.inputs.uki.microcode),
    ] {
        let found = presence(uki.section(name));
        same("inputs.uki", &presence(given.as_ref()), &found)?;
    }
    same(
        "uki.cmdline",
        &manifest.uki.cmdline.as_bytes(),
        &section(uki, CMDLINE)?.as_ref(),
    )?;
    same(
        "uki.uname",
        &manifest.uki.uname.as_bytes(),
        &section(uki, UNAME)?.as_ref(),
    )?;
    let release = parse_kernel_release(section(uki, LINUX)?).map_err(ReadArtifactError::Kernel)?;
    same("uki.uname", &manifest.uki.uname, &release)
}

fn section<'a>(uki: &'a UkiContent, name: &'static str) -> Result<&'a Bytes, ReadArtifactError> {
    uki.section(name)
        .ok_or(ReadArtifactError::Uki(ParseUkiError::Missing(name)))
}

fn check_initrd(manifest: &Manifest, uki: &UkiContent) -> Result<GuestConfig, ReadArtifactError> {
    let entries = parse_newc(section(uki, INITRD)?).map_err(ReadArtifactError::Initrd)?;
    check_places(&entries)?;
    let agent = only_file(&entries, AGENT_PATH)?;
    same(
        "inputs.agent",
        &manifest.inputs.agent,
        &Sha256Digest::of(agent),
    )?;
    let config = only_file(&entries, GUEST_CONFIG_PATH)?;
    let config: GuestConfig =
        serde_json::from_slice(config).map_err(ReadArtifactError::GuestConfig)?;
    same("uki.cmdline", &manifest.uki.cmdline, &config.cmdline)?;
    check_entries(&entries, &config)?;
    Ok(config)
}

/// The guest agent is the only program that the workload's image does not bring,
/// so nothing else may be in the initrd.
fn check_entries(entries: &[NewcEntry], config: &GuestConfig) -> Result<(), ReadArtifactError> {
    let relative = |path: &str| path.trim_start_matches('/').as_bytes().to_vec();
    let mut expected: HashSet<Vec<u8>> = [AGENT_PATH, GUEST_CONFIG_PATH].map(relative).into();
    expected.extend(config.modules.iter().map(|path| relative(path)));
    let inside = [&relative(INITRAMFS_ROOT), b"/".as_slice()].concat();
    let of_workload = |path: &[u8]| config.root == RootFs::Initramfs && path.starts_with(&inside);
    for entry in entries {
        let path = entry.path.as_ref();
        let known = entry.is_directory()
            || of_workload(path)
            || (entry.is_file() && expected.contains(path));
        if !known {
            return Err(ReadArtifactError::InitrdForeign {
                path: String::from_utf8_lossy(path).into_owned(),
            });
        }
    }
    Ok(())
}

/// What the manifest says is on must be on the command line and in guest.json.
fn check_hardening(manifest: &Manifest, config: &GuestConfig) -> Result<(), ReadArtifactError> {
    let hardening = parse_states(&manifest.hardening).ok_or(ReadArtifactError::Hardening)?;
    let constant = hardening.cmdline();
    let rest = manifest.uki.cmdline.strip_prefix(&constant);
    let extra = match rest {
        Some("") => None,
        Some(rest) if rest.starts_with(' ') => rest.get(1..),
        _ => {
            return Err(ReadArtifactError::Untrue {
                field: "hardening",
                claimed: constant,
                actual: manifest.uki.cmdline.clone(),
            });
        }
    };
    full_cmdline(&hardening, extra).map_err(ReadArtifactError::Cmdline)?;
    same(
        "hardening.ReadOnlyRoot",
        &hardening.is_on(Setting::ReadOnlyRoot),
        &config.hardening.read_only_root,
    )?;
    same(
        "hardening.NoExec",
        &hardening.is_on(Setting::NoExec),
        &config.hardening.no_exec,
    )
}

/// The kernel lets a later entry replace an earlier one and follows symbolic
/// links on the way to an entry's place. So every entry must be there once, in a
/// directory that is an entry before it.
fn check_places(entries: &[NewcEntry]) -> Result<(), ReadArtifactError> {
    let mut seen: HashMap<&[u8], bool> = HashMap::new();
    for entry in entries {
        let path = entry.path.as_ref();
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (path.get(..slash), path.get(slash + 1..)),
            None => (None, Some(path)),
        };
        let parent_is_directory = parent.is_none_or(|parent| seen.get(parent) == Some(&true));
        let plain = !matches!(name, None | Some(b"" | b"." | b".."));
        if !parent_is_directory || !plain || seen.insert(path, entry.is_directory()).is_some() {
            return Err(ReadArtifactError::InitrdEntry {
                path: String::from_utf8_lossy(path).into_owned(),
            });
        }
    }
    Ok(())
}

/// A file that has no other name: the content of a later one would be its own.
fn only_file<'a>(
    entries: &'a [NewcEntry],
    path: &'static str,
) -> Result<&'a Bytes, ReadArtifactError> {
    let wanted = path.trim_start_matches('/').as_bytes();
    entries
        .iter()
        .find(|entry| entry.path == wanted)
        .filter(|entry| entry.is_file() && entry.links == 1)
        .map(|entry| &entry.content)
        .ok_or(ReadArtifactError::InitrdFile { path })
}

/// Checks that what the guest will take for its root is what the manifest says.
fn check_root(
    manifest: &Manifest,
    root: &RootFs,
    disk: Option<&Bytes>,
) -> Result<(), ReadArtifactError> {
    let layout = match root {
        RootFs::DmVerity { .. } => Layout::DmVerity,
        RootFs::Initramfs => Layout::Initramfs,
    };
    same("layout", &manifest.layout, &layout)?;
    let expected = match root {
        RootFs::DmVerity { .. } => "present",
        RootFs::Initramfs => "absent",
    };
    same("rootDisk", &presence(disk), &expected)?;
    let (Some(claimed), Some(disk)) = (&manifest.root_disk, disk) else {
        return Ok(());
    };
    same("rootDisk.root", &claimed.root, root)?;
    let compression = parse_compression(disk).ok_or(ReadArtifactError::RootDisk {
        field: "superblock",
    })?;
    same("rootDisk.compression", &claimed.compression, &compression)?;
    check_root_disk(root, disk)
}

/// Hashes the data again and compares the whole tree with what the disk has.
fn check_root_disk(root: &RootFs, disk: &Bytes) -> Result<(), ReadArtifactError> {
    let RootFs::DmVerity {
        serial,
        block_size,
        data_blocks,
        hash_start_block,
        root_hash,
        salt,
    } = root
    else {
        return Err(ReadArtifactError::RootDisk { field: "kind" });
    };
    let unlike = |field| ReadArtifactError::RootDisk { field };
    if serial != ROOT_DISK_SERIAL {
        return Err(unlike("serial"));
    }
    if *block_size != verity::BLOCK {
        return Err(unlike("block size"));
    }
    let mut parameters = VerityParameters {
        salt: [0; 32],
        uuid: [0; 16],
    };
    hex::decode_to_slice(salt, &mut parameters.salt).map_err(|_| unlike("salt"))?;
    let data_len = data_blocks
        .checked_mul(u64::from(verity::BLOCK))
        .and_then(|len| usize::try_from(len).ok())
        .filter(|len| *len <= disk.len())
        .ok_or_else(|| unlike("number of data blocks"))?;
    let mut rebuilt = Rope::from(disk.slice(..data_len));
    // The superblock's identifier is the only part that nothing else says.
    let uuid = disk
        .get(data_len + 16..)
        .and_then(|rest| rest.first_chunk());
    parameters.uuid = *uuid.ok_or_else(|| unlike("superblock"))?;
    let tree = append_verity(&mut rebuilt, &parameters).map_err(ReadArtifactError::Verity)?;
    same("rootDisk.root.rootHash", root_hash, &tree.root_hash)?;
    same(
        "rootDisk.root.hashStartBlock",
        hash_start_block,
        &tree.hash_start_block,
    )?;
    if rebuilt.len() != disk.len() as u64 || rebuilt.sha256() != Sha256Digest::of(disk) {
        return Err(unlike("hash tree"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
