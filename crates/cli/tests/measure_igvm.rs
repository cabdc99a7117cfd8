//! `assay measure --igvm` as a script uses it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

#[path = "../../measure/tests/support/igvm_file.rs"]
mod igvm_file;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use assay_tee::cpu::CpuModel;
use assay_tee::vmsa::{Vcpu, Vmm, build_vmsa};
use assay_tee::{GuestFeatures, Sha256Digest};
use igvm::measurement::generate_snp_measurement;
use igvm::{Arch, IgvmDirectiveHeader, IgvmRevision};
use igvm_defs::{
    IGVM_VHS_PARAMETER, IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY, IGVM_VHS_SNP_ID_BLOCK_SIGNATURE,
    IgvmPlatformType,
};
use igvm_file::{Builder, SNP, area, context, insert, normal, vmsa, vmsa_of_kvm, vp_count};
use serde_json::Value;
use zerocopy::IntoBytes as _;

/// A directory with the files that the tests name.
struct Files(tempfile::TempDir);

/// Pages, an area after them, and the states of two virtual CPUs, as KVM has
/// them or as it changes them.
fn directives(by_kvm: bool, as_qemu_loads: bool) -> Vec<IgvmDirectiveHeader> {
    let state = if by_kvm { vmsa_of_kvm } else { vmsa };
    let pages = vec![normal(0, vec![0x11; 4096]), normal(0x2000, Vec::new())];
    let parameters = vec![area(0, 8192), vp_count(0), insert(0, 0x8000, SNP)];
    let states = vec![context(0, &state(0x1000)), context(1, &state(0x2000))];
    if as_qemu_loads {
        let (first, last) = pages.split_at(1);
        [first, &parameters, last, &states].concat()
    } else {
        [pages, parameters, states].concat()
    }
}

fn id_block(ld: [u8; 48]) -> IgvmDirectiveHeader {
    let signature = || {
        Box::new(IGVM_VHS_SNP_ID_BLOCK_SIGNATURE {
            r_comp: [1; 72],
            s_comp: [2; 72],
        })
    };
    let key = || {
        Box::new(IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY {
            curve: 2,
            reserved: 0,
            qx: [3; 72],
            qy: [4; 72],
        })
    };
    IgvmDirectiveHeader::SnpIdBlock {
        compatibility_mask: SNP,
        author_key_enabled: 0,
        reserved: [0; 3],
        ld,
        family_id: [0; 16],
        image_id: [0; 16],
        version: 1,
        guest_svn: 0,
        id_key_algorithm: 1,
        author_key_algorithm: 0,
        id_key_signature: signature(),
        id_public_key: key(),
        author_key_signature: signature(),
        author_public_key: key(),
    }
}

/// The digest that the `igvm` crate measures.
fn oracle(directives: &[IgvmDirectiveHeader]) -> String {
    let digest = generate_snp_measurement(&Builder::initialization(), directives, SNP).unwrap();
    hex::encode(digest)
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            fs::write(directory.path().join(name), bytes).unwrap();
        };
        let build = |directives| Builder::default().with(directives).build();
        let good = build(directives(false, false));
        write("good.igvm", &good);
        write("cut.igvm", &good[..good.len() - 1]);
        let mut damaged = good.clone();
        damaged[40] ^= 1;
        write("damaged.igvm", &damaged);
        write("firmware.fd", &[0; 4096]);
        write("stateless.igvm", &build(vec![normal(0, vec![0x11; 4096])]));
        let device_tree = IgvmDirectiveHeader::DeviceTree(IGVM_VHS_PARAMETER {
            parameter_area_index: 1,
            byte_offset: 0,
        });
        let unknown = [area(1, 4096), device_tree, insert(1, 0x10_0000, SNP)];
        write(
            "device-tree.igvm",
            &build([directives(false, false), unknown.to_vec()].concat()),
        );
        let mut right = [0; 48];
        let digest = oracle(&directives(true, true));
        hex::decode_to_slice(digest, &mut right).unwrap();
        for (name, ld) in [("signed.igvm", right), ("wrongly-signed.igvm", [7; 48])] {
            let signed = [directives(false, false), vec![id_block(ld)]].concat();
            write(name, &build(signed));
        }
        for (name, snp) in [
            ("sev.igvm", IgvmPlatformType::SEV),
            ("sev-es.igvm", IgvmPlatformType::SEV_ES),
        ] {
            let builder = Builder {
                revision: IgvmRevision::V2 {
                    arch: Arch::X64,
                    page_size: 4096,
                },
                snp,
                ..Builder::default()
            };
            let pages = directives(false, false).into_iter().take(5);
            write(name, &builder.with(pages).build());
        }
        Self(directory)
    }

    /// Runs `assay measure` in the directory with arguments separated by blanks.
    fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_assay"))
            .arg("measure")
            .args(arguments.split(' '))
            .current_dir(self.path())
            .output()
            .unwrap()
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Standard output and standard error of a run that must succeed.
    fn both(&self, arguments: &str) -> (String, String) {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments}: {stderr}");
        (String::from_utf8(output.stdout).unwrap(), stderr)
    }

    fn line(&self, arguments: &str) -> String {
        let (stdout, stderr) = self.both(arguments);
        assert_eq!(stderr, "", "{arguments}");
        stdout.trim_end().to_owned()
    }

    /// Standard error of a run that must fail.
    fn error(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments}");
        assert_eq!(output.stdout, b"", "{arguments}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn each_loader_has_its_digest() {
    let files = Files::new();
    let by_qemu = directives(true, true);
    let one = &by_qemu[..by_qemu.len() - 1];
    let igvm = "--igvm good.igvm";
    for (arguments, expected) in [
        ("--vcpus 2", oracle(&by_qemu)),
        ("--vcpus 1", oracle(one)),
        ("--vcpus 2 --mode snp --igvm-loader qemu", oracle(&by_qemu)),
        ("--igvm-loader qemu-svsm", oracle(one)),
        (
            "--igvm-loader file-order",
            oracle(&directives(false, false)),
        ),
    ] {
        assert_eq!(
            files.line(&format!("{igvm} {arguments}")),
            expected,
            "{arguments}"
        );
    }
    let other = |loader| files.line(&format!("{igvm} --igvm-loader {loader}"));
    let digests = ["file-order", "native-zero", "igvmmeasure"].map(other);
    assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
}

