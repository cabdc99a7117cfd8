//! sev-snp-measure as an oracle: random launches must have the digest that it
//! computes, in every mode, and must be refused where it refuses them. Where we
//! know that it errs, it must still do so.
//!
//! `ASSAY_SEV_SNP_MEASURE` names its executable (PyPI package sev-snp-measure),
//! beside which its Python lies; `ASSAY_ORACLE_CASES` the number of launches;
//! `ASSAY_ORACLE_FIRMWARE` firmware files (separated as in `PATH`) to launch as
//! well. The launches are the same in every run.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

#[path = "support/launch.rs"]
mod launch;
#[path = "support/random.rs"]
mod random;
#[path = "support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::vmsa::{SvsmFpu, Vmm};
use launch::{KernelFiles, Launch, Mode, Svsm, firmware_files};
use random::Random;
use serde_json::{Value, json};
use synthetic_firmware::{SyntheticFirmware, build_firmware, build_svsm};

/// A Python process that answers launches.
struct Oracle {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    directory: tempfile::TempDir,
}

impl Oracle {
    /// `None`, said aloud, where there is no oracle.
    fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("ASSAY_SEV_SNP_MEASURE") else {
            say(
                "SKIPPED oracle sev-snp-measure: ASSAY_SEV_SNP_MEASURE does not name its executable",
            );
            return None;
        };
        let python = Path::new(&program).with_file_name("python");
        let mut process = Command::new(&python)
            .args(["-c", include_str!("support/driver.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("run {}: {error}", python.display()));
        Some(Self {
            requests: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
            directory: tempfile::tempdir().unwrap(),
        })
    }

    fn measure(&mut self, launch: &Launch) -> Result<String, String> {
        let files = launch.write_files(self.directory.path());
        let kernel = launch.kernel.as_ref();
        let request = json!({
            "mode": match launch.mode {
                Mode::Sev => "sev",
                Mode::SevEs => "seves",
                Mode::Snp => "snp",
                Mode::SnpOvmfHash => "snp:ovmf-hash",
                Mode::SnpSvsm => "snp:svsm",
            },
            "vmm": match launch.vmm {
                Vmm::Qemu | Vmm::QemuBeforeInit2 => "QEMU",
                Vmm::Ec2 | Vmm::Ec2BeforeRdx => "ec2",
                Vmm::Gce | Vmm::GceGenoa => "gce",
                Vmm::Krun => panic!("sev-snp-measure does not know krun"),
            },
            "vcpus": launch.vcpus,
            "signature": launch.cpu.0,
            "ovmf": files.ovmf,
            "kernel": files.kernel,
            "initrd": files.initrd,
            "append": kernel.and_then(|files| files.cmdline.as_ref()),
            // As text: numbers of 64 bits are not safe in JSON.
            "features": launch.features.to_string(),
            "ovmf_hash": launch.firmware_digest.map(|digest| digest.to_hex()),
            "svsm": files.svsm,
            "vars_size": launch.svsm.as_ref().map(|svsm| svsm.vars_size),
        });
        writeln!(self.requests, "{request}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        match (answer["digest"].as_str(), answer["error"].as_str()) {
            (Some(digest), None) => Ok(digest.to_owned()),
            (None, Some(error)) => Err(error.to_owned()),
            _ => panic!("unexpected answer {answer}"),
        }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Straight to the descriptor: the test harness hides what passing tests print.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn random_launches_have_the_oracles_digest() {
    let Some(mut oracle) = Oracle::start() else {
        return;
    };
    let cases = std::env::var("ASSAY_ORACLE_CASES").map_or(400, |cases| cases.parse().unwrap());
    let files = firmware_files();
    let modes = [
        Mode::Snp,
        Mode::Snp,
        Mode::Snp,
        Mode::SnpSvsm,
        Mode::SevEs,
        Mode::Sev,
        Mode::SnpOvmfHash,
    ];
    let vmms = [Vmm::Qemu, Vmm::Ec2, Vmm::Gce];
    let mut random = Random(0x0a55_a400);
    let mut refused = 0;
    for case in 0..cases {
        let launch = Launch::random(&mut random, &files, &modes, &vmms);
        match (launch.measure(), oracle.measure(&launch)) {
            (Err(_), Err(_)) => refused += 1,
            (ours, theirs) => assert_eq!(ours, theirs, "launch {case}: {}", launch.describe()),
        }
    }
    assert!(
        refused < cases / 10,
        "{refused} of {cases} launches are impossible"
    );
    say(&format!(
        "sev-snp-measure agrees on {cases} random launches ({refused} refused by both), {} \
         firmware files",
        files.len()
    ));
}

/// A launch that sev-snp-measure measures in another way, for a reason.
struct KnownDifference {
    reason: &'static str,
    /// Where its authors or ours look it up.
    reference: &'static str,
    launch: Launch,
    /// Our digest is another one, or part of our refusal.
    ours: Ours,
}

enum Ours {
    Measured,
    Refused(&'static str),
}

const MEMORY: Section = Section {
    gpa: 0x80_0000,
    size: 0x2000,
    kind: SectionKind::SecMem,
};
const SECRETS: Section = Section {
    gpa: 0x80_d000,
    size: 0x1000,
    kind: SectionKind::SnpSecrets,
};
const HASHES: Section = Section {
    gpa: 0x81_0000,
    size: 0x1000,
    kind: SectionKind::KernelHashes,
};

fn firmware(sections: &[Section]) -> Vec<u8> {
    build_firmware(&SyntheticFirmware {
        pages: 2,
        filler: 7,
        sections,
        reset_eip: 0x80_b004,
        hashes_table_gpa: 0x81_0c00,
    })
}

fn known_differences() -> Vec<KnownDifference> {
    let snp = |sections: &[Section]| Launch::plain(Mode::Snp, firmware(sections));
    vec![
        KnownDifference {
            reason: "the x87 control word of an SVSM's virtual CPUs is given to a field that does \
                     not exist, so it stays zero",
            reference: "virtee/sev-snp-measure PR 48, class VMSA_SVSM",
            launch: Launch {
                svsm: Some(Svsm {
                    binary: build_svsm(1, 3, &[MEMORY], 0x10),
                    vars_size: 0x1000,
                    fpu: SvsmFpu::Init2,
                }),
                ..Launch::plain(Mode::SnpSvsm, firmware(&[MEMORY, SECRETS]))
            },
            ours: Ours::Measured,
        },
        KnownDifference {
            reason: "save areas on Google's Genoa hosts lie at the highest of 52 bits, not of 48",
            reference: "virtee/sev-snp-measure PR 56; google/gce-tcb-verifier sev/measurement.go",
            launch: Launch {
                vmm: Vmm::GceGenoa,
                ..snp(&[MEMORY, SECRETS])
            },
            ours: Ours::Measured,
        },
        KnownDifference {
            reason: "hosts before Linux 6.10 measure another FPU state, for which there is no \
                     option",
            reference: "virtee/sev-snp-measure PR 48, review",
            launch: Launch {
                vmm: Vmm::QemuBeforeInit2,
                ..snp(&[MEMORY, SECRETS])
            },
            ours: Ours::Measured,
        },
        KnownDifference {
            reason: "a guest without virtual CPUs has a digest",
            reference: "sevsnpmeasure/cli.py checks no number",
            launch: Launch {
                vcpus: 0,
                ..snp(&[MEMORY, SECRETS])
            },
            ours: Ours::Refused("vcpus must be between 1 and 512"),
        },
        KnownDifference {
            reason: "SEV-SNP guests without SNPActive have a digest",
            reference: "sevsnpmeasure/cli.py checks no features",
            launch: Launch {
                features: 0x20,
                ..snp(&[MEMORY, SECRETS])
            },
            ours: Ours::Refused("lack bit 0 (SNPActive)"),
        },
        KnownDifference {
            reason: "sections may overlap",
            reference: "sevsnpmeasure/ovmf.py checks no section",
            launch: snp(&[
                MEMORY,
                Section {
                    gpa: 0x80_1000,
                    ..SECRETS
                },
            ]),
            ours: Ours::Refused("overlaps section 0"),
        },
        KnownDifference {
            reason: "of a secrets section of two pages only the first is measured",
            reference: "sevsnpmeasure/guest.py, snp_update_section",
            launch: snp(&[
                MEMORY,
                Section {
                    size: 0x2000,
                    ..SECRETS
                },
            ]),
            ours: Ours::Refused("must be exactly one page"),
        },
        KnownDifference {
            reason: "the firmware may look for the hashes in a page that is not measured",
            reference: "sevsnpmeasure/guest.py, snp_update_kernel_hashes",
            launch: Launch {
                kernel: Some(KernelFiles {
                    kernel: b"kernel".to_vec(),
                    initrd: None,
                    cmdline: None,
                }),
                ..snp(&[
                    MEMORY,
                    Section {
                        gpa: 0x82_0000,
                        ..HASHES
                    },
                ])
            },
            ours: Ours::Refused("lies outside the KERNEL_HASHES section"),
        },
        KnownDifference {
            reason: "any file is firmware in mode sev",
            reference: "virtee/sev-snp-measure issue 51",
            launch: Launch::plain(Mode::Sev, vec![0; 5000]),
            ours: Ours::Refused("must be a multiple of 4096"),
        },
    ]
}

#[test]
fn known_differences_are_still_there() {
    let Some(mut oracle) = Oracle::start() else {
        return;
    };
    for difference in known_differences() {
        let KnownDifference {
            reason,
            reference,
            launch,
            ours: expected,
        } = difference;
        let why = format!("{reason} ({reference})");
        let theirs = oracle.measure(&launch);
        assert!(
            theirs.is_ok(),
            "it refuses the launch now: {why}: {theirs:?}"
        );
        let ours = launch.measure();
        assert_ne!(ours, theirs, "no longer different: {why}");
        match (expected, ours) {
            (Ours::Measured, ours) => assert!(ours.is_ok(), "{why}: {ours:?}"),
            (Ours::Refused(message), ours) => {
                let error = ours.expect_err(&why);
                assert!(error.contains(message), "{why}: {error}");
            }
        }
    }
}
