//! Launches as an oracle takes them, and how we measure them.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use assay_measure::sev::{measure_sev, measure_sev_es};
use assay_measure::svsm::{SvsmInputs, SvsmProfile, measure_svsm};
use assay_measure::{FirmwareInputs, MeasurementInputs, VcpuProfile, measure_snp_launch};
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::vmsa::{SvsmFpu, Vmm};
use assay_tee::{GuestFeatures, LaunchDigest, VcpuCount};

use crate::random::Random;
use crate::synthetic_firmware::{SyntheticFirmware, build_firmware, build_svsm};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every oracle knows every mode")]
pub(crate) enum Mode {
    Sev,
    SevEs,
    Snp,
    SnpOvmfHash,
    SnpSvsm,
}

/// Files given to `-kernel`, `-initrd` and `-append`.
#[derive(Debug, Clone)]
pub(crate) struct KernelFiles {
    pub(crate) kernel: Vec<u8>,
    pub(crate) initrd: Option<Vec<u8>>,
    pub(crate) cmdline: Option<String>,
}

/// An SVSM below the variable store.
#[derive(Debug, Clone)]
pub(crate) struct Svsm {
    pub(crate) binary: Vec<u8>,
    pub(crate) vars_size: u64,
    pub(crate) fpu: SvsmFpu,
}

/// A launch.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) mode: Mode,
    pub(crate) firmware: Rc<Vec<u8>>,
    /// Replaces the running digest after the firmware (mode snp).
    pub(crate) firmware_digest: Option<LaunchDigest>,
    pub(crate) kernel: Option<KernelFiles>,
    pub(crate) vcpus: u32,
    pub(crate) cpu: CpuSignature,
    pub(crate) vmm: Vmm,
    pub(crate) features: u64,
    pub(crate) svsm: Option<Svsm>,
}

const TOKENS: [&str; 6] = [
    "console=ttyS0",
    "ro",
    "root=/dev/vda",
    "é=1",
    "quiet",
    "a=\"b  c\"",
];

impl Launch {
    /// A launch that everybody measures alike: with firmware from `files` or
    /// made up, in one of `modes`, under one of `vmms`. One in about twenty is
    /// impossible for a reason that everybody sees.
    pub(crate) fn random(
        random: &mut Random,
        files: &[Rc<Vec<u8>>],
        modes: &[Mode],
        vmms: &[Vmm],
    ) -> Self {
        let mode = random.pick(modes);
        let (firmware, has_hashes) = if !files.is_empty() && random.chance(30) {
            let file = random.pick(files);
            let inputs = FirmwareInputs::from_bytes(&file).unwrap();
            (file, inputs.supports_kernel_hashes())
        } else {
            let (firmware, has_hashes) = random_firmware(random);
            (Rc::new(firmware), has_hashes)
        };
        let takes_kernel = matches!(mode, Mode::Sev | Mode::SevEs | Mode::Snp);
        let wants_kernel = if has_hashes { 80 } else { 40 };
        let kernel = (takes_kernel && random.chance(wants_kernel)).then(|| random_kernel(random));
        let firmware_digest = (mode == Mode::Snp && random.chance(10)).then(|| {
            let mut digest = [0; 48];
            digest.fill_with(|| random.next().to_le_bytes()[0]);
            LaunchDigest::new(digest)
        });
        let svsm = (mode == Mode::SnpSvsm).then(|| Svsm {
            binary: random_svsm(random),
            vars_size: 4096 * u64::from(1 + random.below(200)),
            fpu: SvsmFpu::SevSnpMeasure,
        });
        let features = match mode {
            Mode::Snp => random.next() | 1,
            _ => 1,
        };
        let models: Vec<_> = CpuModel::all().map(|model| model.signature()).collect();
        Self {
            mode,
            firmware,
            firmware_digest,
            kernel,
            vcpus: if random.chance(5) {
                64 + random.below(449)
            } else {
                1 + random.below(9)
            },
            cpu: random.pick(&models),
            vmm: random.pick(if mode == Mode::SnpSvsm {
                &[Vmm::Qemu]
            } else {
                vmms
            }),
            features,
            svsm,
        }
    }

    /// A launch without peculiarities, to be changed.
    pub(crate) fn plain(mode: Mode, firmware: Vec<u8>) -> Self {
        Self {
            mode,
            firmware: Rc::new(firmware),
            firmware_digest: None,
            kernel: None,
            vcpus: 1,
            cpu: CpuModel::by_name("EPYC-v4").unwrap().signature(),
            vmm: Vmm::Qemu,
            features: 1,
            svsm: None,
        }
    }

    /// The digest in hexadecimal, or why there is none.
    pub(crate) fn measure(&self) -> Result<String, String> {
        self.try_measure().map_err(|error| {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            text
        })
    }

