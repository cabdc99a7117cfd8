use assay_tee::hashes_table::KernelHashes;
use assay_tee::instance::VerifierEndpoint;
use assay_tee::ovmf::{HashesTableArea, Section, SectionKind};
use assay_tee::{BootMethod, GuestFeatures, GuestPolicy, LaunchDigest, LaunchShape, VcpuCount};
use base64::Engine as _;
use proptest::prelude::*;

use super::*;
use crate::spec::{
    ArtifactFiles, Console, Fault, FileRef, InstanceTemplate, PortForward, RootDisk, Simulation,
};

fn spec(tee: Tee) -> LaunchSpec {
    LaunchSpec {
        version: LaunchSpec::VERSION,
        shape: LaunchShape {
            tee,
            boot: BootMethod::DirectKernel,
            vcpus: VcpuCount::try_from(2).unwrap(),
            cpu_model: "EPYC-v4".to_owned(),
            guest_features: GuestFeatures::default(),
        },
        guest_policy: GuestPolicy::default(),
        memory_mib: 1024,
        artifact: ArtifactFiles {
            uki: FileRef {
                path: "uki.efi".to_owned(),
                sha256: Sha256Digest::of(b"uki"),
            },
            firmware: FileRef {
                path: "firmware.fd".to_owned(),
                sha256: Sha256Digest::of(b"fw"),
            },
            root_disk: Some(RootDisk {
                path: "rootfs.img".to_owned(),
                serial: "assay-root".to_owned(),
            }),
        },
        expected_digest: LaunchDigest::new([7; 48]),
        ports: vec![
            PortForward {
                address: None,
                pod: 8080,
                guest: 80,
            },
            PortForward {
                address: None,
                pod: 8443,
                guest: 443,
            },
        ],
        console: Console::Full,
        instance: InstanceTemplate {
            namespace: "shop".to_owned(),
            deployment: "web".to_owned(),
            policy_hash: Sha256Digest::of(b"policy"),
            verifier: VerifierEndpoint {
                url: "https://broker.assay-system.svc:8443".to_owned(),
                addresses: vec!["10.96.0.7:8443".to_owned()],
                ca: "-----BEGIN CERTIFICATE-----\n".to_owned(),
            },
            resources: Vec::new(),
            attestation_interval_seconds: 30,
        },
        simulation: (!tee.is_hardware()).then(|| Simulation {
            vcek_key: String::new(),
            vcek_chain: String::new(),
            fault: None,
        }),
    }
}

fn firmware() -> OvmfMetadata {
    OvmfMetadata {
        base_gpa: 0xffc0_0000,
        sections: vec![
            Section {
                gpa: 0x80_0000,
                size: 0x9000,
                kind: SectionKind::SecMem,
            },
            Section {
                gpa: 0x81_0000,
                size: 0x1000,
                kind: SectionKind::KernelHashes,
            },
        ],
        reset_eip: Some(0x80_b004),
        hashes_table: Some(HashesTableArea {
            gpa: 0x81_0c00,
            size: 0x400,
        }),
    }
}

fn hashes() -> KernelHashes {
    KernelHashes::from_bytes(b"uki", None, "")
}

fn inputs<'a>(firmware: &'a OvmfMetadata, kernel_hashes: &'a KernelHashes) -> PlanInputs<'a> {
    PlanInputs {
        pod: PodIdentity {
            name: "web-0".to_owned(),
            uid: "4c8f-11".to_owned(),
        },
        node: "node-1".to_owned(),
        firmware,
        kernel_hashes,
        uki_len: 40 << 20,
        artifact_dir: Path::new("/artifact"),
        run_dir: Path::new("/run/assay"),
        substitute_uki: None,
        status_port: Some(9990),
        accelerator: Accelerator::Tcg,
    }
}

fn plan_of(spec: &LaunchSpec) -> LaunchPlan {
    plan(spec, &inputs(&firmware(), &hashes())).unwrap()
}

