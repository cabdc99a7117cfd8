//! IGVM files that we write: what they hold, that every tool measures them the
//! same, and what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

#[path = "../../measure/tests/support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::collections::BTreeMap;
use std::io::Write as _;

use assay_image::igvm::{
    EMBEDDED_KERNEL_GPA, EncodeIgvmError, IgvmKernel, IgvmSpec, MeasureSelfContainedError,
    encode_igvm, measure_self_contained,
};
use assay_measure::igvm::{IgvmLaunch, measure_igvm_snp, qemu_refuses};
use assay_measure::vcpus::NoResetAddressError;
use assay_measure::{MeasureError, MeasurementInputs, measure_snp};
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::igvm::{Directive, PageDataType, PlatformType, parse_igvm};
use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::vmsa::{KVM_VMSA_GPA, Vcpu, Vmm, build_vmsa};
use assay_tee::{
    BootMethod, GuestFeatures, GuestPolicy, LaunchDigest, LaunchShape, Sha256Digest, Tee, VcpuCount,
};
use bytes::Bytes;
use igvm::measurement::generate_snp_measurement;
use synthetic_firmware::{
    HASH_GUIDS, IGVM_DATA_HOB, SyntheticFirmware, build_firmware, build_igvm_firmware,
};

const PAGE: u64 = 4096;
const RESET_EIP: u32 = 0x80_b004;
const AREAS: [[u32; 3]; 4] = [
    [0x81_2000, 0x1000, 0x100],
    [0, 0xc0, 0x101],
    [0xc0, 0x10, 0x102],
    [0x81_3000, 0x1000, 0x200],
];

const fn section(gpa: u32, size: u32, kind: SectionKind) -> Section {
    Section { gpa, size, kind }
}

const SECTIONS: [Section; 6] = [
    section(0x80_0000, 0x3000, SectionKind::SecMem),
    section(0x80_d000, 0x1000, SectionKind::SnpSecrets),
    section(0x80_e000, 0x1000, SectionKind::Cpuid),
    section(0x80_f000, 0x1000, SectionKind::SvsmCaa),
    section(0x81_1000, 0x4000, SectionKind::SecMem),
    section(0x81_0000, 0x1000, SectionKind::KernelHashes),
];

fn synthetic(sections: &[Section]) -> SyntheticFirmware<'_> {
    SyntheticFirmware {
        pages: 3,
        filler: 0xf4,
        sections,
        reset_eip: RESET_EIP,
        hashes_table_gpa: 0x81_0c00,
    }
}

fn firmware() -> Bytes {
    build_igvm_firmware(&synthetic(&SECTIONS), &AREAS).into()
}

fn signature(model: &str) -> CpuSignature {
    CpuModel::by_name(model).unwrap().signature()
}

fn hashes() -> KernelHashes {
    KernelHashes::from_bytes(b"uki", None, "")
}

fn spec<'a>(firmware: &'a Bytes, kernel: IgvmKernel<'a>, vcpus: u32) -> IgvmSpec<'a> {
    IgvmSpec {
        firmware,
        kernel,
        vcpus: VcpuCount::try_from(vcpus).unwrap(),
        cpu_signature: signature("EPYC-v4"),
        guest_features: GuestFeatures(GuestFeatures::SNP_ACTIVE),
        policy: GuestPolicy::default(),
    }
}

fn encode(spec: &IgvmSpec<'_>) -> Bytes {
    encode_igvm(spec).unwrap().to_bytes()
}

/// The digest by our own measurement with the rules of each loader, which must
/// agree with each other and with the `igvm` crate.
#[track_caller]
fn digest(file: &[u8], vcpus: u32) -> LaunchDigest {
    let parsed = parse_igvm(file).unwrap();
    assert!(qemu_refuses(&parsed).is_empty());
    let vcpus = VcpuCount::try_from(vcpus).unwrap();
    let by = |launch| measure_igvm_snp(&parsed, &launch).unwrap().digest;
    let digest = by(IgvmLaunch::Qemu { vcpus, reset: None });
    assert_eq!(by(IgvmLaunch::FileOrder), digest);
    assert_eq!(by(IgvmLaunch::Igvmmeasure), digest);
    let theirs = igvm::IgvmFile::new_from_binary(file, None).unwrap();
    let oracle =
        generate_snp_measurement(theirs.initializations(), theirs.directives(), 1).unwrap();
    assert_eq!(LaunchDigest::new(oracle), digest);
    digest
}

