//! The `sev` crate as an oracle: random SEV-SNP launches must have the digest
//! that it computes, and must be refused where it refuses them. Where we know
//! that it errs, it must still do so.
//!
//! It needs no program and so always runs. Its SEV and SEV-ES measurements need
//! OpenSSL and are left out; their parts, save areas and hashes table, are the
//! same as SEV-SNP's.

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

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use assay_measure::VcpuProfile;
use assay_measure::vcpus::SaveAreas;
use assay_tee::GuestFeatures;
use assay_tee::cpu::CpuModel;
use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::vmsa::Vmm;
use launch::{KernelFiles, Launch, Mode, firmware_files};
use random::Random;
use sev::measurement::snp::{
    SnpLaunchDigest, SnpMeasurementArgs, calc_snp_ovmf_hash, snp_calc_launch_digest,
};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures as SevGuestFeatures, VMMType, VMSA};
use synthetic_firmware::{SyntheticFirmware, build_firmware};
use zerocopy::IntoBytes as _;

/// Models whose signatures the crate knows, one for each signature.
const MODELS: [(&str, CpuType); 5] = [
    ("EPYC-v4", CpuType::EpycV4),
    ("EPYC-Rome", CpuType::EpycRome),
    ("EPYC-Milan", CpuType::EpycMilan),
    ("EPYC-Genoa", CpuType::EpycGenoa),
    ("EPYC-Turin", CpuType::EpycTurin),
];

fn cpu_type(launch: &Launch) -> CpuType {
    CpuType::try_from(i32::try_from(launch.cpu.0).unwrap()).unwrap()
}

/// The crate's VMM. Its EC2 is that of before April 2026.
fn vmm_type(vmm: Vmm) -> VMMType {
    match vmm {
        Vmm::Qemu => VMMType::QEMU,
        Vmm::Ec2 | Vmm::Ec2BeforeRdx => VMMType::EC2,
        Vmm::Krun => VMMType::KRUN,
        other => panic!("the sev crate does not know {other:?}"),
    }
}

fn oracle(launch: &Launch, directory: &Path) -> Result<String, String> {
    let files = launch.write_files(directory);
    let digest = match launch.mode {
        Mode::SnpOvmfHash => calc_snp_ovmf_hash(files.ovmf),
        Mode::Snp => {
            let kernel = launch.kernel.as_ref();
            let ovmf_hash = launch.firmware_digest.map(|digest| digest.to_hex());
            snp_calc_launch_digest(SnpMeasurementArgs {
                vcpus: launch.vcpus,
                vcpu_type: cpu_type(launch),
                ovmf_file: files.ovmf,
                guest_features: SevGuestFeatures(launch.features),
                kernel_file: files.kernel,
                initrd_file: files.initrd,
                append: kernel.and_then(|files| files.cmdline.as_deref()),
                ovmf_hash_str: ovmf_hash.as_deref(),
                vmm_type: Some(vmm_type(launch.vmm)),
            })
        }
        other => panic!("the sev crate does not measure {other:?} without OpenSSL"),
    };
    digest
        .map(SnpLaunchDigest::get_hex_ld)
        .map_err(|error| error.to_string())
}

#[test]
fn random_launches_have_the_oracles_digest() {
    let cases = std::env::var("ASSAY_ORACLE_CASES").map_or(400, |cases| cases.parse().unwrap());
    let modes = [Mode::Snp, Mode::Snp, Mode::Snp, Mode::SnpOvmfHash];
    let vmms = [Vmm::Qemu, Vmm::Ec2BeforeRdx, Vmm::Krun];
    let files = firmware_files();
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(0x05e7_c4a7);
    let mut refused = 0;
    for case in 0..cases {
        let launch = Launch::random(&mut random, &files, &modes, &vmms);
        match (launch.measure(), oracle(&launch, directory.path())) {
            (Err(_), Err(_)) => refused += 1,
            (ours, theirs) => assert_eq!(ours, theirs, "launch {case}: {}", launch.describe()),
        }
    }
    assert!(
        refused < cases / 10,
        "{refused} of {cases} launches are impossible"
    );
}

#[test]
fn save_areas_are_the_oracles_byte_for_byte() {
    const RESET_EIP: u32 = 0x80_b004;
    for (model, cpu_type) in MODELS {
        for vmm in [Vmm::Qemu, Vmm::Ec2BeforeRdx, Vmm::Krun] {
            for features in [1, 0x21, u64::MAX] {
                let profile = VcpuProfile {
                    vmm,
                    cpu_signature: CpuModel::by_name(model).unwrap().signature(),
                    guest_features: GuestFeatures(features),
                };
                let ours = SaveAreas::snp(&profile, Some(RESET_EIP));
                let features = SevGuestFeatures(features);
                let eip = RESET_EIP.into();
                let theirs = VMSA::new(eip, cpu_type, vmm_type(vmm), Some(2), features);
                let pages = theirs.pages(2).unwrap();
                for (index, page) in (0..).zip(pages) {
                    let ours = ours.get(index).unwrap().as_bytes();
                    assert!(ours == page, "{model}, {vmm:?}, vCPU {index}");
                }
            }
        }
    }
}