    fn try_measure(&self) -> Result<String, Box<dyn Error>> {
        let hashes = self.kernel.as_ref().map(|files| {
            let cmdline = files.cmdline.as_deref().unwrap_or_default();
            KernelHashes::from_bytes(&files.kernel, files.initrd.as_deref(), cmdline)
        });
        let vcpus = VcpuCount::try_from(self.vcpus)?;
        let profile = VcpuProfile {
            vmm: self.vmm,
            cpu_signature: self.cpu,
            guest_features: GuestFeatures(self.features),
        };
        Ok(match self.mode {
            Mode::Sev => measure_sev(&self.firmware, hashes.as_ref())?
                .digest
                .to_hex(),
            Mode::SevEs => measure_sev_es(&self.firmware, hashes.as_ref(), &profile, vcpus)?
                .digest
                .to_hex(),
            Mode::SnpOvmfHash => FirmwareInputs::from_bytes(&self.firmware)?.digest.to_hex(),
            Mode::Snp => {
                let mut inputs = MeasurementInputs::from_bytes(&self.firmware, hashes)?;
                if let Some(digest) = self.firmware_digest {
                    inputs.firmware.digest = digest;
                }
                measure_snp_launch(&inputs, &profile, vcpus)?
                    .digest
                    .to_hex()
            }
            Mode::SnpSvsm => {
                let svsm = self.svsm.as_ref().unwrap();
                let inputs = SvsmInputs::from_bytes(&self.firmware, svsm.vars_size, &svsm.binary)?;
                let profile = SvsmProfile {
                    cpu_signature: self.cpu,
                    fpu: svsm.fpu,
                };
                measure_svsm(&inputs, &profile, vcpus)?.digest.to_hex()
            }
        })
    }

    /// What to print of a launch that is measured differently.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{:?}, {} vCPUs, {}, {:?}, features {:#x}, {} bytes of firmware, kernel {}",
            self.mode,
            self.vcpus,
            self.cpu,
            self.vmm,
            self.features,
            self.firmware.len(),
            self.kernel.is_some()
        )
    }

    /// Writes the files of the launch to a directory.
    pub(crate) fn write_files(&self, directory: &Path) -> Files {
        let write = |name: &str, content: &[u8]| -> PathBuf {
            let path = directory.join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let kernel = self.kernel.as_ref();
        let initrd = kernel.and_then(|files| files.initrd.as_ref());
        let svsm = self.svsm.as_ref();
        Files {
            ovmf: write("ovmf", &self.firmware),
            kernel: kernel.map(|files| write("kernel", &files.kernel)),
            initrd: initrd.map(|initrd| write("initrd", initrd)),
            svsm: svsm.map(|svsm| write("svsm", &svsm.binary)),
        }
    }
}

/// Where the files of a launch lie.
pub(crate) struct Files {
    pub(crate) ovmf: PathBuf,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    #[allow(dead_code, reason = "not every oracle knows SVSMs")]
    pub(crate) svsm: Option<PathBuf>,
}

/// The firmware files that `ASSAY_ORACLE_FIRMWARE` names, separated as in
/// `PATH`.
pub(crate) fn firmware_files() -> Vec<Rc<Vec<u8>>> {
    let paths = std::env::var_os("ASSAY_ORACLE_FIRMWARE").unwrap_or_default();
    std::env::split_paths(&paths)
        .filter(|path| !path.as_os_str().is_empty())
        .map(|path| Rc::new(fs::read(path).unwrap()))
        .collect()
}

fn random_kernel(random: &mut Random) -> KernelFiles {
    let initrd = random.chance(60).then(|| random.bytes(2000));
    let cmdline = random.chance(70).then(|| {
        (0..random.below(6))
            .map(|_| random.pick(&TOKENS))
            .collect::<Vec<_>>()
            .join(" ")
    });
    KernelFiles {
        kernel: random.bytes(5000),
        initrd,
        cmdline,
    }
}

/// Sections at increasing addresses in shuffled order, the firmware's hashes
/// table in the page that is measured; and whether there is such a page.
fn random_firmware(random: &mut Random) -> (Vec<u8>, bool) {
    let mut kinds = vec![
        SectionKind::SecMem,
        SectionKind::SecMem,
        SectionKind::SnpSecrets,
        SectionKind::Cpuid,
        SectionKind::SvsmCaa,
    ];
    let has_hashes = random.chance(80);
    if has_hashes {
        kinds.push(SectionKind::KernelHashes);
    }
    let mut gpa = 0x80_0000;
    let mut hashes_table_gpa = 0;
    let mut sections = Vec::new();
    for kind in kinds {
        let pages = match kind {
            SectionKind::SecMem => random.below(20),
            _ => 1,
        };
        if kind == SectionKind::KernelHashes {
            hashes_table_gpa = gpa + 16 * random.below(240);
        }
        let at = random.below(u32::try_from(sections.len()).unwrap() + 1) as usize;
        let size = pages * 4096;
        sections.insert(at, Section { gpa, size, kind });
        gpa += (pages + random.below(3)) * 4096;
    }
    let firmware = build_firmware(&SyntheticFirmware {
        pages: 1 + random.below(16) as usize,
        filler: random.next().to_le_bytes()[0],
        sections: &sections,
        reset_eip: 1 + random.below(0xffff_fffe),
        hashes_table_gpa,
    });
    (firmware, has_hashes)
}

/// A binary with sections from address zero.
fn random_svsm(random: &mut Random) -> Vec<u8> {
    let pages = 1 + random.below(12);
    let memory = (1 + random.below(100)) * 4096;
    let section = |gpa, size, kind| Section { gpa, size, kind };
    let mut sections = vec![section(0, memory, SectionKind::SecMem)];
    for (kind, page) in [(SectionKind::SnpSecrets, 0), (SectionKind::Cpuid, 1)] {
        let at = random.below(u32::try_from(sections.len()).unwrap() + 1) as usize;
        sections.insert(at, section(memory + page * 4096, 4096, kind));
    }
    let entry = random.below(pages * 4096);
    build_svsm(
        pages as usize,
        random.next().to_le_bytes()[0],
        &sections,
        entry,
    )
}
