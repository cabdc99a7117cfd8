//! Seeded faults are named, and what is no fault of this kind is not.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

#[path = "support/synthetic_firmware.rs"]
mod synthetic_firmware;

use assay_measure::explain::{
    Area, Change, CmdlineChange, Explanation, Gap, Known, Launch, MAX_KNOWN, Part, Question,
};
use assay_measure::{MeasurementInputs, VcpuProfile, explain};
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::vmsa::Vmm;
use assay_tee::{BootMethod, GuestFeatures, LaunchDigest, Sha256Digest, VcpuCount};
use proptest::prelude::*;
use synthetic_firmware::{SyntheticFirmware, build_firmware};

const CMDLINE: &str = "console=ttyS0 root=/dev/vda ro quiet";

const fn section(gpa: u32, size: u32, kind: SectionKind) -> Section {
    Section { gpa, size, kind }
}

/// The sections of edk2's AmdSev build.
const AMD_SEV: [Section; 7] = [
    section(0x80_0000, 0x9000, SectionKind::SecMem),
    section(0x80_a000, 0x3000, SectionKind::SecMem),
    section(0x80_d000, 0x1000, SectionKind::SnpSecrets),
    section(0x80_e000, 0x1000, SectionKind::Cpuid),
    section(0x80_f000, 0x1000, SectionKind::SvsmCaa),
    section(0x81_1000, 0xf000, SectionKind::SecMem),
    section(0x81_0000, 0x1000, SectionKind::KernelHashes),
];

/// An image: firmware filled with `firmware`, and a kernel named `kernel`.
fn image(firmware: u8, kernel: &str, initrd: Option<&str>, cmdline: &str) -> MeasurementInputs {
    let firmware = build_firmware(&SyntheticFirmware {
        pages: 2,
        filler: firmware,
        sections: &AMD_SEV,
        reset_eip: 0x80_b004,
        hashes_table_gpa: 0x81_0c00,
    });
    let hashes = KernelHashes::from_bytes(kernel.as_bytes(), initrd.map(str::as_bytes), cmdline);
    let mut inputs = MeasurementInputs::from_bytes(&firmware, Some(hashes)).unwrap();
    inputs.cmdline = Some(cmdline.to_owned());
    inputs
}

/// Firmware filled with `filler`, alone.
fn firmware(filler: u8) -> MeasurementInputs {
    MeasurementInputs {
        kernel_hashes: None,
        cmdline: None,
        igvm_digest: None,
        ..image(filler, "", None, "")
    }
}

fn profile(model: &str) -> VcpuProfile {
    VcpuProfile {
        vmm: Vmm::Qemu,
        cpu_signature: CpuModel::by_name(model).unwrap().signature(),
        guest_features: GuestFeatures::default(),
    }
}

fn expected() -> Launch {
    Launch {
        inputs: image(0xf4, "kernel", Some("initrd"), CMDLINE),
        boot: BootMethod::DirectKernel,
        profile: profile("EPYC-v4"),
        vcpus: count(4),
    }
}

fn count(count: u32) -> VcpuCount {
    VcpuCount::try_from(count).unwrap()
}

fn known() -> Vec<Known> {
    let known = |name: &str, inputs| Known {
        name: name.to_owned(),
        inputs,
    };
    vec![
        known(
            "shop/web-2",
            image(0xf4, "kernel 2", Some("initrd 2"), CMDLINE),
        ),
        known("shop/api", image(0x33, "api", None, "")),
        known("OVMF-old.fd", firmware(0x77)),
    ]
}

fn ask(observed: LaunchDigest, expected: &Launch) -> Explanation {
    explain(&Question {
        observed,
        expected,
        known: &known(),
        tokens: &["systemd.unit=rescue.target".to_owned()],
    })
}

/// What went wrong.
type Fault = fn(&mut Launch);

fn boot(launch: &mut Launch, change: fn(&mut KernelHashes)) {
    change(launch.inputs.kernel_hashes.as_mut().unwrap());
}

/// Hashes another command line, whatever its terminator.
fn cmdline(launch: &mut Launch, bytes: &[u8]) {
    launch.inputs.kernel_hashes.as_mut().unwrap().cmdline = Sha256Digest::of(bytes);
}

