//! From inputs to an artifact: the one pure function behind `assay build`.
//!
//! # Guarantees
//! The same inputs give the same bytes, whatever the machine, the time, and the
//! order in which the layers' archives list their files.

mod signing;

use std::collections::BTreeMap;
use std::sync::Arc;

use assay_measure::MeasurementInputs;
use assay_measure::inputs::FirmwareInputsError;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use assay_tee::guest_config::{GuestHardening, RootFs};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::{GuestConfig, Sha256Digest};
use bytes::Bytes;

use crate::authenticode::{
    ParseSignaturesError, SignImageError, VerifySignatureError, verify_signatures,
};
use crate::boot_kit::{BootKit, BootKitError, KitDocument};
use crate::erofs::{EncodeErofsError, encode_erofs};
use crate::flatten::{FlattenError, StoredLayer, flatten, prepare_root, prepare_working_directory};
use crate::hardening::Setting;
use crate::igvm::{MeasureSelfContainedError, measure_self_contained};
use crate::initramfs::{EncodeInitramfsError, encode_initramfs, module_path};
use crate::manifest::{
    Builder, FIRMWARE_PATH, FileEntry, Inputs, MANIFEST_PATH, Manifest, ROOT_DISK_PATH,
    ROOT_DISK_SERIAL, RootDisk, Section, UKI_PATH, Uki,
};
use crate::oci::{ImageConfig, ImageOptions, Layer, OciImage};
use crate::packages::{
    Distribution, Package, distribution, installed_packages, language_packages, unread_databases,
};
use crate::pcr::{BootPath, PcrPrediction, PredictPcrError, predict_pcrs};
use crate::pcr_signature::{SignPcrsError, VerifyPcrSignaturesError, verify_pcr_signatures};
use crate::pe::PeImage;
use crate::process::{ProcessError, check_program, resolve_process, writable_directories};
use crate::read::ArtifactContent;
use crate::recipe::{Compression, Layout, UkiFiles, ValidRecipe};
use crate::rope::{Keep, Rope};
use crate::tarball::{Owner, TarBuilder};
use crate::tree::Tree;
use crate::uki::{EncodeUkiError, OptionalSections, ParseUkiError, UkiParts, parse_uki};
use crate::verity::{self, VerityError, VerityParameters, append_verity};

pub use self::signing::Signers;
use self::signing::Signing;

/// An OCI image as it was pulled: configuration and layers, verified against
/// the digest in the recipe by whoever pulled it.
#[derive(Debug, Clone)]
pub struct SourceImage {
    /// The image configuration's bytes.
    pub config: Bytes,
    /// The layers, lowest first.
    pub layers: Vec<StoredLayer>,
}

/// Everything that an artifact is made of.
#[derive(Debug, Clone)]
pub struct BuildInputs {
    /// What to build.
    pub recipe: ValidRecipe,
    /// The workload's image.
    pub rootfs: SourceImage,
    /// The boot kit.
    pub boot_kit: SourceImage,
    /// The guest agent: a static executable for linux/amd64.
    pub agent: Bytes,
    /// Where compressed content goes. It is no part of the artifact's identity.
    pub keep: Arc<dyn Keep>,
}

