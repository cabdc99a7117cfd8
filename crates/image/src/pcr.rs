//! TPM PCRs that the boot of a UKI leaves, predicted from its bytes.
//!
//! | PCR | is extended with | by |
//! |---|---|---|
//! | 4 | the executables that are started | firmware (TCG PC Client Platform Firmware Profile, §3.3.4.5) |
//! | 9 | the kernel's load options and its initrd | the kernel's EFI stub |
//! | 11 | the UKI's sections, then the phases of the boot | systemd-stub, systemd-pcrphase |
//! | 12 | command lines and credentials from outside: nothing | systemd-stub |
//!
//! All values are of the SHA-256 bank, for firmware without Secure Boot and a
//! host that hands the stub nothing of its own. A host that does changes the
//! PCRs: that is what they are for.

use assay_tee::Sha256Digest;
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::pe::{ParsePeError, PeImage, PeSection};
use crate::uki::{CMDLINE, INITRD, LINUX, OSREL, PCRPKEY, PCRSIG, SPLASH, UCODE, UNAME};

/// The sections that the stub measures, in its order (systemd,
/// `src/fundamental/uki.h`); `.pcrsig` holds signatures over the result.
const MEASURED_SECTIONS: [&str; 14] = [
    LINUX, OSREL, CMDLINE, INITRD, UCODE, SPLASH, ".dtb", UNAME, ".sbat", PCRPKEY, ".profile",
    ".dtbauto", ".hwids", ".efifw",
];

/// The sections that the stub hands to the kernel as archives of its own after the
/// initrd, in its order, and the names of the files in them.
const INITRD_EXTENDING: [(&str, &str); 4] = [
    (PCRSIG, "tpm2-pcr-signature.json"),
    (PCRPKEY, "tpm2-pcr-public-key.pem"),
    (OSREL, "os-release"),
    (".profile", "profile"),
];

/// The section in which the stub says what it is.
const STUB_MAGIC: &str = ".sdmagic";
const STUB_NAME: &str = "LoaderInfo: systemd-stub ";

/// The first version that starts kernels by LoadImage, which measures them.
const FIRST_LOADING_STUB: u32 = 252;
/// The first version that calls the kernel directly.
const FIRST_CALLING_STUB: u32 = 258;
/// The first version that hands all of [`INITRD_EXTENDING`] on.
const FIRST_EXTENDING_STUB: u32 = 257;

/// What a firmware measures before it starts a boot option.
const BOOT_ACTION: &[u8] = b"Calling EFI Application from Boot Option";
const SEPARATOR: &[u8] = &[0; 4];

/// How firmware comes by the UKI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootPath {
    /// From QEMU's `-kernel`: OVMF loads it before it says that it boots.
    DirectKernel,
    /// From a disk's EFI system partition.
    Disk,
}

/// Something that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PcrEvent {
    /// The PCR that it extends.
    pub pcr: u8,
    /// What it is.
    pub what: String,
    /// What the PCR is extended with.
    pub digest: Sha256Digest,
}

/// A PCR and why its value cannot be told from the UKI alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unpredictable {
    /// The PCR.
    pub pcr: u8,
    /// What its value depends on.
    pub reason: String,
}

/// What the boot of a UKI leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PcrPrediction {
    /// What is measured, for each PCR in order.
    pub events: Vec<PcrEvent>,
    /// PCRs without a value.
    pub unpredictable: Vec<Unpredictable>,
}

impl PcrPrediction {
    /// The PCRs that are looked at.
    pub const PCRS: [u8; 4] = [4, 9, 11, 12];

    /// A PCR's value after all its events. `None` when it cannot be predicted.
    pub fn value(&self, pcr: u8) -> Option<Sha256Digest> {
        if !Self::PCRS.contains(&pcr) || self.unpredictable.iter().any(|it| it.pcr == pcr) {
            return None;
        }
        let events = self.events.iter().filter(|event| event.pcr == pcr);
        Some(events.fold(Sha256Digest::new([0; 32]), |value, event| {
            let mut digest = Sha256::new();
            digest.update(value.as_bytes());
            digest.update(event.digest.as_bytes());
            Sha256Digest::new(digest.finalize().into())
        }))
    }
}