/// A launch that the crate measures in another way, for a reason.
struct KnownDifference {
    reason: &'static str,
    /// Where its authors or ours look it up.
    reference: &'static str,
    launch: Launch,
    theirs: Theirs,
    /// Part of our refusal; `None` where our digest is another one.
    ours: Option<&'static str>,
}

#[derive(Debug, PartialEq, Eq)]
enum Theirs {
    Measured,
    Panic,
}

fn known_differences() -> Vec<KnownDifference> {
    let section = |gpa, size, kind| Section { gpa, size, kind };
    let memory = section(0x80_0000, 0x2000, SectionKind::SecMem);
    let hashes = section(0x81_0000, 0x1000, SectionKind::KernelHashes);
    let firmware = |sections: &[Section], reset_eip| {
        build_firmware(&SyntheticFirmware {
            pages: 2,
            filler: 7,
            sections,
            reset_eip,
            hashes_table_gpa: 0x81_0c00,
        })
    };
    let snp = |sections: &[Section]| Launch::plain(Mode::Snp, firmware(sections, 0x80_b004));
    vec![
        KnownDifference {
            reason: "EC2 has put 0x600 into RDX since April 2026",
            reference: "virtee/sev-snp-measure PR 60; virtee/sev 8.0.0 src/measurement/vmsa.rs",
            launch: Launch {
                vmm: Vmm::Ec2,
                ..snp(&[memory, hashes])
            },
            theirs: Theirs::Measured,
            ours: None,
        },
        KnownDifference {
            reason: "blanks around the command line are cut off, which QEMU does not do",
            reference: "virtee/sev 8.0.0 src/measurement/sev_hashes.rs, SevHashes::new",
            launch: Launch {
                kernel: Some(KernelFiles {
                    kernel: b"kernel".to_vec(),
                    initrd: None,
                    cmdline: Some("a b ".to_owned()),
                }),
                ..snp(&[memory, hashes])
            },
            theirs: Theirs::Measured,
            ours: None,
        },
        KnownDifference {
            reason: "without an address for them application processors are left out",
            reference: "virtee/sev 8.0.0 src/measurement/vmsa.rs, VMSA::pages",
            launch: Launch {
                vcpus: 4,
                ..Launch::plain(Mode::Snp, firmware(&[memory, hashes], 0))
            },
            theirs: Theirs::Measured,
            ours: Some("names no address for application processors"),
        },
        KnownDifference {
            reason: "a guest without virtual CPUs has a digest",
            reference: "virtee/sev 8.0.0 src/measurement/snp.rs checks no number",
            launch: Launch {
                vcpus: 0,
                ..snp(&[memory, hashes])
            },
            theirs: Theirs::Measured,
            ours: Some("vcpus must be between 1 and 512"),
        },
        KnownDifference {
            reason: "SEV-SNP guests without SNPActive have a digest",
            reference: "virtee/sev 8.0.0 src/measurement/snp.rs checks no features",
            launch: Launch {
                features: 0x20,
                ..snp(&[memory, hashes])
            },
            theirs: Theirs::Measured,
            ours: Some("lack bit 0 (SNPActive)"),
        },
        KnownDifference {
            reason: "only the lowest byte of a section's type is read",
            reference: "virtee/sev 8.0.0 src/measurement/ovmf.rs, Decoder for SectionType",
            launch: snp(&[
                memory,
                section(0x80_4000, 0x1000, SectionKind::Unknown(0x101)),
            ]),
            theirs: Theirs::Measured,
            ours: Some("has unknown type 0x101"),
        },
        KnownDifference {
            reason: "sections may overlap",
            reference: "virtee/sev 8.0.0 src/measurement/ovmf.rs checks no section",
            launch: snp(&[memory, section(0x80_1000, 0x1000, SectionKind::SnpSecrets)]),
            theirs: Theirs::Measured,
            ours: Some("overlaps section 0"),
        },
        KnownDifference {
            reason: "a file shorter than the footer's place is sliced before its start",
            reference: "virtee/sev 8.0.0 src/measurement/ovmf.rs, parse_footer_table",
            launch: Launch::plain(Mode::Snp, vec![0; 10]),
            theirs: Theirs::Panic,
            ours: Some("must be a multiple of 4096"),
        },
    ]
}

#[test]
fn known_differences_are_still_there() {
    let directory = tempfile::tempdir().unwrap();
    for difference in known_differences() {
        let KnownDifference {
            reason,
            reference,
            launch,
            theirs: expected,
            ours: refusal,
        } = difference;
        let why = format!("{reason} ({reference})");
        let theirs = catch_unwind(AssertUnwindSafe(|| oracle(&launch, directory.path())));
        let kind = match &theirs {
            Ok(outcome) => {
                assert!(
                    outcome.is_ok(),
                    "it refuses the launch now: {why}: {outcome:?}"
                );
                Theirs::Measured
            }
            Err(_) => Theirs::Panic,
        };
        assert_eq!(kind, expected, "{why}");
        match (launch.measure(), refusal) {
            (Ok(ours), None) => {
                assert_ne!(Ok(ours), theirs.unwrap(), "no longer different: {why}");
            }
            (Err(error), Some(message)) => assert!(error.contains(message), "{why}: {error}"),
            (ours, _) => panic!("{why}: {ours:?}"),
        }
    }
}