/// One option and its value per line.
fn golden(plan: &LaunchPlan) -> String {
    let mut text = String::new();
    for word in &plan.argv {
        text.push_str(if word.starts_with('-') && !text.is_empty() {
            "\n"
        } else {
            " "
        });
        text.push_str(word);
    }
    text.trim_start().to_owned()
}

#[test]
fn golden_simulated() {
    insta::assert_snapshot!(golden(&plan_of(&spec(Tee::SimulatedSnp))));
}

#[test]
fn golden_snp() {
    let mut spec = spec(Tee::Snp);
    spec.console = Console::None;
    insta::assert_snapshot!(golden(&plan_of(&spec)));
}

fn igvm_spec(tee: Tee) -> LaunchSpec {
    let mut spec = spec(tee);
    spec.shape.boot = BootMethod::Igvm;
    spec
}

#[test]
fn golden_simulated_igvm() {
    insta::assert_snapshot!(golden(&plan_of(&igvm_spec(Tee::SimulatedSnp))));
}

#[test]
fn golden_snp_igvm() {
    insta::assert_snapshot!(golden(&plan_of(&igvm_spec(Tee::Snp))));
}

/// What the host hands over beside the file is not what was measured.
#[test]
fn an_igvm_file_comes_alone() {
    for tee in [Tee::Snp, Tee::SimulatedSnp] {
        let plan = plan_of(&igvm_spec(tee));
        for option in ["-bios", "-kernel", "-append", "-initrd", "-drive if=pflash"] {
            assert!(!plan.argv.iter().any(|word| word == option), "{option}");
        }
        assert!(!plan.argv.iter().any(|word| word.starts_with("loader")));
        let file = PathBuf::from("/run/assay/guest.igvm");
        assert_eq!(plan.boot, BootFiles::Igvm { file });
        assert_eq!(plan.files.len(), 1);
    }
}