#[test]
fn seeded_faults_are_named() {
    let faults: Vec<(Fault, &str)> = vec![
        (|_| {}, "equals what was expected"),
        (
            |launch| launch.vcpus = count(2),
            "equals this image with 2 vCPUs instead of 4",
        ),
        (
            |launch| launch.vcpus = count(1),
            "equals this image with 1 vCPU instead of 4",
        ),
        (
            |launch| launch.vcpus = count(512),
            "equals this image with 512 vCPUs instead of 4",
        ),
        (
            |launch| launch.profile = profile("EPYC-Genoa"),
            "equals this image on EPYC-Genoa, EPYC-Genoa-v1 or EPYC-Genoa-v2",
        ),
        (
            |launch| {
                launch.profile = profile("EPYC-Turin");
                launch.vcpus = count(64);
            },
            "equals this image on EPYC-Turin, EPYC-Turin-v1 or EPYC-Turin-v2 with 64 vCPUs \
             instead of 4",
        ),
        (
            |launch| launch.profile.guest_features = GuestFeatures(0x21),
            "equals this image with guest features 0x21 (SNPActive,DebugSwap) instead of 0x1 \
             (SNPActive)",
        ),
        (
            |launch| {
                launch.profile = profile("EPYC-Milan");
                launch.profile.vmm = Vmm::QemuBeforeInit2;
                launch.profile.guest_features = GuestFeatures(0x21);
                launch.vcpus = count(3);
            },
            "equals this image on EPYC-Milan, EPYC-Milan-v1, EPYC-Milan-v2 or EPYC-Milan-v3 \
             started by QEMU on a Linux before 6.10 with guest features 0x21 \
             (SNPActive,DebugSwap) instead of 0x1 (SNPActive) with 3 vCPUs instead of 4",
        ),
        (
            |launch| launch.profile.vmm = Vmm::QemuBeforeInit2,
            "equals this image started by QEMU on a Linux before 6.10",
        ),
        (
            |launch| launch.profile.vmm = Vmm::Gce,
            "equals this image started by Google Compute Engine",
        ),
        (
            |launch| launch.inputs.firmware = firmware(0x77).firmware,
            "equals this image with the firmware of OVMF-old.fd",
        ),
        (
            |launch| {
                launch.inputs.firmware = firmware(0x77).firmware;
                launch.vcpus = count(8);
            },
            "equals this image with the firmware of OVMF-old.fd with 8 vCPUs instead of 4",
        ),
        (
            |launch| boot(launch, |hashes| hashes.initrd = Sha256Digest::of(b"")),
            "equals this image with the initrd left out",
        ),
        (
            |launch| {
                boot(launch, |hashes| {
                    hashes.initrd = Sha256Digest::of(b"initrd 2");
                });
            },
            "equals this image with the initrd of shop/web-2",
        ),
        (
            |launch| {
                boot(launch, |hashes| {
                    hashes.kernel = Sha256Digest::of(b"kernel 2");
                });
            },
            "equals this image with the kernel of shop/web-2",
        ),
        (
            |launch| launch.inputs.kernel_hashes = None,
            "equals this image booted without kernel hashes",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda ro quiet\n\0"),
            "equals this image with the command line ended by a newline",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda ro quiet \0"),
            "equals this image with the command line ended by a blank",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda ro quiet"),
            "equals this image with the command line hashed without its NUL",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda ro\0"),
            "equals this image without the word quiet",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 ro quiet\0"),
            "equals this image without the word root=/dev/vda",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda ro quiet nokaslr\0"),
            "equals this image with the word nokaslr added",
        ),
        (
            |launch| {
                cmdline(
                    launch,
                    b"console=ttyS0 systemd.unit=rescue.target root=/dev/vda ro quiet\0",
                );
            },
            "equals this image with the word systemd.unit=rescue.target added before root=/dev/vda",
        ),
        (
            |launch| cmdline(launch, b"console=hvc0 root=/dev/vda ro quiet\0"),
            "equals this image with console=hvc0 instead of console=ttyS0",
        ),
        (
            |launch| {
                cmdline(launch, b"console=ttyS0 root=/dev/vda rw quiet\0");
                launch.vcpus = count(2);
            },
            "equals this image with rw instead of ro with 2 vCPUs instead of 4",
        ),
        (
            |launch| cmdline(launch, b"consoel=ttyS0 root=/dev/vda ro quiet\0"),
            "equals this image with consoel=ttyS0 instead of console=ttyS0",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS1 root=/dev/vda ro quiet\0"),
            "equals this image with console=ttyS1 instead of console=ttyS0",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vdb ro quiet\0"),
            "equals this image with root=/dev/vdb instead of root=/dev/vda",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda ro quiat\0"),
            "equals this image with quiat instead of quiet",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/xvda ro quiet\0"),
            "equals this image with root=/dev/xvda instead of root=/dev/vda",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda ro quiet.\0"),
            "equals this image with quiet. instead of quiet",
        ),
        (
            |launch| cmdline(launch, b"console=ttyMS0 root=/dev/vda ro quiet\0"),
            "equals this image with console=ttyMS0 instead of console=ttyS0",
        ),
        (
            |launch| cmdline(launch, b"console=ttyB0 root=/dev/vda ro quiet\0"),
            "equals this image with console=ttyB0 instead of console=ttyS0",
        ),
        (
            |launch| cmdline(launch, b"console=ttys0 root=/dev/vda ro quiet\0"),
            "equals this image with console=ttys0 instead of console=ttyS0",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda roquiet\0"),
            "equals this image with roquiet instead of \"ro quiet\"",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda r o quiet\0"),
            "equals this image with \"r o\" instead of ro",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0 root=/dev/vda quiet ro\0"),
            "equals this image with ro and quiet swapped",
        ),
        (
            |launch| cmdline(launch, b"quiet root=/dev/vda ro console=ttyS0\0"),
            "equals this image with console=ttyS0 and quiet swapped",
        ),
        (
            |launch| {
                cmdline(
                    launch,
                    b"console=ttyS0 root=/dev/vda root=/dev/vda ro quiet\0",
                );
            },
            "equals this image with the word root=/dev/vda twice",
        ),
        (
            |launch| cmdline(launch, b"console=ttyS0  ro quiet\0"),
            "equals this image with a blank alone in place of the word root=/dev/vda",
        ),
        (
            |launch| launch.profile.guest_features = GuestFeatures(0x209),
            "equals this image with guest features 0x209 (SNPActive,RestrictedInjection,SecureTSC) \
             instead of 0x1 (SNPActive)",
        ),
        (
            |launch| {
                launch.profile.cpu_signature = CpuSignature(0x00b0_0f21);
                launch.vcpus = count(96);
            },
            "equals this image with -cpu host on Turin with 96 vCPUs instead of 4",
        ),
        (
            |launch| {
                launch.inputs = firmware(0x77);
                launch.vcpus = count(2);
            },
            "equals this image with the firmware of OVMF-old.fd booted without kernel hashes with \
             2 vCPUs instead of 4",
        ),
        (
            |launch| launch.inputs = firmware(0x33),
            "equals image shop/api booted without kernel hashes",
        ),
        (
            |launch| {
                cmdline(launch, b"console=ttyS0 root=/dev/vda ro quiet\n\0");
                launch.profile = profile("EPYC-Rome");
            },
            "equals this image with the command line ended by a newline on EPYC-Rome, \
             EPYC-Rome-v1, EPYC-Rome-v2, EPYC-Rome-v3, EPYC-Rome-v4 or EPYC-Rome-v5",
        ),
        (
            |launch| cmdline(launch, b"\0"),
            "equals this image with an empty command line",
        ),
        (
            |launch| launch.inputs = image(0xf4, "kernel 2", Some("initrd 2"), CMDLINE),
            "equals image shop/web-2",
        ),
        (
            |launch| {
                launch.inputs = image(0x33, "api", None, "");
                launch.profile = profile("EPYC-Genoa");
                launch.vcpus = count(16);
            },
            "equals image shop/api on EPYC-Genoa, EPYC-Genoa-v1 or EPYC-Genoa-v2 with 16 vCPUs \
             instead of 4",
        ),
        (
            |launch| launch.inputs.kernel_hashes = image(0, "api", None, "").kernel_hashes,
            "equals this image with the kernel, initrd and command line of shop/api",
        ),
    ];
    for (fault, sentence) in faults {
        let expected = expected();
        let mut faulty = expected.clone();
        fault(&mut faulty);
        let observed = faulty.measure().unwrap();
        let explanation = ask(observed, &expected);
        assert_eq!(explanation.to_string(), sentence);
        check_causes(&explanation, observed);
    }
}