/// Inputs that give no artifact.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An image's configuration is not one.
    #[error("{image}: cannot read the image configuration")]
    Config {
        /// `rootfs` or `bootKit`.
        image: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An image is for another machine.
    #[error("{image}: the image is for {platform}, guests are linux/amd64")]
    Platform {
        /// `rootfs` or `bootKit`.
        image: &'static str,
        /// `os/architecture` of the image.
        platform: String,
    },
    /// An image's layers cannot be flattened.
    #[error("{image}: cannot flatten the layers")]
    Flatten {
        /// `rootfs` or `bootKit`.
        image: &'static str,
        /// Why.
        #[source]
        source: FlattenError,
    },
    /// The boot kit lacks something.
    #[error("bootKit: not usable")]
    BootKit(#[source] BootKitError),
    /// The workload's image names no process.
    #[error("rootfs: cannot tell what to run")]
    Process(#[source] ProcessError),
    /// The agent is no executable.
    #[error("the guest agent is no ELF executable for x86-64")]
    Agent,
    /// The root file system cannot be written.
    #[error("cannot write the root file system")]
    Erofs(#[source] EncodeErofsError),
    /// The root disk cannot be protected.
    #[error("cannot protect the root disk")]
    Verity(#[source] VerityError),
    /// The initramfs cannot be written.
    #[error("cannot write the initramfs")]
    Initramfs(#[source] EncodeInitramfsError),
    /// The UKI cannot be written.
    #[error("cannot write the UKI")]
    Uki(#[source] EncodeUkiError),
    /// The UKI cannot be signed.
    #[error("cannot sign the UKI")]
    Sign(#[source] SignImageError),
    /// A file of the boot kit that the UKI is to have is not there.
    #[error("{field}: the boot kit has no file {path}")]
    UkiFile {
        /// Path of the recipe's field.
        field: &'static str,
        /// Its value.
        path: String,
    },
    /// The PCR values cannot be signed.
    #[error("cannot sign the PCR values of the UKI")]
    SignPcrs(#[source] SignPcrsError),
    /// The signatures of PCR values cannot be read back.
    #[error("cannot read back the signatures of the UKI's PCR values")]
    PcrSignatures(#[source] VerifyPcrSignaturesError),
    /// The UKI's signatures cannot be read back.
    #[error("cannot read back the UKI's signatures")]
    Signers(#[source] ReadSignersError),
    /// The UKI that was written cannot be read back.
    #[error("cannot read back the UKI")]
    ReadBack(#[source] ParseUkiError),
    /// No launch digest can be told from the firmware.
    #[error("bootKit: cannot measure the firmware")]
    Measure(#[source] MeasureArtifactError),
    /// What boots it cannot be told from the UKI.
    #[error("cannot predict the PCRs of the UKI")]
    Pcrs(#[source] PredictPcrError),
    /// A document has no JSON form.
    #[error("cannot encode a document")]
    Encode(#[source] EncodeCanonicalError),
}

/// What a build is at, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStep {
    /// The layers become trees.
    Flatten,
    /// The root file system is written, where there is a root disk.
    Erofs,
    /// Its hash tree is computed.
    Verity,
    /// Initramfs and UKI are made.
    Uki,
}

/// An artifact: its files and their manifest.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The table of contents.
    pub manifest: Manifest,
    /// Name and content of every file, the manifest first.
    pub files: Vec<(&'static str, Rope)>,
    /// What its inputs say that they consist of. Not part of the artifact.
    pub software: Software,
}

/// What an artifact's inputs say that they consist of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Software {
    /// The workload's packages.
    pub packages: Vec<Package>,
    /// Databases of packages that the workload has and that cannot be read, one
    /// sentence each.
    pub unread: Vec<String>,
    /// The workload's distribution.
    pub distribution: Option<Distribution>,
    /// What the boot kit was packed from.
    pub boot_kit: Option<KitDocument>,
}

impl Artifact {
    /// The files, to be read or compared.
    pub fn content(&self) -> ArtifactContent {
        let find = |name: &str| self.files.iter().find(|(known, _)| *known == name);
        let file = |name| find(name).map(|(_, content)| content.to_bytes());
        ArtifactContent {
            manifest: file(MANIFEST_PATH).unwrap_or_default(),
            uki: file(UKI_PATH).unwrap_or_default(),
            firmware: file(FIRMWARE_PATH).unwrap_or_default(),
            root_disk: file(ROOT_DISK_PATH),
        }
    }

    /// The OCI image that carries the files in one uncompressed layer, at its
    /// root, so that an image volume shows them.
    ///
    /// # Errors
    /// Never for these types; the JSON encoder's error is passed on.
    pub fn to_image(&self) -> Result<OciImage, EncodeCanonicalError> {
        let mut tar = TarBuilder::new();
        for (name, content) in &self.files {
            tar.file(name, 0o444, Owner::ROOT, content.clone());
        }
        OciImage::assemble(ImageOptions::default(), &[Layer::tar(tar.finish())])
    }
}

/// Builds an artifact.
pub fn build(inputs: &BuildInputs) -> Result<Artifact, BuildError> {
    build_signed(inputs, Signers::default())
}

/// Builds an artifact whose UKI is signed. The launch digest is that of the signed
/// file.
pub fn build_signed(inputs: &BuildInputs, signers: Signers<'_>) -> Result<Artifact, BuildError> {
    build_in_steps(inputs, signers, &mut |_| ())
}

/// As [`build_signed`]; `begin` hears of every step when it begins, and can change
/// nothing.
pub fn build_in_steps(
    inputs: &BuildInputs,
    signers: Signers<'_>,
    begin: &mut dyn FnMut(BuildStep),
) -> Result<Artifact, BuildError> {
    build_with(inputs, Signing::By(signers), begin)
}

/// Builds an artifact whose UKI has the signatures of another, where they are of this
/// one: how one builds again what somebody else has signed. `phases` are those of the
/// boot for which its PCR values are signed.
pub fn build_signed_as(
    inputs: &BuildInputs,
    signed: &Bytes,
    phases: &[String],
) -> Result<Artifact, BuildError> {
    let signing = Signing::As {
        uki: signed,
        phases,
    };
    build_with(inputs, signing, &mut |_| ())
}

fn build_with(
    inputs: &BuildInputs,
    signing: Signing<'_>,
    begin: &mut dyn FnMut(BuildStep),
) -> Result<Artifact, BuildError> {
    let BuildInputs {
        recipe,
        rootfs,
        boot_kit,
        agent,
        keep,
    } = inputs;
    begin(BuildStep::Flatten);
    let (kit_tree, _) = open("bootKit", boot_kit)?;
    let kit = BootKit::from_tree(&kit_tree).map_err(BuildError::BootKit)?;
    let optional = optional_sections(&kit_tree, &recipe.uki)?;
    kit.check(recipe.compression, &recipe.hardening)
        .map_err(BuildError::BootKit)?;
    if !agent.starts_with(b"\x7fELF\x02\x01") {
        return Err(BuildError::Agent);
    }

    let (mut tree, image_config) = open("rootfs", rootfs)?;
    let process = resolve_process(&image_config.config, &tree).map_err(BuildError::Process)?;
    check_program(&process, &tree).map_err(BuildError::Process)?;
    let writable = writable_directories(&image_config.config).map_err(BuildError::Process)?;
    let mut packages = installed_packages(&tree);
    packages.extend(language_packages(&tree));
    let unread = unread_databases(&tree);
    let distribution = distribution(&tree);
    prepare_root(&mut tree);
    prepare_working_directory(&mut tree, &process.cwd).map_err(|source| {
        let path = process.cwd.clone();
        BuildError::Process(ProcessError::WorkingDirectory { path, source })
    })?;
    let (root_disk, root) = match recipe.layout {
        Layout::DmVerity => {
            let (disk, root) = dm_verity_disk(&tree, recipe, keep.as_ref(), begin)?;
            (Some(disk), root)
        }
        Layout::Initramfs => (None, RootFs::Initramfs),
    };

    begin(BuildStep::Uki);
    let modules: Vec<_> = kit
        .modules
        .iter()
        .map(|(path, content)| (module_path(&kit.release, path), content.clone()))
        .collect();
    let config = GuestConfig {
        version: GuestConfig::VERSION,
        cmdline: recipe.cmdline.clone(),
        modules: modules.iter().map(|(path, _)| path.clone()).collect(),
        root: root.clone(),
        hardening: GuestHardening {
            read_only_root: recipe.hardening.is_on(Setting::ReadOnlyRoot),
            no_exec: recipe.hardening.is_on(Setting::NoExec),
            writable,
        },
        process,
    };
    let rootfs_inside = (recipe.layout == Layout::Initramfs).then_some(&tree);
    let initrd =
        encode_initramfs(agent, &config, &modules, rootfs_inside).map_err(BuildError::Initramfs)?;
    let uki = signing.encode_uki(&mut UkiParts {
        stub: &kit.stub,
        kernel: &kit.kernel,
        initrd: &initrd,
        cmdline: &recipe.cmdline,
        uname: &kit.release,
        optional,
    })?;

    let firmware = Rope::from(kit.firmware);
    let entry = |path: &str, content: &Rope| FileEntry {
        path: path.to_owned(),
        sha256: content.sha256(),
        size: content.len(),
    };
    let uki_entry = entry(UKI_PATH, &uki);
    let uki_bytes = uki.to_bytes();
    let measurement = measurement(&firmware.to_bytes(), &uki_bytes, uki_entry.sha256);
    let disk_entry = root_disk.as_ref().map(|disk| {
        let FileEntry { path, sha256, size } = entry(ROOT_DISK_PATH, disk);
        RootDisk {
            path,
            sha256,
            size,
            compression: recipe.compression,
            root,
        }
    });
    let manifest = Manifest {
        version: Manifest::VERSION,
        uki: Uki {
            path: uki_entry.path,
            sha256: uki_entry.sha256,
            size: uki_entry.size,
            sections: uki_sections(&uki_bytes).map_err(BuildError::ReadBack)?,
            cmdline: recipe.cmdline.clone(),
            uname: kit.release,
            pcrs: uki_pcrs(&uki_bytes).map_err(BuildError::Pcrs)?,
            signers: uki_signers(&uki_bytes).map_err(BuildError::Signers)?,
            pcr_signatures: verify_pcr_signatures(&uki_bytes, signing.phases())
                .map_err(BuildError::PcrSignatures)?,
        },
        firmware: entry(FIRMWARE_PATH, &firmware),
        layout: recipe.layout,
        root_disk: disk_entry,
        measurement: measurement.map_err(BuildError::Measure)?,
        hardening: recipe.hardening.states(),
        inputs: Inputs {
            rootfs: recipe.rootfs.clone(),
            boot_kit: recipe.boot_kit.clone(),
            agent: Sha256Digest::of(agent),
            uki: recipe.uki.clone(),
            git: recipe.git.clone(),
        },
        builder: Builder {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            codecs: codecs(recipe.compression),
        },
    };
    let manifest_bytes = encode_canonical(&manifest).map_err(BuildError::Encode)?;
    let mut files = vec![
        (MANIFEST_PATH, manifest_bytes.into()),
        (FIRMWARE_PATH, firmware),
        (UKI_PATH, uki),
    ];
    files.extend(root_disk.map(|disk| (ROOT_DISK_PATH, disk)));
    Ok(Artifact {
        manifest,
        files,
        software: Software {
            packages,
            unread,
            distribution,
            boot_kit: kit.document,
        },
    })
}

/// LZ4's version, which its library gives as one number of two digits a part.
fn lz4_version() -> String {
    let number = lz4::version();
    format!(
        "{}.{}.{}",
        number / 10_000,
        number / 100 % 100,
        number % 100
    )
}

/// Versions of what compresses the root disk.
fn codecs(compression: Compression) -> BTreeMap<String, String> {
    let named = |name: &str, version: String| [(name.to_owned(), version)].into();
    match compression {
        Compression::None => BTreeMap::new(),
        Compression::Lz4hc => named("lz4", lz4_version()),
        Compression::Zstd => named("zstd", zstd::zstd_safe::version_string().to_owned()),
    }
}

/// The manifest's rows for a UKI's sections.
pub(crate) fn uki_sections(uki: &Bytes) -> Result<Vec<Section>, ParseUkiError> {
    let content = parse_uki(uki)?;
    let headers = PeImage::parse(uki).map_err(ParseUkiError::Pe)?;
    let row = |(name, content): &(&str, Bytes)| Section {
        name: (*name).to_owned(),
        offset: headers
            .section(name)
            .map_or(0, |section| u64::from(section.raw_offset)),
        size: content.len() as u64,
        sha256: Sha256Digest::of(content),
    };
    Ok(content.sections.iter().map(row).collect())
}

/// A UKI of which nothing can be said to be signed.
#[derive(Debug, thiserror::Error)]
pub enum ReadSignersError {
    /// No table of signatures.
    #[error("cannot find the UKI's signatures")]
    Table(#[source] ParseSignaturesError),
    /// A signature is not one of this UKI.
    #[error("the UKI's signature {index} is not valid")]
    Signature {
        /// Its place, from 0.
        index: usize,
        /// Why.
        #[source]
        source: VerifySignatureError,
    },
}

/// The manifest's certificates of those who signed a UKI. Every signature must
/// be one of this UKI.
pub(crate) fn uki_signers(uki: &Bytes) -> Result<Vec<Sha256Digest>, ReadSignersError> {
    let signatures = verify_signatures(uki).map_err(ReadSignersError::Table)?;
    let verified = signatures.into_iter().enumerate();
    verified
        .map(|(index, signature)| match signature {
            Ok(signature) => Ok(signature.certificate),
            Err(source) => Err(ReadSignersError::Signature { index, source }),
        })
        .collect()
}

/// The launch digests of an artifact cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureArtifactError {
    /// The firmware cannot be measured.
    #[error("measure the firmware")]
    Firmware(#[source] FirmwareInputsError),
    /// The IGVM file of firmware and UKI cannot be measured.
    #[error("measure the IGVM file of firmware and UKI")]
    Igvm(#[source] MeasureSelfContainedError),
}

/// What the launch digests follow from: nothing is handed to the guest but the
/// UKI, of this hash. Firmware that takes no UKI from an IGVM file has no digest for
/// one; [`measure_self_contained`] says why.
pub(crate) fn measurement(
    firmware: &Bytes,
    uki: &Bytes,
    sha256: Sha256Digest,
) -> Result<MeasurementInputs, MeasureArtifactError> {
    let hashes = KernelHashes::from_digests(sha256, None, "");
    let inputs = MeasurementInputs::from_bytes(firmware, Some(hashes))
        .map_err(MeasureArtifactError::Firmware)?;
    let igvm_digest = match measure_self_contained(firmware, uki) {
        Ok(digest) => Some(digest),
        Err(MeasureSelfContainedError::Encode(_)) => None,
        Err(error) => return Err(MeasureArtifactError::Igvm(error)),
    };
    Ok(MeasurementInputs {
        igvm_digest,
        ..inputs
    })
}

/// The manifest's PCRs of a UKI.
pub(crate) fn uki_pcrs(uki: &Bytes) -> Result<BTreeMap<u8, Sha256Digest>, PredictPcrError> {
    let prediction = predict_pcrs(uki, BootPath::DirectKernel, &[])?;
    let values = PcrPrediction::PCRS.into_iter();
    Ok(values
        .filter_map(|pcr| Some((pcr, prediction.value(pcr)?)))
        .collect())
}

/// The sections that the recipe takes from the boot kit.
fn optional_sections(kit: &Tree, files: &UkiFiles) -> Result<OptionalSections, BuildError> {
    let file = |field, path: &Option<String>| {
        let Some(path) = path else {
            return Ok(None);
        };
        let found = kit.file(path.as_bytes());
        let found = found.map_err(|source| BuildError::BootKit(BootKitError::Resolve(source)))?;
        let missing = || BuildError::UkiFile {
            field,
            path: path.clone(),
        };
        found.cloned().ok_or_else(missing).map(Some)
    };
    Ok(OptionalSections {
        os_release: file("uki.osRelease", &files.os_release)?,
        splash: file("uki.splash", &files.splash)?,
        microcode: file("uki.microcode", &files.microcode)?,
        ..OptionalSections::default()
    })
}

fn open(image: &'static str, source: &SourceImage) -> Result<(Tree, ImageConfig), BuildError> {
    let config: ImageConfig = serde_json::from_slice(&source.config)
        .map_err(|source| BuildError::Config { image, source })?;
    if (config.os.as_str(), config.architecture.as_str()) != ("linux", "amd64") {
        let platform = format!("{}/{}", config.os, config.architecture);
        return Err(BuildError::Platform { image, platform });
    }
    let tree = flatten(&source.layers, &config.rootfs.diff_ids)
        .map_err(|source| BuildError::Flatten { image, source })?;
    Ok((tree, config))
}

/// The root disk and what the guest must know about it. Salt and identifiers
/// follow from the image's digest.
fn dm_verity_disk(
    tree: &Tree,
    recipe: &ValidRecipe,
    keep: &dyn Keep,
    begin: &mut dyn FnMut(BuildStep),
) -> Result<(Rope, RootFs), BuildError> {
    let image = recipe.rootfs.digest();
    let salt = *derive("assay dm-verity salt v1", image).as_bytes();
    let uuid = |label| {
        derive(label, image)
            .as_bytes()
            .first_chunk()
            .copied()
            .unwrap_or_default()
    };
    let uuid_of_files = uuid("assay erofs uuid v1");
    begin(BuildStep::Erofs);
    let disk = encode_erofs(tree, uuid_of_files, recipe.compression, keep);
    let mut disk = disk.map_err(BuildError::Erofs)?;
    begin(BuildStep::Verity);
    let parameters = VerityParameters {
        salt,
        uuid: uuid("assay dm-verity uuid v1"),
    };
    let tree = append_verity(&mut disk, &parameters).map_err(BuildError::Verity)?;
    let root = RootFs::DmVerity {
        serial: ROOT_DISK_SERIAL.to_owned(),
        block_size: verity::BLOCK,
        data_blocks: tree.data_blocks,
        hash_start_block: tree.hash_start_block,
        root_hash: tree.root_hash,
        salt: hex::encode(salt),
    };
    Ok((disk, root))
}

fn derive(label: &str, image: Sha256Digest) -> Sha256Digest {
    Sha256Digest::of(&[label.as_bytes(), b"\0", image.as_bytes()].concat())
}

#[cfg(test)]
mod optional_tests;
#[cfg(test)]
pub(crate) mod tests;