#[test]
fn every_tool_measures_the_same() {
    let firmware = firmware();
    let uki = Bytes::from([&[7; 4096][..], &[0; 8192], &[9; 100]].concat());
    for vcpus in [1, 2, 17, 512] {
        let verified = encode(&spec(&firmware, IgvmKernel::Verified(hashes()), vcpus));
        let embedded = encode(&spec(&firmware, IgvmKernel::Embedded(&uki), vcpus));
        assert_ne!(digest(&verified, vcpus), digest(&embedded, vcpus));
    }
}

fn inputs(firmware: &Bytes, uki: &Bytes) -> MeasurementInputs {
    let hashes = KernelHashes::from_bytes(uki, None, "");
    MeasurementInputs {
        igvm_digest: Some(measure_self_contained(firmware, uki).unwrap()),
        ..MeasurementInputs::from_bytes(firmware, Some(hashes)).unwrap()
    }
}

/// What the operator publishes is what every tool measures of the file itself.
#[test]
fn a_shape_s_digest_is_that_of_its_file() {
    let firmware = firmware();
    let uki = Bytes::from([&[7; 4096][..], &[0; 8192], &[9; 100]].concat());
    let inputs = inputs(&firmware, &uki);
    let digest_of = |shape: &LaunchShape| measure_snp(&inputs, shape).unwrap().digest;
    for (vcpus, model, features) in [
        (1, "EPYC-v4", 1),
        (3, "EPYC-Genoa", 1),
        (2, "EPYC-v4", 0x21),
    ] {
        let spec = IgvmSpec {
            cpu_signature: signature(model),
            guest_features: GuestFeatures(features),
            ..spec(&firmware, IgvmKernel::Embedded(&uki), vcpus)
        };
        let shape = |boot| LaunchShape {
            tee: Tee::Snp,
            boot,
            vcpus: spec.vcpus,
            cpu_model: model.to_owned(),
            guest_features: spec.guest_features,
        };
        let expected = digest(&encode(&spec), vcpus);
        assert_eq!(digest_of(&shape(BootMethod::Igvm)), expected);
        assert_ne!(digest_of(&shape(BootMethod::DirectKernel)), expected);
    }
    let knows_no_files = Bytes::from(build_firmware(&synthetic(&SECTIONS)));
    assert_eq!(
        measure_self_contained(&knows_no_files, &uki),
        Err(MeasureSelfContainedError::Encode(
            EncodeIgvmError::NoHobArea
        ))
    );
}

#[test]
fn a_shape_that_no_processor_starts_has_no_digest() {
    let uki = Bytes::from_static(b"uki");
    let one_cpu = SyntheticFirmware {
        reset_eip: 0,
        ..synthetic(&SECTIONS)
    };
    let one_cpu = Bytes::from(build_igvm_firmware(&one_cpu, &AREAS));
    let inputs = inputs(&one_cpu, &uki);
    let refused = |shape: &LaunchShape| measure_snp(&inputs, shape).unwrap_err();
    let good = LaunchShape {
        tee: Tee::Snp,
        boot: BootMethod::Igvm,
        vcpus: VcpuCount::ONE,
        cpu_model: "EPYC-v4".to_owned(),
        guest_features: GuestFeatures::default(),
    };
    assert!(measure_snp(&inputs, &good).is_ok());
    let two = LaunchShape {
        vcpus: VcpuCount::try_from(2).unwrap(),
        ..good.clone()
    };
    assert_eq!(
        refused(&two),
        MeasureError::NoResetAddress(NoResetAddressError { vcpus: 2 })
    );
    let inactive = LaunchShape {
        guest_features: GuestFeatures(0x20),
        ..good.clone()
    };
    assert_eq!(
        refused(&inactive),
        MeasureError::SnpNotActive { features: 0x20 }
    );
    let host = LaunchShape {
        cpu_model: "host".to_owned(),
        ..good.clone()
    };
    assert!(matches!(refused(&host), MeasureError::CpuModel(_)));
    let no_file = MeasurementInputs {
        igvm_digest: None,
        ..inputs.clone()
    };
    assert_eq!(
        measure_snp(&no_file, &good).unwrap_err(),
        MeasureError::NoIgvmFile
    );
}