/// Every cause has the digest that it explains.
fn check_causes(explanation: &Explanation, observed: LaunchDigest) {
    if let Explanation::Found { causes } = explanation {
        assert!(!causes.is_empty());
        for cause in causes {
            assert!(!cause.changes.is_empty());
            assert_eq!(cause.launch.measure(), Ok(observed), "{cause}");
        }
    }
}

#[test]
fn what_is_no_neighbour_is_ruled_out() {
    let expected = expected();
    let mut other = expected.clone();
    other.inputs = image(0x99, "an unknown kernel", None, "");
    let mut two_words = expected.clone();
    cmdline(&mut two_words, b"root=/dev/vda\0");
    let mut two_slips = expected.clone();
    cmdline(&mut two_slips, b"console=ttyS0 root=/dev/vdb ro quiat\0");
    let mut three_features = expected.clone();
    three_features.profile.guest_features = GuestFeatures(0x20d);
    for launch in [other, two_words, two_slips, three_features] {
        let observed = launch.measure().unwrap();
        let explanation = ask(observed, &expected);
        let Explanation::Unexplained(ruled_out) = &explanation else {
            panic!("{explanation}")
        };
        assert_eq!(explanation, ask(observed, &expected), "deterministic");
        assert_eq!(ruled_out.gaps, []);
        let areas: Vec<Area> = ruled_out.areas.iter().map(|area| area.area).collect();
        assert_eq!(
            areas,
            [
                Area::Shape,
                Area::KernelHashes,
                Area::Initrd,
                Area::Cmdline,
                Area::Image,
                Area::Part
            ]
        );
        assert!(ruled_out.areas.iter().all(|area| area.launches > 0));
        let variants = |area| {
            let ruled_out = ruled_out
                .areas
                .iter()
                .find(|ruled_out| ruled_out.area == area);
            ruled_out.unwrap().variants
        };
        assert_eq!(variants(Area::Image), 2);
        assert_eq!(variants(Area::KernelHashes), 3);
        assert!(variants(Area::Cmdline) > 2000);
        let sentence = explanation.to_string();
        assert!(
            sentence.starts_with("equals nothing that is known; ruled out: this image in "),
            "{sentence}"
        );
        assert!(sentence.contains("2 other images ("), "{sentence}");
    }
}