#[test]
fn the_cpu_model_matters_where_the_file_has_no_state() {
    let files = Files::new();
    let milan = CpuModel::by_name("EPYC-Milan").unwrap().signature();
    let reset = build_vmsa(Vmm::Qemu, Vcpu::Boot, milan, GuestFeatures(0x21));
    let expected = oracle(&[
        normal(0, vec![0x11; 4096]),
        context(0, &reset),
        context(1, &reset),
    ]);
    let stateless = "--igvm stateless.igvm --vcpus 2 --guest-features 0x21";
    assert_eq!(
        files.line(&format!("{stateless} --vcpu-type EPYC-Milan")),
        expected
    );
    let matrix = "--igvm stateless.igvm --vcpus 1-3 --vcpu-type EPYC-Milan,EPYC-Genoa";
    let (rows, _) = files.both(matrix);
    assert_eq!(rows.lines().count(), 7, "{rows}");
}

#[test]
fn sev_and_sev_es_hash_bytes() {
    let files = Files::new();
    let memory = [[0x11; 4096], [0; 4096]].concat();
    assert_eq!(
        files.line("--mode sev --igvm sev.igvm"),
        Sha256Digest::of(&memory).to_hex()
    );
    let milan = CpuModel::by_name("EPYC-Milan").unwrap().signature();
    let reset = build_vmsa(Vmm::Qemu, Vcpu::Boot, milan, GuestFeatures(0));
    let with_cpu = [memory.as_slice(), reset.as_bytes()].concat();
    assert_eq!(
        files.line("--mode seves --igvm sev-es.igvm --vcpus 1 --vcpu-type EPYC-Milan"),
        Sha256Digest::of(&with_cpu).to_hex()
    );
}

#[test]
fn json_has_the_loader_and_the_trace() {
    let files = Files::new();
    let json = files.line("--igvm good.igvm --vcpus 2 --json");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["profile"]["loader"], "qemu");
    assert_eq!(json["digest"], oracle(&directives(true, true)).as_str());
    let kinds: Vec<_> = json["trace"]
        .as_array()
        .unwrap()
        .iter()
        .map(|region| region["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "igvm-pages",
            "igvm-parameters",
            "igvm-pages",
            "vmsa",
            "vmsa"
        ]
    );
    let (_, regions) = files.both("--igvm good.igvm --igvm-loader native-zero --verbose");
    assert!(regions.contains("igvm-pages       zero"), "{regions}");
}

#[test]
fn save_areas_are_written_as_kvm_has_them() {
    let files = Files::new();
    files.line("--igvm good.igvm --vcpus 2 --dump-vmsa areas");
    for (name, rip) in [("vmsa0.bin", 0x1000), ("vmsa1.bin", 0x2000)] {
        let written = fs::read(files.path().join("areas").join(name)).unwrap();
        assert_eq!(written, vmsa_of_kvm(rip).as_bytes(), "{name}");
    }
}