/// Firmware of Debian's, and what people launch it with.
#[test]
fn every_tool_measures_real_firmware_the_same() {
    let Some(paths) = std::env::var_os("ASSAY_ORACLE_FIRMWARE") else {
        let why = "ASSAY_ORACLE_FIRMWARE is not set (cargo xtask programs)";
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED IGVM files of real firmware: {why}"
        );
        return;
    };
    let uki: Bytes = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut measured = 0;
    for path in std::env::split_paths(&paths) {
        let firmware = Bytes::from(std::fs::read(&path).unwrap());
        for (vcpus, model, features) in [
            (1, "EPYC-Milan", 0x1),
            (2, "EPYC-Genoa", 0x1),
            (64, "EPYC-Turin", 0x21),
        ] {
            for kernel in [
                IgvmKernel::Verified(KernelHashes::from_bytes(&uki, None, "")),
                IgvmKernel::Embedded(&uki),
            ] {
                let spec = IgvmSpec {
                    cpu_signature: signature(model),
                    guest_features: GuestFeatures(features),
                    ..spec(&firmware, kernel, vcpus)
                };
                match encode_igvm(&spec) {
                    Ok(file) => {
                        let file = file.to_bytes();
                        digest(&file, vcpus);
                        assert_eq!(
                            encode(&spec),
                            file,
                            "the same specification, the same bytes"
                        );
                        measured += 1;
                    }
                    // Debian's generic build, and the one for TDX.
                    Err(
                        EncodeIgvmError::NoHashesTable
                        | EncodeIgvmError::NoHobArea
                        | EncodeIgvmError::UnverifyingFirmware,
                    ) => {}
                    Err(error) => panic!("{}: {error}", path.display()),
                }
            }
        }
    }
    assert!(measured >= 6);
}

/// The writer's bytes: a change here changes published launch digests, and is
/// listed under `MEASUREMENT` in the changelog.
#[test]
fn the_bytes_are_known() {
    let firmware = firmware();
    let uki = Bytes::from_static(b"uki");
    let known = |kernel| {
        let file = encode(&spec(&firmware, kernel, 2));
        (Sha256Digest::of(&file).to_hex(), digest(&file, 2).to_hex())
    };
    for (kernel, file, digest) in [
        (
            IgvmKernel::Verified(hashes()),
            "23b92d424b6e805612e97e452a31122495c0dcc3a873741a594bfbaf67246afb",
            "6c724772b7e075b617793b4d7e4345494c806762767b1c0661de24d954b712e3\
             b5b3558b55dbf7aeb41fec94961e0f8d",
        ),
        (
            IgvmKernel::Embedded(&uki),
            "e33bfb72e8e55bf262a45004b5ae368d14a057543c9a7d19809afe85e5b550a0",
            "3a2e1d2d0ac73944617f1d2540e34ce8844217ca6d84843b50ecad9878385bcd\
             81704867399b1c279072969510b7c421",
        ),
    ] {
        assert_eq!(known(kernel), (file.to_owned(), digest.to_owned()));
    }
}