/// What was not tried for a digest that nothing has.
fn gaps(expected: &Launch, known: &[Known], tokens: &[String]) -> Vec<Gap> {
    let explanation = explain(&Question {
        observed: LaunchDigest::new([0; 48]),
        expected,
        known,
        tokens,
    });
    match explanation {
        Explanation::Unexplained(ruled_out) => ruled_out.gaps,
        other => panic!("{other}"),
    }
}

#[test]
fn what_was_not_tried_is_said() {
    let mut by_hash = expected();
    by_hash.inputs.cmdline = None;
    assert_eq!(gaps(&by_hash, &[], &[]), [Gap::CmdlineUnknown]);
    // A text that is not the one that was hashed is not believed.
    by_hash.inputs.cmdline = Some("something else".to_owned());
    assert_eq!(gaps(&by_hash, &[], &[]), [Gap::CmdlineUnknown]);

    let mut huge = image(1, "kernel", None, "");
    huge.firmware.sections[0].size = 0x1000_0000;
    let known = Known {
        name: "huge".to_owned(),
        inputs: huge,
    };
    let unmeasurable = Gap::Unmeasurable {
        name: "huge".to_owned(),
    };
    assert_eq!(gaps(&expected(), &[known], &[]), [unmeasurable]);

    let gaps_of = |text: &str, tokens: &[String]| {
        let mut expected = expected();
        expected.inputs = image(1, "kernel", None, text);
        gaps(&expected, &[], tokens)
    };
    assert_eq!(gaps_of(&"x".repeat(2000), &[]), [Gap::CmdlineTooLong]);
    let words = |count: usize| vec!["x"; count].join(" ");
    assert_eq!(gaps_of(&words(64), &[]), []);
    assert_eq!(gaps_of(&words(66), &[]), [Gap::WordLimit { left_out: 2 }]);
    let tokens: Vec<String> = (0..100)
        .map(|index| format!("token{}", index % 70))
        .collect();
    assert_eq!(gaps_of("ro", &tokens), [Gap::TokenLimit { left_out: 6 }]);
}

/// As much as a shell passes in one argument: most of its words are left alone,
/// and what is done about the others is paid for.
#[test]
fn a_huge_command_line_is_bounded() {
    let mut expected = expected();
    let words: Vec<String> = (0..20_000).map(|index| format!("{index:05}")).collect();
    let text = words.join(" ");
    expected.inputs = image(1, "kernel", None, &text);
    let explanation = |observed| {
        explain(&Question {
            observed,
            expected: &expected,
            known: &[],
            tokens: &[],
        })
    };
    let unexplained = explanation(LaunchDigest::new([0; 48]));
    let Explanation::Unexplained(ruled_out) = &unexplained else {
        panic!("zeros are explained")
    };
    let sentence = unexplained.to_string();
    let not_tried = "; not tried: typing errors in so long a command line, changes of the last 19936 \
                     words of the command line, some launches with other command lines, as the limit \
                     of work was reached";
    assert!(sentence.ends_with(not_tried), "{sentence}");
    assert_eq!(
        ruled_out.gaps,
        [
            Gap::CmdlineTooLong,
            Gap::WordLimit { left_out: 19_936 },
            Gap::WorkLimit {
                area: Area::Cmdline
            }
        ]
    );
    let mut faulty = expected.clone();
    cmdline(&mut faulty, format!("{}\0", &text[6..]).as_bytes());
    assert_eq!(
        explanation(faulty.measure().unwrap()).to_string(),
        "equals this image without the word 00000"
    );
}

