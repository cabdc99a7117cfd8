//! sev-snp-measure as an oracle: random launches of synthetic firmware must have
//! the digest that it computes.
//!
//! `ASSAY_SEV_SNP_MEASURE` names its executable (PyPI package sev-snp-measure);
//! `ASSAY_ORACLE_CASES` the number of launches; `ASSAY_ORACLE_FIRMWARE` firmware
//! files (separated as in `PATH`) to launch as well. The launches are the same
//! in every run.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

#[path = "support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use assay_measure::sev::{measure_sev, measure_sev_es};
use assay_measure::{FirmwareInputs, MeasurementInputs, VcpuProfile, measure_snp_launch};
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::vmsa::Vmm;
use assay_tee::{GuestFeatures, VcpuCount};
use synthetic_firmware::build_firmware;

/// splitmix64: small, and the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most))
            .map(|_| self.next().to_le_bytes()[0])
            .collect()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// Sections at increasing addresses in shuffled order, the firmware's hashes
/// table in the page that is measured.
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
            SectionKind::SecMem => u32::try_from(random.below(20)).unwrap(),
            _ => 1,
        };
        if kind == SectionKind::KernelHashes {
            hashes_table_gpa = gpa + 16 * u32::try_from(random.below(240)).unwrap();
        }
        let at = usize::try_from(random.below(sections.len() as u64 + 1)).unwrap();
        sections.insert(
            at,
            Section {
                gpa,
                size: pages * 4096,
                kind,
            },
        );
        gpa += (pages + u32::try_from(random.below(3)).unwrap()) * 4096;
    }
    let pages = usize::try_from(1 + random.below(16)).unwrap();
    let reset_eip = u32::try_from(1 + random.below(0xffff_fffe)).unwrap();
    let filler = random.next().to_le_bytes()[0];
    (
        build_firmware(pages, filler, &sections, reset_eip, hashes_table_gpa),
        has_hashes,
    )
}

struct KernelFiles {
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
    cmdline: Option<String>,
}

struct Launch {
    mode: &'static str,
    firmware: Vec<u8>,
    kernel: Option<KernelFiles>,
    vcpus: u32,
    model: &'static str,
    vmm: (&'static str, Vmm),
    features: u64,
}

const TOKENS: [&str; 6] = [
    "console=ttyS0",
    " ",
    "root=/dev/vda",
    "é=1",
    "quiet",
    "a=\"b c\"",
];
/// Models that the oracle knows as well.
const ORACLE_MODELS: [&str; 6] = [
    "EPYC",
    "EPYC-v4",
    "EPYC-Rome",
    "EPYC-Milan-v2",
    "EPYC-Genoa",
    "EPYC-Turin",
];

impl Launch {
    fn random(random: &mut Random, files: &[Vec<u8>]) -> Self {
        let (firmware, has_hashes) = if !files.is_empty() && random.chance(50) {
            let file = &files[usize::try_from(random.below(files.len() as u64)).unwrap()];
            let inputs = FirmwareInputs::from_bytes(file).unwrap();
            (file.clone(), inputs.supports_kernel_hashes())
        } else {
            random_firmware(random)
        };
        let kernel = (has_hashes && random.chance(80)).then(|| {
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
        });
        Self {
            mode: random.pick(&["snp", "snp", "snp", "seves", "sev", "snp:ovmf-hash"]),
            firmware,
            kernel,
            vcpus: u32::try_from(1 + random.below(9)).unwrap(),
            model: random.pick(&ORACLE_MODELS),
            vmm: random.pick(&[("QEMU", Vmm::Qemu), ("ec2", Vmm::Ec2), ("gce", Vmm::Gce)]),
            features: random.next() | 1,
        }
    }

    fn measure(&self) -> String {
        let hashes = self.kernel.as_ref().map(
            |KernelFiles {
                 kernel,
                 initrd,
                 cmdline,
             }| {
                let cmdline = cmdline.as_deref().unwrap_or_default();
                KernelHashes::from_bytes(kernel, initrd.as_deref(), cmdline)
            },
        );
        let vcpus = VcpuCount::try_from(self.vcpus).unwrap();
        let profile = VcpuProfile {
            vmm: self.vmm.1,
            cpu_signature: if self.vmm.1.measures_cpu_signature() {
                CpuModel::by_name(self.model).unwrap().signature()
            } else {
                CpuSignature(0)
            },
            guest_features: GuestFeatures(self.features),
        };
        match self.mode {
            "snp" => {
                let inputs = MeasurementInputs::from_bytes(&self.firmware, hashes).unwrap();
                measure_snp_launch(&inputs, &profile, vcpus)
                    .unwrap()
                    .digest
                    .to_hex()
            }
            "seves" => measure_sev_es(&self.firmware, hashes.as_ref(), &profile, vcpus)
                .unwrap()
                .to_hex(),
            "sev" => measure_sev(&self.firmware, hashes.as_ref())
                .unwrap()
                .to_hex(),
            _ => FirmwareInputs::from_bytes(&self.firmware)
                .unwrap()
                .digest
                .to_hex(),
        }
    }

    fn oracle(&self, program: &Path, directory: &Path) -> String {
        let write = |name: &str, content: &[u8]| -> PathBuf {
            let path = directory.join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let mut command = Command::new(program);
        command.args(["--mode", self.mode]);
        command.args([
            "--vcpus",
            &self.vcpus.to_string(),
            "--vcpu-type",
            self.model,
        ]);
        command.args(["--vmm-type", self.vmm.0]);
        command.args(["--guest-features", &format!("{:#x}", self.features)]);
        command.arg("--ovmf").arg(write("ovmf", &self.firmware));
        if let Some(KernelFiles {
            kernel,
            initrd,
            cmdline,
        }) = &self.kernel
        {
            command.arg("--kernel").arg(write("kernel", kernel));
            if let Some(initrd) = initrd {
                command.arg("--initrd").arg(write("initrd", initrd));
            }
            if let Some(cmdline) = cmdline {
                command.args(["--append", cmdline]);
            }
        }
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

#[test]
fn random_launches_have_the_oracles_digest() {
    let Some(program) = std::env::var_os("ASSAY_SEV_SNP_MEASURE") else {
        // Straight to the descriptor: the test harness hides what passing tests
        // print.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED oracle sev-snp-measure: ASSAY_SEV_SNP_MEASURE does not name its executable"
        );
        return;
    };
    let cases = std::env::var("ASSAY_ORACLE_CASES").map_or(48, |cases| cases.parse().unwrap());
    let files: Vec<Vec<u8>> = std::env::var_os("ASSAY_ORACLE_FIRMWARE")
        .map(|paths| {
            std::env::split_paths(&paths)
                .map(|path| fs::read(path).unwrap())
                .collect()
        })
        .unwrap_or_default();
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(0x0a55_a400);
    for case in 0..cases {
        let launch = Launch::random(&mut random, &files);
        assert_eq!(
            launch.measure(),
            launch.oracle(Path::new(&program), directory.path()),
            "launch {case}: mode {}, {} vCPUs, {}, {}, features {:#x}, {} bytes of firmware",
            launch.mode,
            launch.vcpus,
            launch.model,
            launch.vmm.0,
            launch.features,
            launch.firmware.len()
        );
    }
    let _ = writeln!(
        std::io::stderr(),
        "sev-snp-measure agrees on {cases} random launches"
    );
}