#[test]
fn doubts_are_notes() {
    let files = Files::new();
    let (stdout, note) = files.both("--igvm wrongly-signed.igvm --vcpus 2");
    assert_eq!(stdout.trim_end(), oracle(&directives(true, true)));
    assert!(
        note.contains("note: wrongly-signed.igvm: the ID block in the file demands")
            && note.contains(&hex::encode([7; 48])),
        "{note}"
    );
    files.line("--igvm signed.igvm --vcpus 2");
    let (_, note) = files.both("--igvm device-tree.igvm --vcpus 1");
    assert!(
        note.contains("QEMU refuses files with DEVICE_TREE (0x312)"),
        "{note}"
    );
    files.line("--igvm device-tree.igvm --igvm-loader file-order");
}

/// Arguments and a part of the sentence that refuses them.
#[test]
fn what_makes_no_sense_is_refused_with_a_sentence() {
    let files = Files::new();
    let kernel = "QEMU measures no kernel; build the kernel";
    let all = "holds everything that the guest starts from; leave one out";
    let hash = "00".repeat(32);
    let by_file = "whatever their number; leave it out, or use --igvm-loader qemu";
    let rows = [
        ("--vcpus 1 --ovmf firmware.fd", all),
        ("--vcpus 1 --kernel firmware.fd", kernel),
        ("--vcpus 1 --initrd firmware.fd", kernel),
        ("--vcpus 1 --append quiet", kernel),
        ("--vcpus 1 --vmm-type ec2", "name it with --igvm-loader"),
        ("--vcpus 1 --inputs x", "an IGVM file is its own record"),
        (
            "--vcpus 1 --write-inputs x",
            "an IGVM file is its own record",
        ),
        ("", "--vcpus is required in --mode snp"),
        ("--mode seves", "--vcpus is required in --mode seves"),
        (
            "--mode snp:ovmf-hash",
            "--igvm does not apply to --mode snp:ovmf-hash",
        ),
        (
            "--mode snp:svsm --vcpus 1",
            "--igvm does not apply to --mode snp:svsm",
        ),
        (
            "--mode seves --vcpus 1 --igvm-loader qemu",
            "--igvm-loader does not apply to --mode seves",
        ),
        (
            "--mode sev",
            "--mode: the IGVM file is not for SEV, but for SEV-SNP, TDX",
        ),
        ("--igvm-loader qemu-svsm --vcpus 1", by_file),
        ("--igvm-loader file-order --vcpu-type EPYC-v4", by_file),
        ("--igvm-loader native-zero --dump-vmsa", by_file),
        (
            "--vcpus 2 --vcpu-type EPYC-v4",
            "--vcpu-type, --vcpu-sig or --vcpu-family: the IGVM file has the state of every",
        ),
        (
            "--vcpus 3",
            "--vcpu-type, --vcpu-sig or --vcpu-family: the IGVM file has no state for virtual CPU \
             2",
        ),
        (
            "--vcpus 3 --vcpu-type EPYC-v4 --guest-features 1",
            "--guest-features: the IGVM file has SEV_FEATURES",
        ),
        (
            "--vcpus 1 --guest-features 1",
            "--guest-features and --igvm go together only with --vcpu-type",
        ),
        ("--vcpus 1-2 --verbose", "--verbose is about one launch"),
    ];
    for (arguments, expected) in rows {
        let arguments = format!("--igvm good.igvm {arguments}");
        let error = files.error(arguments.trim_end());
        assert!(error.contains(expected), "{arguments}: {error}");
    }
    for (arguments, expected) in [
        (
            "--ovmf firmware.fd --vcpus 1 --vcpu-type EPYC-v4 --igvm-loader qemu".to_owned(),
            "--igvm-loader is about an IGVM file; give one with --igvm",
        ),
        (
            format!("--igvm good.igvm --vcpus 1 --kernel-hash {hash}"),
            kernel,
        ),
        (
            "--igvm stateless.igvm --igvm-loader qemu-svsm".to_owned(),
            "--igvm-loader: the IGVM file has no state for the boot processor",
        ),
        (
            "--igvm cut.igvm --vcpus 1".to_owned(),
            "measure cut.igvm: IGVM file: it says it has",
        ),
        (
            "--igvm damaged.igvm --vcpus 1".to_owned(),
            "use the file as it was built",
        ),
        (
            "--igvm firmware.fd --vcpus 1".to_owned(),
            "it does not start with IGVM",
        ),
    ] {
        let error = files.error(&arguments);
        assert!(error.contains(expected), "{arguments}: {error}");
    }
}