/// Images of their own firmware.
fn images(count: u16) -> Vec<Known> {
    let image = |index: u16| {
        let name = format!("image-{index}");
        let [high, low] = index.to_be_bytes();
        let mut inputs = image(low, &name, Some(&name), &format!("{CMDLINE} id={index}"));
        inputs.firmware.base_gpa -= u64::from(high) * 0x1000;
        Known { name, inputs }
    };
    (0..count).map(image).collect()
}

/// The bound of the work holds for twenty images and as many virtual CPUs as
/// guests usually have. Beyond, it leaves out what is said.
#[test]
fn the_work_is_bounded() {
    let gaps = |vcpus: u32, known: &[Known]| {
        let mut expected = expected();
        expected.vcpus = count(vcpus);
        gaps(&expected, known, &[])
    };
    for vcpus in [1, 4, 64] {
        assert_eq!(gaps(vcpus, &images(20)), [], "{vcpus} vCPUs");
    }
    let limit = |area| Gap::WorkLimit { area };
    assert_eq!(
        gaps(512, &images(20)),
        [
            limit(Area::Part),
            limit(Area::KernelHashes),
            limit(Area::Cmdline)
        ]
    );
    let left_out = 1000 - MAX_KNOWN;
    let first = [
        Gap::KnownLimit { left_out },
        // Each has a word of its own.
        Gap::TokenLimit {
            left_out: MAX_KNOWN + 4 - 64,
        },
        limit(Area::Image),
    ];
    assert_eq!(gaps(4, &images(1000))[..3], first);
}

/// The most virtual CPUs and a long command line leave enough for the last image.
#[test]
fn images_are_found_beside_a_long_command_line() {
    let mut expected = expected();
    let words: Vec<String> = (0..40).map(|index| format!("option.{index:02}")).collect();
    expected.inputs = image(0xf4, "kernel", Some("initrd"), &words.join(" "));
    expected.vcpus = count(512);
    let known = images(20);
    for (index, image) in known.iter().enumerate().step_by(19) {
        let launch = Launch {
            inputs: image.inputs.clone(),
            boot: BootMethod::DirectKernel,
            profile: profile("EPYC-Turin"),
            vcpus: count(7),
        };
        let explanation = explain(&Question {
            observed: launch.measure().unwrap(),
            expected: &expected,
            known: &known,
            tokens: &[],
        });
        assert_eq!(
            explanation.to_string(),
            format!(
                "equals image image-{index} on EPYC-Turin, EPYC-Turin-v1 or EPYC-Turin-v2 with 7 \
                 vCPUs instead of 512"
            )
        );
    }
}

/// Images of which there are IGVM files as well.
fn with_igvm(mut launch: Launch, file: u8) -> Launch {
    launch.inputs.igvm_digest = Some(LaunchDigest::new([file; 48]));
    launch
}