/// Bytes whose boot cannot be predicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PredictPcrError {
    /// Not a PE image.
    #[error("cannot read the UKI")]
    Uki(#[source] ParsePeError),
    /// The kernel is not a PE image.
    #[error("cannot read the kernel in the UKI's section .linux")]
    Kernel(#[source] ParsePeError),
    /// A section is missing or ends after the file.
    #[error("the UKI has no complete section {0}")]
    Missing(&'static str),
    /// A section is there more than once, and the stub measures each profile's.
    #[error("the UKI has section {0} more than once: only UKIs of one profile can be predicted")]
    Duplicate(&'static str),
}

/// Predicts what the boot of `uki` leaves in PCRs. `phases` are the words that
/// systemd-pcrphase measures in the guest, such as `enter-initrd`; Assay's agent
/// measures none.
pub fn predict_pcrs(
    uki: &Bytes,
    boot: BootPath,
    phases: &[String],
) -> Result<PcrPrediction, PredictPcrError> {
    let image = PeImage::parse(uki).map_err(PredictPcrError::Uki)?;
    let sections = Sections::new(uki, &image)?;
    let mut prediction = PcrPrediction {
        events: Vec::new(),
        unpredictable: Vec::new(),
    };
    predict_executables(&mut prediction, uki, &image, &sections, boot)?;
    predict_kernel_inputs(&mut prediction, &sections)?;
    for (name, content) in &sections.measured {
        let name_with_nul = [name.as_bytes(), &[0]].concat();
        prediction.measure(11, format!("name of section {name}"), &name_with_nul);
        prediction.measure(11, format!("section {name}"), content);
    }
    for phase in phases {
        prediction.measure(11, format!("phase {phase}"), phase.as_bytes());
    }
    Ok(prediction)
}

impl PcrPrediction {
    fn measure(&mut self, pcr: u8, what: impl Into<String>, bytes: &[u8]) {
        self.extend(pcr, what, Sha256Digest::of(bytes));
    }

    fn extend(&mut self, pcr: u8, what: impl Into<String>, digest: Sha256Digest) {
        let what = what.into();
        self.events.push(PcrEvent { pcr, what, digest });
    }

    fn give_up(&mut self, pcr: u8, reason: impl Into<String>) {
        let reason = reason.into();
        self.unpredictable.push(Unpredictable { pcr, reason });
    }
}

/// The sections that decide what is measured.
struct Sections {
    /// Name and content of those that the stub measures, in its order.
    measured: Vec<(&'static str, Bytes)>,
    /// Those that go with the initrd: name, and what the stub makes of it.
    initrd_extending: Vec<(&'static str, Vec<u8>)>,
    /// systemd's version, when the stub says one.
    stub_version: Option<u32>,
}

impl Sections {
    fn new(uki: &Bytes, image: &PeImage) -> Result<Self, PredictPcrError> {
        let content = |name: &'static str| {
            let mut found = image.sections.iter().filter(|section| section.name == name);
            let Some(section) = found.next() else {
                return Ok(None);
            };
            if found.next().is_some() {
                return Err(PredictPcrError::Duplicate(name));
            }
            let content = loaded(section, uki).ok_or(PredictPcrError::Missing(name))?;
            Ok(Some(content))
        };
        let mut measured = Vec::new();
        for name in MEASURED_SECTIONS {
            measured.extend(content(name)?.map(|content| (name, content)));
        }
        let mut initrd_extending = Vec::new();
        for (name, file) in INITRD_EXTENDING {
            if let Some(content) = content(name)? {
                initrd_extending.push((name, stub_archive(file, &content)));
            }
        }
        let stub_version = image
            .section(STUB_MAGIC)
            .and_then(|section| section.content(uki))
            .and_then(|content| stub_version(&content));
        Ok(Self {
            measured,
            initrd_extending,
            stub_version,
        })
    }

    fn find(&self, name: &str) -> Option<&Bytes> {
        let mut measured = self.measured.iter();
        measured
            .find(|(known, _)| *known == name)
            .map(|(_, content)| content)
    }

    fn get(&self, name: &'static str) -> Result<&Bytes, PredictPcrError> {
        self.find(name).ok_or(PredictPcrError::Missing(name))
    }

    /// Digest of what the kernel gets as its initrd: microcode, the initrd, and the
    /// stub's archives, each of whole words where there are several.
    fn initrd_digest(&self) -> Result<Sha256Digest, PredictPcrError> {
        const WORD: usize = 4;
        let initrd = self.get(INITRD)?;
        let archives = self.initrd_extending.iter().map(|(_, archive)| archive);
        let parts: Vec<&[u8]> = self
            .find(UCODE)
            .into_iter()
            .chain([initrd])
            .map(AsRef::as_ref)
            .chain(archives.map(AsRef::as_ref))
            .collect();
        if let [only] = parts.as_slice() {
            return Ok(Sha256Digest::of(only));
        }
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(part);
            let padding = part.len().next_multiple_of(WORD) - part.len();
            digest.update([0_u8; WORD].get(..padding).unwrap_or_default());
        }
        Ok(Sha256Digest::new(digest.finalize().into()))
    }
}

/// The cpio archive (`newc`) that the stub makes of a section: the directory
/// `.extra` with one file, which everybody may read.
fn stub_archive(file: &str, content: &[u8]) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_555;
    const FILE: u32 = 0o100_444;
    let mut trailer = stub_entry(0, 0, "TRAILER!!!", &[]);
    // Its digits are capital ones, those of the others small.
    trailer.make_ascii_uppercase();
    [
        stub_entry(1, DIRECTORY, ".extra", &[]),
        stub_entry(2, FILE, &format!(".extra/{file}"), content),
        trailer,
    ]
    .concat()
}

fn stub_entry(inode: u32, mode: u32, name: &str, content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let name_len = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    let mut out = b"070701".to_vec();
    // Inode, mode, owner, group, links, time, length, four numbers of devices,
    // length of the name with its NUL, checksum.
    for field in [inode, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0] {
        out.extend(format!("{field:08x}").into_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// A section as it is in memory: zeros follow what the file has of it.
fn loaded(section: &PeSection, image: &Bytes) -> Option<Bytes> {
    if section.virtual_size <= section.raw_size {
        return section.content(image);
    }
    let start = usize::try_from(section.raw_offset).ok()?;
    let end = start.checked_add(usize::try_from(section.raw_size).ok()?)?;
    // The file bounds what a header may ask to have allocated.
    let size = usize::try_from(section.virtual_size).ok()?;
    if size > image.len() {
        return None;
    }
    let mut content = image.get(start..end)?.to_vec();
    content.resize(size, 0);
    Some(content.into())
}

/// The version in `#### LoaderInfo: systemd-stub 257.13-1 ####`.
fn stub_version(magic: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(magic);
    let (_, version) = text.split_once(STUB_NAME)?;
    let digits = version.find(|character: char| !character.is_ascii_digit())?;
    version.get(..digits)?.parse().ok()
}

fn predict_executables(
    prediction: &mut PcrPrediction,
    uki: &Bytes,
    image: &PeImage,
    sections: &Sections,
    boot: BootPath,
) -> Result<(), PredictPcrError> {
    const PCR: u8 = 4;
    let digest = image
        .authenticode_digest(uki)
        .map_err(PredictPcrError::Uki)?;
    if boot == BootPath::DirectKernel {
        prediction.extend(PCR, "the UKI", digest);
    }
    prediction.measure(PCR, "boot option is started", BOOT_ACTION);
    prediction.measure(PCR, "separator", SEPARATOR);
    if boot == BootPath::Disk {
        prediction.extend(PCR, "the UKI", digest);
    }
    match sections.stub_version {
        Some(FIRST_CALLING_STUB..) => {}
        Some(FIRST_LOADING_STUB..) => {
            let kernel = sections.get(LINUX)?;
            let digest = PeImage::parse(kernel)
                .and_then(|image| image.authenticode_digest(kernel))
                .map_err(PredictPcrError::Kernel)?;
            prediction.extend(PCR, "the kernel", digest);
        }
        Some(older) => prediction.give_up(
            PCR,
            format!("the stub is of systemd {older}; from {FIRST_LOADING_STUB} on it is known how the kernel is started"),
        ),
        None => prediction.give_up(PCR, "the stub does not say which version of systemd it is of"),
    }
    Ok(())
}

fn predict_kernel_inputs(
    prediction: &mut PcrPrediction,
    sections: &Sections,
) -> Result<(), PredictPcrError> {
    const PCR: u8 = 9;
    let cmdline = String::from_utf8_lossy(sections.get(CMDLINE)?);
    let options: Vec<u8> = load_options(&cmdline)
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    prediction.measure(PCR, "load options", &options);
    prediction.extend(PCR, "initrd", sections.initrd_digest()?);
    let known = sections
        .stub_version
        .is_some_and(|version| version >= FIRST_EXTENDING_STUB);
    if let Some((section, _)) = sections.initrd_extending.first().filter(|_| !known) {
        prediction.give_up(
            PCR,
            format!(
                "section {section} goes to the kernel with the initrd, and how is known of stubs \
                 from systemd {FIRST_EXTENDING_STUB} on"
            ),
        );
    } else if !cmdline.contains("console=") {
        prediction.give_up(
            PCR,
            "the command line names no console=, and newer stubs add one",
        );
    }
    Ok(())
}

/// The command line as the stub hands it to the kernel: up to a NUL, control
/// characters as spaces, none of them at the end.
fn load_options(cmdline: &str) -> String {
    let text = cmdline.split('\0').next().unwrap_or_default();
    let plain = |character: char| match character {
        '\u{1}'..='\u{1f}' => ' ',
        other => other,
    };
    let mut options: String = text.chars().map(plain).collect();
    options.truncate(options.trim_end_matches(' ').len());
    options
}

#[cfg(test)]
mod tests;
