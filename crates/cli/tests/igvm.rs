//! `assay igvm build` and `assay inspect` of its files, as a person uses them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../measure/tests/support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::fs;
use std::process::{Command, Output};

use assay_tee::Sha256Digest;
use assay_tee::ovmf::{Section, SectionKind};
use serde_json::Value;
use synthetic_firmware::{HASH_GUIDS, SyntheticFirmware, build_firmware, build_igvm_firmware};

const SECTIONS: [Section; 4] = [
    section(0x80_0000, SectionKind::SecMem),
    section(0x80_d000, SectionKind::SnpSecrets),
    section(0x80_e000, SectionKind::Cpuid),
    section(0x81_0000, SectionKind::KernelHashes),
];
const AREAS: [[u32; 3]; 4] = [
    [0x81_2000, 0x1000, 0x100],
    [0, 0xc0, 0x101],
    [0xc0, 0x10, 0x102],
    [0x81_3000, 0x1000, 0x200],
];

const fn section(gpa: u32, kind: SectionKind) -> Section {
    Section {
        gpa,
        size: 0x1000,
        kind,
    }
}

/// A directory with what an IGVM file is made of.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let firmware = SyntheticFirmware {
            pages: 2,
            filler: 0xf4,
            sections: &SECTIONS,
            reset_eip: 0x80_b004,
            hashes_table_gpa: 0x81_0c00,
        };
        let write = |name: &str, bytes: &[u8]| {
            fs::write(directory.path().join(name), bytes).unwrap();
        };
        write("firmware.fd", &build_igvm_firmware(&firmware, &AREAS));
        write("old.fd", &build_firmware(&firmware));
        let mut generic = build_igvm_firmware(&firmware, &AREAS);
        let name = HASH_GUIDS[0].as_bytes();
        let at = generic.windows(16).position(|bytes| bytes == name).unwrap();
        generic[at] ^= 1;
        write("generic.fd", &generic);
        write("uki.efi", &[b"MZ".as_slice(), &[7; 9000]].concat());
        write("vmlinuz", b"kernel");
        write("initrd", b"initrd");
        Self(directory)
    }

    fn assay(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_assay"))
            .current_dir(self.0.path())
            .args(arguments.split(' '))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn stdout(&self, arguments: &str) -> String {
        let output = self.assay(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.stdout(arguments)).unwrap()
    }

    #[track_caller]
    fn refusal(&self, arguments: &str) -> String {
        let output = self.assay(arguments);
        assert_ne!(output.status.code(), Some(0), "{arguments}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn the_digest_is_that_of_the_file() {
    let files = Files::new();
    for (form, kernel, rest) in [
        ("embedded", "uki.efi", ""),
        ("verified", "uki.efi", ""),
        (
            "verified",
            "vmlinuz",
            " --initrd initrd --append console=ttyS0",
        ),
    ] {
        let said = files.stdout(&format!(
            "igvm build --form {form} --ovmf firmware.fd --kernel {kernel} --vcpus 2 --vcpu-type \
             EPYC-v4 --output guest.igvm{rest}"
        ));
        let measured = files.stdout("measure --igvm guest.igvm --vcpus 2");
        assert_eq!(said, measured, "{form} {kernel}");
        assert!(!files.0.path().join("guest.igvm.partial").exists());
    }
    let document = files.json(
        "igvm build --ovmf firmware.fd --kernel uki.efi --vcpus 1 --vcpu-sig 0xb10f00 -o a.igvm \
         --json",
    );
    let file = fs::read(files.0.path().join("a.igvm")).unwrap();
    assert_eq!(document["digest"], Sha256Digest::of(&file).to_string());
    assert_eq!(document["size"], file.len());
    assert_eq!(
        document["minMemoryBytes"],
        (512 << 20) + 0x3000 + (128 << 20)
    );
}

/// The digests of files that nobody wrote, from files and from what was recorded.
#[test]
fn no_file_is_needed_for_a_digest() {
    let files = Files::new();
    let of_file = |vcpus: &str, model: &str| {
        files.stdout(&format!(
            "igvm build --ovmf firmware.fd --kernel uki.efi --vcpus {vcpus} --vcpu-type {model} \
             --output guest.igvm"
        ))
    };
    let measure = "measure --boot IGVM --vcpu-type EPYC-v4";
    let built = of_file("2", "EPYC-v4");
    let measured = files.stdout(&format!(
        "{measure} --ovmf firmware.fd --kernel uki.efi --vcpus 2 --write-inputs inputs.json"
    ));
    assert_eq!(measured, built);
    let recorded = format!("{measure} --inputs inputs.json");
    assert_eq!(files.stdout(&format!("{recorded} --vcpus 2")), built);
    let matrix = files.stdout(&format!("{recorded} --vcpus 1-3 --vcpu-type EPYC-Genoa"));
    for (vcpus, model) in [("1", "EPYC-v4"), ("3", "EPYC-Genoa"), ("2", "EPYC-v4")] {
        let digest = of_file(vcpus, model);
        assert!(matrix.contains(digest.trim()), "{vcpus} {model}: {matrix}");
    }
    // The direct boot of the same inputs is another launch.
    let direct = "measure --inputs inputs.json --vcpus 2 --vcpu-type EPYC-v4";
    assert_ne!(files.stdout(direct), built);

    for (rest, says) in [
        ("--ovmf firmware.fd", "give one with --kernel"),
        (
            "--ovmf firmware.fd --kernel uki.efi --append x",
            "leave out --append",
        ),
        (
            "--ovmf firmware.fd --kernel vmlinuz",
            "give a unified kernel image",
        ),
        ("--ovmf old.fd --kernel uki.efi", "hand the UKI over apart"),
        ("--ovmf generic.fd --kernel uki.efi", "use the AmdSev build"),
        (
            "--mode seves --ovmf firmware.fd --kernel uki.efi",
            "--boot does not apply to --mode seves",
        ),
        ("--igvm guest.igvm", "cannot be used with"),
    ] {
        let refused = files.refusal(&format!("{measure} --vcpus 2 {rest}"));
        assert!(refused.contains(says), "{rest}: {refused}");
    }
    files.stdout(
        "measure --ovmf old.fd --kernel uki.efi --vcpus 2 --vcpu-type EPYC-v4 --write-inputs \
         old.json",
    );
    let refused = files.refusal(&format!("{measure} --vcpus 2 --inputs old.json"));
    assert!(refused.contains("the inputs have none"), "{refused}");
}

#[test]
fn a_guest_that_booted_otherwise_is_explained() {
    let files = Files::new();
    let inputs = "--ovmf firmware.fd --kernel uki.efi";
    let shape = "--vcpus 2 --vcpu-type EPYC-v4";
    let measure = |boot: &str, vcpus: u8| {
        let said = files.stdout(&format!(
            "measure --boot {boot} {inputs} --vcpus {vcpus} --vcpu-type EPYC-v4"
        ));
        said.trim().to_owned()
    };
    for (boot, observed, sentence) in [
        ("IGVM", measure("IGVM", 2), "equals what was expected"),
        (
            "IGVM",
            measure("IGVM", 7),
            "equals this image with 7 vCPUs instead of 2",
        ),
        (
            "IGVM",
            measure("DirectKernel", 2),
            "equals this image in its direct boot form",
        ),
        (
            "DirectKernel",
            measure("IGVM", 1),
            "equals this image in its IGVM form with 1 vCPU instead of 2",
        ),
    ] {
        let said = files.stdout(&format!(
            "explain --observed {observed} --boot {boot} {inputs} {shape}"
        ));
        assert_eq!(said.lines().next(), Some(sentence), "{said}");
    }
    let said = files.stdout(&format!(
        "explain --observed {} {inputs} {shape}",
        measure("IGVM", 2)
    ));
    assert!(said.contains("  boot            IGVM\n"), "{said}");
}

#[test]
fn the_file_says_what_it_holds() {
    let files = Files::new();
    files.stdout(
        "igvm build --ovmf firmware.fd --kernel uki.efi --vcpus 2 --vcpu-type EPYC-Genoa \
         --output guest.igvm",
    );
    let found = files.json("inspect guest.igvm --json");
    assert_eq!(found["kind"], "igvm");
    assert_eq!(found["version"], 1);
    assert_eq!(found["platforms"][0]["name"], "SEV-SNP");
    assert_eq!(found["platforms"][1]["name"], "native");
    assert_eq!(found["initialization"][0]["says"], "policy 0x30000");
    assert_eq!(found["notes"], Value::Array(Vec::new()));
    let directives: Vec<_> = found["directives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|header| {
            let text = |field: &str| header[field].as_str().unwrap_or_default().to_owned();
            (text("gpa"), header["bytes"].as_u64(), text("says"))
        })
        .collect();
    let uki = directives
        .iter()
        .find(|(gpa, ..)| gpa == "0x20000000")
        .unwrap();
    assert_eq!((uki.1, uki.2.as_str()), (Some(0x3000), "normal"));
    let contexts: Vec<_> = directives
        .iter()
        .filter(|(.., says)| says.starts_with("virtual CPU"))
        .collect();
    assert_eq!(contexts.len(), 2);
    assert!(
        contexts[0]
            .2
            .starts_with("virtual CPU 0: starts at 0xfffffff0")
    );
    assert!(
        contexts[1]
            .2
            .starts_with("virtual CPU 1: starts at 0x80b004")
    );
    let text = files.stdout("inspect guest.igvm");
    assert!(
        text.contains("0x80d000 of 0x1000 bytes  secrets, zeros  [SEV-SNP]"),
        "{text}"
    );
    let refused = files.refusal("inspect firmware.fd --kind igvm");
    assert!(refused.contains("IGVM"), "{refused}");
}

#[test]
fn what_cannot_be_built_is_refused_with_the_option() {
    let files = Files::new();
    let build = "igvm build --vcpus 2 --vcpu-type EPYC-v4 --output x.igvm";
    for (rest, says) in [
        ("--ovmf old.fd --kernel uki.efi", "hand the UKI over apart"),
        (
            "--ovmf generic.fd --kernel uki.efi",
            "starts it with a command line that the host hands over beside the file",
        ),
        (
            "--ovmf generic.fd --kernel uki.efi --form verified",
            "verifies no kernel hashes",
        ),
        (
            "--ovmf firmware.fd --kernel vmlinuz",
            "--kernel vmlinuz: not an EFI",
        ),
        (
            "--ovmf firmware.fd --kernel uki.efi --append x",
            "--append does not go with --form embedded",
        ),
        (
            "--ovmf missing --kernel uki.efi",
            "--ovmf: cannot read missing",
        ),
        (
            "--ovmf firmware.fd --kernel uki.efi --policy 0x10000",
            "use 0x30000",
        ),
        (
            "--ovmf firmware.fd --kernel uki.efi --guest-features 0x20",
            "SNPActive",
        ),
    ] {
        let refused = files.refusal(&format!("{build} {rest}"));
        assert!(refused.contains(says), "{rest}: {refused}");
    }
    for (shape, says) in [
        ("--vcpus 1 --vcpu-type EPYC-v9", "--vcpu-type"),
        ("--vcpus 0 --vcpu-type EPYC", "between 1 and 512"),
    ] {
        let rest = "--ovmf firmware.fd --kernel uki.efi --output x.igvm";
        let refused = files.refusal(&format!("igvm build {shape} {rest}"));
        assert!(refused.contains(says), "{refused}");
    }
    assert!(!files.0.path().join("x.igvm").exists());
}