#[test]
fn the_other_way_to_boot_is_named() {
    let direct = with_igvm(expected(), 0xaa);
    let igvm = Launch {
        boot: BootMethod::Igvm,
        ..direct.clone()
    };
    let api = image(0x33, "api", None, "");
    let api = with_igvm(
        Launch {
            inputs: api,
            ..igvm.clone()
        },
        0xbb,
    );
    let known = [Known {
        name: "shop/api".to_owned(),
        inputs: api.inputs.clone(),
    }];
    let vcpus = |launch: &Launch, vcpus| Launch {
        vcpus: count(vcpus),
        ..launch.clone()
    };
    let model = |launch: &Launch| Launch {
        profile: profile("EPYC-Genoa"),
        ..launch.clone()
    };
    let direct_api = Launch {
        boot: BootMethod::DirectKernel,
        ..api.clone()
    };
    let genoa = "on EPYC-Genoa, EPYC-Genoa-v1 or EPYC-Genoa-v2";
    let rows = [
        (&igvm, igvm.clone(), "equals what was expected".to_owned()),
        (
            &igvm,
            vcpus(&igvm, 2),
            "equals this image with 2 vCPUs instead of 4".to_owned(),
        ),
        (&igvm, model(&igvm), format!("equals this image {genoa}")),
        (
            &igvm,
            direct.clone(),
            "equals this image in its direct boot form".to_owned(),
        ),
        (
            &igvm,
            vcpus(&direct, 512),
            "equals this image in its direct boot form with 512 vCPUs instead of 4".to_owned(),
        ),
        (&igvm, api.clone(), "equals image shop/api".to_owned()),
        (
            &igvm,
            vcpus(&api, 1),
            "equals image shop/api with 1 vCPU instead of 4".to_owned(),
        ),
        (
            &igvm,
            vcpus(&direct_api, 3),
            "equals image shop/api in its direct boot form with 3 vCPUs instead of 4".to_owned(),
        ),
        (
            &direct,
            igvm.clone(),
            "equals this image in its IGVM form".to_owned(),
        ),
        (
            &direct,
            vcpus(&igvm, 2),
            "equals this image in its IGVM form with 2 vCPUs instead of 4".to_owned(),
        ),
        (
            &direct,
            model(&vcpus(&igvm, 2)),
            format!("equals this image in its IGVM form {genoa} with 2 vCPUs instead of 4"),
        ),
        (
            &direct,
            api.clone(),
            "equals image shop/api in its IGVM form".to_owned(),
        ),
    ];
    for (expected, launch, sentence) in rows {
        let observed = launch.measure().unwrap();
        let explanation = explain(&Question {
            observed,
            expected,
            known: &known,
            tokens: &[],
        });
        assert_eq!(explanation.to_string(), sentence);
        let Explanation::Found { causes } = explanation else {
            continue;
        };
        assert_eq!(causes[0].launch.measure(), Ok(observed), "{sentence}");
        assert_eq!(causes[0].launch.boot, launch.boot);
    }
}

/// Nothing is said of an IGVM file that nobody knows, and what was tried is told.
#[test]
fn an_unknown_igvm_file_is_a_gap() {
    let none = Launch {
        boot: BootMethod::Igvm,
        ..expected()
    };
    let zeros = LaunchDigest::new([0; 48]);
    let Explanation::Unexplained(ruled_out) = ask(zeros, &none) else {
        panic!("zeros are explained")
    };
    let name = "the expected launch".to_owned();
    assert_eq!(ruled_out.gaps, [Gap::Unmeasurable { name }]);
    let areas: Vec<_> = ruled_out.areas.iter().map(|area| area.area).collect();
    assert_eq!(areas, [Area::Boot]);
    // Its direct boot is known.
    let direct = expected().measure().unwrap();
    assert_eq!(
        ask(direct, &none).to_string(),
        "equals this image in its direct boot form"
    );
}

/// IGVM files of every known image do not take the work from the rest.
#[test]
fn igvm_files_leave_the_search_as_it_was() {
    let expected = with_igvm(expected(), 0xaa);
    let mut known = images(20);
    for (image, file) in known.iter_mut().zip(0..) {
        image.inputs.igvm_digest = Some(LaunchDigest::new([file; 48]));
    }
    let Explanation::Unexplained(ruled_out) = explain(&Question {
        observed: LaunchDigest::new([0; 48]),
        expected: &expected,
        known: &known,
        tokens: &[],
    }) else {
        panic!("zeros are explained")
    };
    assert_eq!(ruled_out.gaps, []);
    let boots = ruled_out.areas.iter().find(|area| area.area == Area::Boot);
    assert_eq!(boots.unwrap().variants, 21);
}

/// Where no kernel is expected, the kernel hashes are what is too much.
#[test]
fn kernel_hashes_that_are_not_expected_are_named() {
    let expected = Launch {
        inputs: firmware(0xf4),
        ..expected()
    };
    let theirs = image(0xf4, "kernel 2", Some("initrd 2"), CMDLINE);
    let mut on = Launch {
        inputs: theirs.clone(),
        ..expected.clone()
    };
    let sentence = "equals this image with kernel hashes on and the kernel of shop/web-2";
    assert_eq!(ask(on.measure().unwrap(), &expected).to_string(), sentence);
    on.vcpus = count(9);
    assert_eq!(
        ask(on.measure().unwrap(), &expected).to_string(),
        format!("{sentence} with 9 vCPUs instead of 4")
    );
    // An image of other firmware is an image, its kernel here is not.
    let api = image(0x33, "api", None, "");
    let image = Launch {
        inputs: api.clone(),
        ..expected.clone()
    };
    assert_eq!(
        ask(image.measure().unwrap(), &expected).to_string(),
        "equals image shop/api"
    );
    let mut kernel = image;
    kernel.inputs.firmware = theirs.firmware;
    assert_eq!(
        ask(kernel.measure().unwrap(), &expected).to_string(),
        "equals this image with kernel hashes on and the kernel of shop/api"
    );
}