#[test]
fn memory_that_an_igvm_file_needs_is_asked_for() {
    let (firmware, hashes) = (firmware(), hashes());
    let mut spec = igvm_spec(Tee::Snp);
    for (memory_mib, uki_len, least) in [
        (680, 40 << 20, 680),
        (679, 40 << 20, 680),
        (512, 1, 641),
        (641, 1, 641),
        (4096, u64::MAX, u64::MAX >> 20),
    ] {
        spec.memory_mib = memory_mib;
        let inputs = PlanInputs {
            uki_len,
            ..inputs(&firmware, &hashes)
        };
        match plan(&spec, &inputs) {
            Ok(_) => assert!(u64::from(memory_mib) >= least),
            Err(PlanError::IgvmMemory {
                got, least: told, ..
            }) => {
                assert!(u64::from(memory_mib) < least);
                assert_eq!(got, memory_mib);
                assert!(told.abs_diff(least) <= 1, "{told}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn files_carry_the_instance_document_and_the_simulated_hashes_table() {
    let simulated = plan_of(&spec(Tee::SimulatedSnp));
    let [instance, table] = simulated.files.as_slice() else {
        panic!("{:?}", simulated.files)
    };
    assert_eq!(instance.path, Path::new("/run/assay/instance.json"));
    let document: InstanceData = serde_json::from_slice(&instance.content).unwrap();
    assert_eq!(
        (document.pod.name.as_str(), document.node.as_str()),
        ("web-0", "node-1")
    );
    assert_eq!(simulated.host_data, Sha256Digest::of(&instance.content));
    assert_eq!(KernelHashes::parse_table(&table.content), Ok(hashes()));
    let placed = PlacedTable {
        path: table.path.clone(),
        gpa: 0x81_0c00,
    };
    let BootFiles::DirectKernel { hashes_table, .. } = simulated.boot else {
        panic!("{:?}", simulated.boot)
    };
    assert_eq!(hashes_table, Some(placed));
}

#[test]
fn a_forwarded_port_listens_on_its_address() {
    let mut spec = spec(Tee::SimulatedSnp);
    spec.ports[0].address = Some([127, 0, 0, 1].into());
    let argv = plan_of(&spec).argv.join(" ");
    let forwards = "hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp::8443-:443";
    assert!(argv.contains(forwards), "{argv}");
    let json = serde_json::to_value(&spec.ports).unwrap();
    assert_eq!(json[0]["address"], "127.0.0.1");
    assert!(json[1].get("address").is_none());
}

#[test]
fn the_kernel_may_run_a_simulated_guest() {
    let (firmware, hashes) = (firmware(), hashes());
    let mut inputs = inputs(&firmware, &hashes);
    inputs.accelerator = Accelerator::Kvm;
    let plan = plan(&spec(Tee::SimulatedSnp), &inputs).unwrap();
    let argv = plan.argv.join(" ");
    assert!(
        argv.contains("-accel kvm -machine q35,vmport=off -cpu max"),
        "{argv}"
    );
    // Its secure processor is simulated all the same.
    assert!(plan.sockets.psp.is_some());
}

#[test]
fn hardware_gets_no_simulated_part() {
    let plan = plan_of(&spec(Tee::Snp));
    assert_eq!(plan.files.len(), 1);
    assert_eq!(plan.sockets.psp, None);
    assert!(matches!(
        plan.boot,
        BootFiles::DirectKernel {
            hashes_table: None,
            ..
        }
    ));
    let argv = plan.argv.join(" ");
    assert!(
        !argv.contains("loader") && !argv.contains(PSP_SIM_PORT),
        "{argv}"
    );
}

#[test]
fn host_data_on_hardware_is_the_documents_digest() {
    let plan = plan_of(&spec(Tee::Snp));
    let object = plan
        .argv
        .iter()
        .find(|word| word.starts_with("sev-snp-guest,"))
        .unwrap();
    let (_, encoded) = object.rsplit_once("host-data=").unwrap();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .unwrap();
    assert_eq!(bytes, plan.host_data.as_bytes());
}

#[test]
fn the_boot_files_are_those_that_qemu_is_given() {
    let mut spec = spec(Tee::SimulatedSnp);
    spec.simulation.as_mut().unwrap().fault = Some(Fault::TamperedKernel);
    let (firmware, hashes) = (firmware(), hashes());
    let mut inputs = inputs(&firmware, &hashes);
    inputs.substitute_uki = Some(Path::new("/run/assay/uki-tampered.efi"));
    let plan = plan(&spec, &inputs).unwrap();
    let value_of = |option: &str| {
        let position = plan.argv.iter().position(|word| word == option).unwrap();
        Path::new(&plan.argv[position + 1]).to_owned()
    };
    let BootFiles::DirectKernel { firmware, uki, .. } = &plan.boot else {
        panic!("{:?}", plan.boot)
    };
    assert_eq!(&value_of("-bios"), firmware);
    assert_eq!(&value_of("-kernel"), uki);
    assert_eq!(uki, Path::new("/run/assay/uki-tampered.efi"));
    assert!(
        !plan
            .argv
            .iter()
            .any(|word| word == "-append" || word == "-initrd")
    );
}

/// A mutation of a good launch and the error that it must give.
type Row = (
    &'static str,
    fn(&mut LaunchSpec, &mut PlanInputs<'_>),
    fn(&PlanError) -> bool,
);

macro_rules! row {
    ($spec:ident, $inputs:ident, $mutation:expr => $pattern:pat) => {
        (
            stringify!($mutation),
            |$spec, $inputs| {
                let _ = (&$spec, &$inputs);
                $mutation;
            },
            |error| matches!(error, $pattern),
        )
    };
}

#[test]
fn a_wrong_value_is_refused() {
    let rows: &[Row] = &[
        row!(s, i, s.version = 2 => PlanError::Version { got: 2 }),
        row!(s, i, s.simulation = None => PlanError::SimulationMissing),
        row!(s, i, s.shape.tee = Tee::Snp => PlanError::SimulationOnHardware { tee: Tee::Snp }),
        row!(s, i, i.substitute_uki = Some(Path::new("/run/other.efi"))
            => PlanError::SubstituteWithoutFault),
        row!(s, i, s.shape.cpu_model = "host".to_owned() => PlanError::CpuModel(_)),
        row!(s, i, s.shape.cpu_model = "EPYC-v4,+avx".to_owned() => PlanError::CpuModel(_)),
        row!(s, i, s.memory_mib = MIN_MEMORY_MIB - 1 => PlanError::Memory { .. }),
        row!(s, i, {
            s.shape.boot = BootMethod::Igvm;
            s.simulation.as_mut().unwrap().fault = Some(Fault::TamperedKernel);
        } => PlanError::FaultWithoutTable),
        row!(s, i, {
            s.shape.boot = BootMethod::Igvm;
            s.memory_mib = 679;
        } => PlanError::IgvmMemory { got: 679, least: 680, .. }),
        row!(s, i, s.guest_policy.0 = 0 => PlanError::GuestPolicy { got: 0 }),
        row!(s, i, s.guest_policy.0 |= 1 << 40 => PlanError::GuestPolicy { .. }),
        row!(s, i, s.artifact.uki.path = "../uki.efi".to_owned()
            => PlanError::ArtifactPath { field: "artifact.uki.path", .. }),
        row!(s, i, s.artifact.firmware.path = "/etc/passwd".to_owned()
            => PlanError::ArtifactPath { field: "artifact.firmware.path", .. }),
        row!(s, i, s.artifact.root_disk.as_mut().unwrap().path = String::new()
            => PlanError::ArtifactPath { field: "artifact.rootDisk.path", .. }),
        row!(s, i, s.artifact.uki.path = "uki\n.efi".to_owned() => PlanError::ArtifactPath { .. }),
        row!(s, i, s.artifact.root_disk.as_mut().unwrap().serial = "a,b".to_owned()
            => PlanError::DiskSerial { .. }),
        row!(s, i, s.artifact.root_disk.as_mut().unwrap().serial = "s".repeat(21)
            => PlanError::DiskSerial { .. }),
        row!(s, i, s.ports[0].guest = 0 => PlanError::PortZero { pod: 8080, guest: 0 }),
        row!(s, i, s.ports[1].pod = 8080 => PlanError::PortTaken { pod: 8080 }),
        row!(s, i, s.ports[0].pod = 9990 => PlanError::PortTaken { pod: 9990 }),
        row!(s, i, i.pod.uid.clear() => PlanError::PodIdentity("uid")),
        row!(s, i, i.run_dir = Path::new("run") => PlanError::HostPath { name: "run directory", .. }),
        row!(s, i, i.artifact_dir = Path::new("/a\0b")
            => PlanError::HostPath { name: "artifact directory", .. }),
        row!(s, i, i.run_dir = Path::new(concat!(
                "/run/0123456789012345678901234567890123456789",
                "/0123456789012345678901234567890123456789012345678901234567890"
            )) => PlanError::SocketPath { .. }),
    ];
    let (firmware, hashes) = (firmware(), hashes());
    for (mutation, mutate, expected) in rows {
        let mut spec = spec(Tee::SimulatedSnp);
        let mut inputs = inputs(&firmware, &hashes);
        mutate(&mut spec, &mut inputs);
        let error = plan(&spec, &inputs).expect_err(mutation);
        assert!(expected(&error), "{mutation}: {error:?}");
    }
}

#[test]
fn firmware_that_verifies_nothing_is_refused() {
    let hashes = hashes();
    let mut without_section = firmware();
    without_section.sections.pop();
    let without_area = OvmfMetadata {
        hashes_table: None,
        ..firmware()
    };
    for firmware in [without_section, without_area] {
        for tee in [Tee::Snp, Tee::SimulatedSnp] {
            let error = plan(&spec(tee), &inputs(&firmware, &hashes)).unwrap_err();
            assert!(
                matches!(error, PlanError::UnverifyingFirmware { .. }),
                "{error:?}"
            );
        }
    }
}

/// Splits an option list as QEMU does and keeps the keys.
fn keys(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut rest = list.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ',' if rest.next_if_eq(&',').is_none() => options.push(String::new()),
            _ => options.last_mut().unwrap().push(c),
        }
    }
    options
        .into_iter()
        .map(|option| {
            option
                .split_once('=')
                .map_or(option.clone(), |(key, _)| key.to_owned())
        })
        .collect()
}

const LIST_OPTIONS: [&str; 10] = [
    "-sandbox", "-accel", "-machine", "-object", "-device", "-chardev", "-netdev", "-drive",
    "-fw_cfg", "-mon",
];

/// What a plan tells QEMU to do, without the values.
fn skeleton(argv: &[String]) -> Vec<(String, Vec<String>)> {
    let mut options: Vec<(String, Vec<String>)> = Vec::new();
    for word in argv {
        match options.last_mut() {
            Some((option, values))
                if values.is_empty()
                    && option != "-nodefaults"
                    && option != "-no-user-config"
                    && option != "-no-reboot" =>
            {
                if LIST_OPTIONS.contains(&option.as_str()) {
                    *values = keys(word);
                } else {
                    assert!(!word.starts_with('-'), "{option} {word}");
                    values.push(String::new());
                }
            }
            _ => options.push((word.clone(), Vec::new())),
        }
    }
    options
}

/// A change to a launch.
type Change<'a> = Box<dyn Fn(&mut LaunchSpec, &mut PlanInputs<'a>) + 'a>;

/// Text made of what could end an option or start one.
fn hostile() -> impl Strategy<Value = String> {
    "[a-b,=:/. \\-\\\\\"'\n\u{e9}]{0,12}"
}

proptest! {
    #[test]
    fn no_text_becomes_an_option(
        uki in hostile(),
        firmware_path in hostile(),
        disk in hostile(),
        serial in hostile(),
        cpu_model in prop_oneof![Just("EPYC-v4".to_owned()), hostile()],
        artifact_dir in hostile().prop_map(|text| format!("/{text}")),
        run_dir in hostile().prop_map(|text| format!("/{text}")),
        hardware: bool,
    ) {
        let good = spec(if hardware { Tee::Snp } else { Tee::SimulatedSnp });
        let mut hostile = good.clone();
        let (firmware, hashes) = (firmware(), hashes());
        // One at a time, so that a refusal of one does not hide another.
        let changes: Vec<Change<'_>> = vec![
            Box::new(|spec, _| spec.artifact.uki.path.clone_from(&uki)),
            Box::new(|spec, _| spec.artifact.firmware.path.clone_from(&firmware_path)),
            Box::new(|spec, _| spec.artifact.root_disk.as_mut().unwrap().path.clone_from(&disk)),
            Box::new(|spec, _| {
                spec.artifact.root_disk.as_mut().unwrap().serial.clone_from(&serial);
            }),
            Box::new(|spec, _| spec.shape.cpu_model.clone_from(&cpu_model)),
            Box::new(|_, inputs| inputs.artifact_dir = Path::new(&artifact_dir)),
            Box::new(|_, inputs| inputs.run_dir = Path::new(&run_dir)),
        ];
        let expected = skeleton(&plan_of(&good).argv);
        for change in &changes {
            hostile.clone_from(&good);
            let mut inputs = inputs(&firmware, &hashes);
            change(&mut hostile, &mut inputs);
            if let Ok(plan) = plan(&hostile, &inputs) {
                prop_assert_eq!(&skeleton(&plan.argv), &expected);
            }
        }
    }
}