/// What guests find in their memory, page by page.
#[test]
fn the_guest_finds_what_it_expects() {
    let firmware = firmware();
    let uki = Bytes::from([&[7; 4096][..], &[0; 4096], &[9; 100]].concat());
    let file = encode(&spec(&firmware, IgvmKernel::Embedded(&uki), 3));
    let parsed = parse_igvm(&file).unwrap();
    let mask = |platform| parsed.platform(platform).unwrap().compatibility_mask;
    let (snp, native) = (mask(PlatformType::SevSnp), mask(PlatformType::Native));
    parsed.check_overlaps(snp).unwrap();
    parsed.check_overlaps(native).unwrap();

    let pages: BTreeMap<_, _> = parsed
        .directives_for(snp)
        .filter_map(|directive| match directive {
            Directive::PageData(page) => Some((page.gpa, page)),
            _ => None,
        })
        .collect();
    let kinds: BTreeMap<_, _> = pages
        .values()
        .filter(|page| page.data_type != PageDataType::Normal)
        .map(|page| (page.gpa, page.data_type))
        .collect();
    let expected = [
        (0x80_d000, PageDataType::Secrets),
        (0x80_e000, PageDataType::CpuidData),
    ];
    assert_eq!(kinds, expected.into());
    // The parameter area is the loader's.
    assert!(!pages.contains_key(&0x81_2000));
    assert!(pages.contains_key(&0x81_1000) && pages.contains_key(&0x81_4000));
    // No kernel is handed over, so nothing is there to verify one with.
    assert_eq!(pages[&0x81_0000].contents, None);
    assert_eq!(pages[&EMBEDDED_KERNEL_GPA].contents, Some(&[7; 4096][..]));
    assert_eq!(pages[&(EMBEDDED_KERNEL_GPA + PAGE)].contents, None);
    let last = pages[&(EMBEDDED_KERNEL_GPA + 2 * PAGE)].contents.unwrap();
    assert_eq!(&last[..101], [&[9; 100][..], &[0]].concat());
    // The list that leads to the kernel.
    let list = pages[&0x81_3000].contents.unwrap();
    assert_eq!(&list[..8], [4, 0, 48, 0, 0, 0, 0, 0]);
    assert_eq!(list[24..32], EMBEDDED_KERNEL_GPA.to_le_bytes());
    assert_eq!(list[32..40], (uki.len() as u64).to_le_bytes());
    assert_eq!(list[40..44], 0x201_u32.to_le_bytes());
    assert_eq!(list[48..52], [0xff, 0xff, 8, 0]);

    // Without protection there are no pages of the processor's, and no save area.
    for directive in parsed.directives_for(native) {
        match directive {
            Directive::PageData(page) => assert_eq!(page.data_type, PageDataType::Normal),
            Directive::VpContext(_) => panic!("a save area without protection"),
            _ => {}
        }
    }
    let contexts: Vec<_> = parsed
        .directives
        .iter()
        .filter_map(|directive| match directive {
            Directive::VpContext(context) => Some((context.vp_index, context.gpa, context.state)),
            _ => None,
        })
        .collect();
    assert_eq!(contexts.len(), 3);
    let vmsa = |vcpu| {
        let features = GuestFeatures(GuestFeatures::SNP_ACTIVE);
        build_vmsa(Vmm::Qemu, vcpu, signature("EPYC-v4"), features)
    };
    let application = vmsa(Vcpu::Application {
        reset_eip: RESET_EIP,
    });
    for (index, (vp_index, gpa, state)) in contexts.into_iter().enumerate() {
        let expected = if index == 0 {
            vmsa(Vcpu::Boot)
        } else {
            application.clone()
        };
        assert_eq!(usize::from(vp_index), index);
        assert_eq!(gpa, KVM_VMSA_GPA);
        assert_eq!(state, assay_tee::igvm::VpState::Vmsa(&expected));
    }
}

/// A changed part changes the digest; the rest of the file stays.
#[test]
fn every_input_counts() {
    let firmware = firmware();
    let kernel = || IgvmKernel::Verified(hashes());
    let good = spec(&firmware, kernel(), 2);
    let reference = digest(&encode(&good), 2);
    let mut changed = firmware.to_vec();
    changed[5000] ^= 1;
    let changed = Bytes::from(changed);
    let other = KernelHashes::from_bytes(b"uki!", None, "");
    for (what, other) in [
        ("firmware", spec(&changed, kernel(), 2)),
        ("kernel", spec(&firmware, IgvmKernel::Verified(other), 2)),
        (
            "model",
            IgvmSpec {
                cpu_signature: signature("EPYC-Genoa"),
                ..good.clone()
            },
        ),
        (
            "features",
            IgvmSpec {
                guest_features: GuestFeatures(0x21),
                ..good.clone()
            },
        ),
    ] {
        assert_ne!(digest(&encode(&other), 2), reference, "{what}");
    }
    let policy = IgvmSpec {
        policy: GuestPolicy(0xb_0000),
        ..good.clone()
    };
    assert_ne!(encode(&policy), encode(&good));
    assert_eq!(
        digest(&encode(&policy), 2),
        reference,
        "no part of the digest"
    );
}