#[test]
fn an_explanation_serialises() {
    let expected = expected();
    let mut faulty = expected.clone();
    cmdline(&mut faulty, b"console=ttyS0 root=/dev/vda ro\0");
    let explanation = ask(faulty.measure().unwrap(), &expected);
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["result"], "found");
    assert_eq!(
        json["causes"][0]["changes"][0],
        serde_json::json!({"type": "cmdline", "cmdline": "wordRemoved", "word": "quiet"})
    );
    assert_eq!(json["causes"][0]["launch"]["vcpus"], 4);
    let nothing = serde_json::to_value(ask(LaunchDigest::new([0; 48]), &expected)).unwrap();
    assert_eq!(nothing["result"], "unexplained");
    assert_eq!(nothing["areas"][0]["area"], "shape");
}

/// A launch of random words and shape.
fn launches() -> impl Strategy<Value = Launch> {
    let models: Vec<&str> = CpuModel::all().map(|model| model.name()).collect();
    let words = prop::collection::vec("[a-z]{1,8}(=[a-z0-9/]{1,8})?", 1..6);
    (
        any::<u8>(),
        "[a-z]{1,8}",
        prop::option::of("[a-z]{1,8}"),
        words,
        prop::sample::select(models),
        1..=16_u32,
    )
        .prop_map(|(firmware, kernel, initrd, words, model, vcpus)| Launch {
            inputs: image(firmware, &kernel, initrd.as_deref(), &words.join(" ")),
            boot: BootMethod::DirectKernel,
            profile: profile(model),
            vcpus: count(vcpus),
        })
}

/// One change of a launch.
fn single_changes() -> impl Strategy<Value = Change> {
    let placeholder = GuestFeatures::default();
    let features: Vec<u64> = GuestFeatures::named()
        .map(|(_, bit)| bit)
        .filter(|bit| *bit != GuestFeatures::SNP_ACTIVE)
        .collect();
    prop_oneof![
        (1..=512_u32).prop_map(|found| Change::Vcpus {
            found: count(found),
            expected: count(1)
        }),
        prop::sample::select(CpuModel::all().collect::<Vec<_>>()).prop_map(|model| {
            Change::CpuModel {
                signature: model.signature(),
                models: vec![model.name()],
                host: None,
            }
        }),
        prop::sample::select(features).prop_map(move |bit| Change::GuestFeatures {
            found: GuestFeatures(bit),
            expected: placeholder
        }),
        prop::sample::select(Vmm::ALL.to_vec()).prop_map(|found| Change::Vmm { found }),
        Just(Change::KernelHashesOff),
        Just(Change::InitrdLeftOut),
        Just(Change::Cmdline(CmdlineChange::Newline)),
        Just(Change::Cmdline(CmdlineChange::TrailingBlank)),
        Just(Change::Cmdline(CmdlineChange::Empty)),
        Just(Change::Cmdline(CmdlineChange::WithoutNul)),
        any::<prop::sample::Index>().prop_map(|index| {
            Change::Cmdline(CmdlineChange::WordRemoved {
                word: index.index(6).to_string(),
            })
        }),
        prop::sample::select(vec!["quiet", "token=1"]).prop_map(|word| {
            Change::Cmdline(CmdlineChange::WordAdded {
                word: word.to_owned(),
                before: None,
            })
        }),
        prop::sample::select(vec![Part::Firmware, Part::Kernel, Part::Initrd, Part::Boot])
            .prop_map(|part| Change::Part {
                part,
                of: "other".to_owned()
            }),
        Just(Change::Image {
            name: "other".to_owned()
        }),
    ]
}

/// Applies a change in a way of its own.
fn apply(launch: &mut Launch, change: &Change, other: &MeasurementInputs) {
    let text = launch.inputs.cmdline.clone().unwrap();
    let theirs = other.kernel_hashes.unwrap();
    let ours = launch.inputs.kernel_hashes.as_mut().unwrap();
    match change {
        Change::Vcpus { found, .. } => launch.vcpus = *found,
        Change::CpuModel { signature, .. } => launch.profile.cpu_signature = *signature,
        Change::GuestFeatures { found, .. } => launch.profile.guest_features.0 ^= found.0,
        Change::Vmm { found } => launch.profile.vmm = *found,
        Change::KernelHashesOff => launch.inputs.kernel_hashes = None,
        Change::InitrdLeftOut => ours.initrd = Sha256Digest::of(b""),
        Change::Image { .. } => launch.inputs = other.clone(),
        Change::Boot { .. } | Change::KernelHashesOn { .. } => panic!("never asked for"),
        Change::Part { part, .. } => match part {
            Part::Firmware => launch.inputs.firmware = other.firmware.clone(),
            Part::Boot => *ours = theirs,
            Part::Kernel => ours.kernel = theirs.kernel,
            Part::Initrd => ours.initrd = theirs.initrd,
            Part::Cmdline => ours.cmdline = theirs.cmdline,
        },
        Change::Cmdline(change) => {
            let bytes = match change {
                CmdlineChange::Newline => format!("{text}\n\0"),
                CmdlineChange::TrailingBlank => format!("{text} \0"),
                CmdlineChange::Empty => "\0".to_owned(),
                CmdlineChange::WithoutNul => text,
                CmdlineChange::WordRemoved { word } => {
                    let mut words: Vec<&str> = text.split(' ').collect();
                    words.remove(word.parse::<usize>().unwrap() % words.len());
                    words.join(" ") + "\0"
                }
                CmdlineChange::WordAdded { word, .. } => format!("{text} {word}\0"),
                other => panic!("{other:?}"),
            };
            ours.cmdline = Sha256Digest::of(bytes.as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_single_change_is_found(
        launch in launches(),
        other in launches(),
        change in single_changes(),
    ) {
        let mut faulty = launch.clone();
        apply(&mut faulty, &change, &other.inputs);
        let observed = faulty.measure().unwrap();
        let known = [Known { name: "other".to_owned(), inputs: other.inputs }];
        let explanation = explain(&Question {
            observed,
            expected: &launch,
            known: &known,
            tokens: &["token=1".to_owned()],
        });
        check_causes(&explanation, observed);
        match &explanation {
            Explanation::Expected => prop_assert_eq!(launch.measure(), Ok(observed)),
            Explanation::Found { causes } => {
                prop_assert!(causes.iter().all(|cause| cause.changes.len() == 1), "{}", explanation);
            }
            Explanation::Unexplained(_) => prop_assert!(false, "{:?}: {}", change, explanation),
        }
    }

    /// Whatever is typed for any character of the command line, or before it.
    #[test]
    fn every_slip_is_found(
        launch in launches(),
        at in any::<prop::sample::Index>(),
        typed in "[a-z0-9 ._=/,:-]?",
        removed in 0..=1_usize,
    ) {
        let text = launch.inputs.cmdline.clone().unwrap();
        let at = at.index(text.len());
        let typed = format!("{}{typed}{}\0", &text[..at], &text[at + removed..]);
        let mut faulty = launch.clone();
        cmdline(&mut faulty, typed.as_bytes());
        let observed = faulty.measure().unwrap();
        let explanation = explain(&Question { observed, expected: &launch, known: &[], tokens: &[] });
        check_causes(&explanation, observed);
        match &explanation {
            Explanation::Expected => prop_assert_eq!(launch.measure(), Ok(observed)),
            Explanation::Found { causes } => prop_assert_eq!(causes[0].changes.len(), 1),
            Explanation::Unexplained(_) => prop_assert!(false, "{:?}: {}", typed, explanation),
        }
    }

    /// Pairs of a shape and anything else.
    #[test]
    fn pairs_with_the_shape_are_found(
        launch in launches(),
        other in launches(),
        change in single_changes(),
        vcpus in 1..=512_u32,
    ) {
        let narrow = matches!(change, Change::Part { part: Part::Kernel | Part::Initrd, .. });
        prop_assume!(!narrow);
        let mut faulty = launch.clone();
        apply(&mut faulty, &change, &other.inputs);
        faulty.vcpus = count(vcpus);
        let observed = faulty.measure().unwrap();
        let known = [Known { name: "other".to_owned(), inputs: other.inputs }];
        let explanation = explain(&Question {
            observed,
            expected: &launch,
            known: &known,
            tokens: &["token=1".to_owned()],
        });
        check_causes(&explanation, observed);
        prop_assert!(!matches!(explanation, Explanation::Unexplained(_)), "{:?}: {}", change, explanation);
    }
}