#[test]
fn what_would_not_boot_is_refused() {
    let uki = Bytes::from_static(b"uki");
    let verified = || IgvmKernel::Verified(hashes());
    let embedded = || IgvmKernel::Embedded(&uki);
    let refuse =
        |firmware: &Bytes, kernel, vcpus| encode_igvm(&spec(firmware, kernel, vcpus)).unwrap_err();
    let with = |sections: &[Section], areas: &[[u32; 3]]| {
        Bytes::from(build_igvm_firmware(&synthetic(sections), areas))
    };

    assert!(matches!(
        refuse(&Bytes::from_static(&[0; 4096]), verified(), 1),
        EncodeIgvmError::Firmware(_)
    ));
    assert!(matches!(
        refuse(&with(&SECTIONS, &[[1, 2, 0x100]]), verified(), 1),
        EncodeIgvmError::Areas(_)
    ));
    assert_eq!(
        refuse(&with(&[], &AREAS), embedded(), 1),
        EncodeIgvmError::NoSevMetadata
    );
    let unknown = section(0x90_0000, 0x1000, SectionKind::Unknown(0x77));
    assert_eq!(
        refuse(
            &with(&[&SECTIONS[..], &[unknown]].concat(), &AREAS),
            verified(),
            1
        ),
        EncodeIgvmError::UnknownSection {
            index: 6,
            kind: 0x77
        }
    );
    assert_eq!(
        refuse(&with(&SECTIONS[..5], &AREAS), verified(), 1),
        EncodeIgvmError::NoHashesTable
    );
    let knows_no_files = Bytes::from(build_firmware(&synthetic(&SECTIONS)));
    assert_eq!(
        refuse(&knows_no_files, embedded(), 1),
        EncodeIgvmError::NoHobArea
    );
    let alone = Bytes::from(build_igvm_firmware(
        &SyntheticFirmware {
            reset_eip: 0,
            ..synthetic(&SECTIONS)
        },
        &AREAS,
    ));
    assert_eq!(
        refuse(&alone, verified(), 2),
        EncodeIgvmError::NoResetAddress(NoResetAddressError { vcpus: 2 })
    );
    encode(&spec(&alone, verified(), 1));
    let taken = section(0x81_2000, 0x1000, SectionKind::SnpSecrets);
    assert_eq!(
        refuse(&with(&[SECTIONS[0], taken], &AREAS), embedded(), 1),
        EncodeIgvmError::Overlap { gpa: 0x81_2000 }
    );
    let mut mute = firmware().to_vec();
    let (hash, hob) = (*HASH_GUIDS[1].as_bytes(), *IGVM_DATA_HOB.as_bytes());
    let mut replace = |guid: [u8; 16], by: [u8; 16]| {
        let at = mute.windows(16).position(|bytes| bytes == guid).unwrap();
        mute[at..at + 16].copy_from_slice(&by);
        Bytes::from(mute.clone())
    };
    let generic = replace(hash, [1; 16]);
    assert_eq!(
        refuse(&generic, embedded(), 1),
        EncodeIgvmError::UnverifyingFirmware
    );
    assert_eq!(
        refuse(&generic, verified(), 1),
        EncodeIgvmError::NoHashesTable
    );
    replace([1; 16], hash);
    assert_eq!(
        refuse(&replace(hob, [2; 16]), embedded(), 1),
        EncodeIgvmError::NoHobReader
    );
    // Never touched, so it takes no memory.
    let len = (2 << 30) - EMBEDDED_KERNEL_GPA - (128 << 20) + 1;
    let large = Bytes::from(vec![0; usize::try_from(len).unwrap()]);
    assert_eq!(
        refuse(&firmware(), IgvmKernel::Embedded(&large), 1),
        EncodeIgvmError::KernelTooLarge { len }
    );
}

/// Memory that is missing makes QEMU refuse the file, or the firmware hang.
#[test]
fn the_memory_that_a_guest_needs_is_known() {
    let uki = Bytes::from(vec![0; 5000]);
    assert_eq!(IgvmKernel::Verified(hashes()).min_memory(), 0);
    assert_eq!(
        IgvmKernel::Embedded(&uki).min_memory(),
        EMBEDDED_KERNEL_GPA + 2 * PAGE + (128 << 20)
    );
}
