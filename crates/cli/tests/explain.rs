//! `assay explain` as a script uses it: a sentence on standard output and an
//! exit status.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../measure/tests/support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use assay_tee::Sha256Digest;
use assay_tee::ovmf::{Section, SectionKind};
use serde_json::{Value, json};
use synthetic_firmware::{SyntheticFirmware, build_firmware};

/// What is expected in every test.
const EXPECTED: &str = "--ovmf good.fd --kernel kernel --initrd initrd --vcpu-type EPYC-v4 \
                        --vcpus 4";

/// A directory with every file that the tests name.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for (name, filler) in [("good.fd", 0xf4), ("other.fd", 0x33)] {
            files.write(name, &firmware(filler));
        }
        files.write("kernel", b"a kernel");
        files.write("kernel2", b"another kernel");
        files.write("initrd", b"an initrd");
        files
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).unwrap();
    }

    /// Runs `assay` in the directory.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_assay"))
            .args(arguments)
            .current_dir(self.path())
            .output()
            .unwrap()
    }

    /// The digest of a launch, with further arguments whole.
    fn measure(&self, arguments: &str, further: &[&str]) -> String {
        let arguments: Vec<&str> = std::iter::once("measure")
            .chain(arguments.split(' '))
            .chain(further.iter().copied())
            .collect();
        let output = self.run(&arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Exit status and standard output of an explanation.
    fn explain(&self, observed: &str, further: &[&str]) -> (i32, String) {
        let arguments: Vec<&str> = ["explain", "--observed", observed]
            .into_iter()
            .chain(EXPECTED.split(' '))
            .chain(["--append", "ro quiet"])
            .chain(further.iter().copied())
            .collect();
        let output = self.run(&arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    }
}

fn firmware(filler: u8) -> Vec<u8> {
    let section = |gpa, kind| Section {
        gpa,
        size: 0x1000,
        kind,
    };
    build_firmware(&SyntheticFirmware {
        pages: 4,
        filler,
        sections: &[
            section(0x80_0000, SectionKind::SecMem),
            section(0x80_d000, SectionKind::SnpSecrets),
            section(0x80_e000, SectionKind::Cpuid),
            section(0x81_0000, SectionKind::KernelHashes),
        ],
        reset_eip: 0x80_b004,
        hashes_table_gpa: 0x81_0c00,
    })
}

#[test]
fn faults_are_named_in_the_first_line() {
    let files = Files::new();
    let boot = "--kernel kernel --initrd initrd";
    for (launch, append, known, sentence) in [
        (
            format!("--ovmf good.fd {boot} --vcpus 4 --vcpu-type EPYC-v4"),
            "ro quiet",
            "good.fd",
            "equals what was expected",
        ),
        (
            format!("--ovmf good.fd {boot} --vcpus 2 --vcpu-type EPYC-v4"),
            "ro quiet",
            "good.fd",
            "equals this image with 2 vCPUs instead of 4",
        ),
        (
            format!("--ovmf good.fd {boot} --vcpus 4 --vcpu-type EPYC-v4"),
            "ro",
            "good.fd",
            "equals this image without the word quiet",
        ),
        (
            format!("--ovmf good.fd {boot} --vcpus 4 --vcpu-type EPYC-v4"),
            "ro quiet odd=word",
            "good.fd",
            "equals this image with the word odd=word added",
        ),
        (
            format!("--ovmf other.fd {boot} --vcpus 8 --vcpu-type EPYC-v4"),
            "ro quiet",
            "other.fd",
            "equals this image with the firmware of other.fd with 8 vCPUs instead of 4",
        ),
        (
            "--ovmf good.fd --kernel kernel --vcpus 4 --vcpu-type EPYC-v4".to_owned(),
            "ro quiet",
            "good.fd",
            "equals this image with the initrd left out",
        ),
    ] {
        let observed = files.measure(&launch, &["--append", append]);
        let further = ["--known", known, "--token", "odd=word"];
        let (status, text) = files.explain(&observed, &further);
        assert_eq!(text.lines().next(), Some(sentence));
        assert_eq!(status, 0, "{text}");
    }
}

#[test]
fn known_images_are_inputs_directories_and_artifacts() {
    let files = Files::new();
    let other = "--ovmf other.fd --kernel kernel2 --vcpu-type EPYC-v4 --vcpus 4";
    fs::create_dir(files.path().join("inputs")).unwrap();
    let write = ["--write-inputs", "inputs/two.json"];
    let observed = files.measure(other, &write);
    let sentence = |known: &str| {
        let (status, text) = files.explain(&observed, &["--known", known]);
        assert_eq!(status, 0, "{known}: {text}");
        text.lines().next().unwrap().to_owned()
    };
    assert_eq!(sentence("inputs/two.json"), "equals image inputs/two.json");
    assert_eq!(sentence("inputs"), "equals image inputs/two.json");

    // What `assay measure --json` prints: of one launch, and of a matrix.
    let single = files.measure(other, &["--json"]);
    files.write("single.json", single.as_bytes());
    assert_eq!(sentence("single.json"), "equals image single.json");
    let matrix = other.replace("--ovmf", "--ovmf good.fd --ovmf");
    let matrix = files.measure(&matrix, &["--json"]);
    files.write("matrix.json", matrix.as_bytes());
    assert_eq!(sentence("matrix.json"), "equals image matrix.json[1]");
    files.write("other.json", b"{\"inputs\": [{}]}");
    assert_eq!(files.explain(&observed, &["--known", "other.json"]).0, 1);

    let artifact = files.path().join("artifact");
    fs::create_dir(&artifact).unwrap();
    let inputs: Value =
        serde_json::from_slice(&fs::read(files.path().join("inputs/two.json")).unwrap()).unwrap();
    fs::write(artifact.join("manifest.json"), manifest(&inputs)).unwrap();
    assert_eq!(sentence("artifact"), "equals image artifact");
    assert_eq!(
        sentence("artifact/manifest.json"),
        "equals image artifact/manifest.json"
    );
    let recorded = "--inputs artifact/manifest.json --vcpu-type EPYC-v4 --vcpus 4";
    assert_eq!(files.measure(recorded, &[]), observed);
}

#[test]
fn digests_are_read_as_tools_print_them() {
    let files = Files::new();
    let launch = EXPECTED.replace("--vcpus 4", "--vcpus 2");
    let append = ["--append", "ro quiet"];
    let hex = files.measure(&launch, &append);
    let base64 = files.measure(&format!("{launch} --output-format base64"), &append);
    let sentence = "equals this image with 2 vCPUs instead of 4";
    for observed in [&hex, &format!("sha384:{hex}"), &base64] {
        let (status, text) = files.explain(observed, &[]);
        assert_eq!((status, text.lines().next()), (0, Some(sentence)));
    }

    let mut report = assay_tee::report::AttestationReport::zeroed();
    report.version.set(3);
    report.measurement = hex::decode(&hex).unwrap().try_into().unwrap();
    report.signature_algo.set(1);
    files.write("report.bin", &report.encode());
    files.write("short.bin", &report.encode()[1..]);
    let explain = |arguments: &str| {
        let start = ["explain", "--append", "ro quiet"].into_iter();
        let output = files.run(&start.chain(arguments.split(' ')).collect::<Vec<_>>());
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().next().unwrap_or_default().to_owned();
        (output.status.code().unwrap(), line)
    };
    let of = |report: &str| explain(&format!("{EXPECTED} --observed-report {report}"));
    assert_eq!(of("report.bin"), (0, sentence.to_owned()));
    assert_eq!(of("short.bin").0, 1);
    assert_eq!(of(&format!("report.bin --observed {hex}")).0, 2);
    assert_eq!(explain(EXPECTED).0, 2, "no digest");
    let longer = base64 + "AA==";
    assert_eq!(explain(&format!("{EXPECTED} --observed {longer}")).0, 2);
}

#[test]
fn a_kernel_that_was_not_to_be_hashed_is_named() {
    let files = Files::new();
    let off = "--ovmf good.fd --vcpu-type EPYC-v4 --vcpus 4";
    let further = ["--no-kernel-hashes"];
    let on = files.measure(EXPECTED, &["--append", "ro quiet"]);
    for (observed, sentence) in [
        (files.measure(off, &[]), "equals what was expected"),
        (
            on.clone(),
            "equals this image with kernel hashes on and the kernel of the given options",
        ),
    ] {
        let (status, text) = files.explain(&observed, &further);
        assert_eq!((status, text.lines().next()), (0, Some(sentence)));
    }
    let arguments = ["explain", "--no-kernel-hashes", "--observed", &on].into_iter();
    let arguments: Vec<_> = arguments.chain(off.split(' ')).collect();
    assert_eq!(files.run(&arguments).status.code(), Some(1), "no kernel");
}

/// The manifest of an artifact whose launch digests follow from `inputs`.
fn manifest(inputs: &Value) -> String {
    let entry = |path: &str| json!({"path": path, "sha256": Sha256Digest::of(b""), "size": 0});
    let mut described = entry("uki.efi");
    described["sections"] = json!([]);
    described["cmdline"] = json!("console=ttyS0");
    described["uname"] = json!("6.12");
    described["pcrs"] = json!({});
    let mut root_disk = entry("rootfs.img");
    root_disk["root"] = json!({
        "type": "dmVerity",
        "serial": "assay-root",
        "blockSize": 4096,
        "dataBlocks": 1,
        "hashStartBlock": 1,
        "rootHash": Sha256Digest::of(b""),
        "salt": "",
    });
    let image = format!("registry.example/image@{}", Sha256Digest::of(b""));
    json!({
        "version": 1,
        "uki": described,
        "firmware": entry("firmware.fd"),
        "layout": "DmVerity",
        "rootDisk": root_disk,
        "measurement": inputs,
        "hardening": {},
        "inputs": {"rootfs": image, "bootKit": image, "agent": Sha256Digest::of(b"")},
        "builder": {"version": "0"},
    })
    .to_string()
}

#[test]
fn recorded_command_lines_are_explained() {
    let files = Files::new();
    let write = ["--append", "ro quiet", "--write-inputs", "inputs.json"];
    files.measure(EXPECTED, &write);
    let observed = files.measure(EXPECTED, &["--append", "ro"]);
    let shape = "--inputs inputs.json --vcpus 4 --vcpu-type EPYC-v4";
    let arguments: Vec<&str> = ["explain", "--observed", observed.as_str()]
        .into_iter()
        .chain(shape.split(' '))
        .collect();
    let output = files.run(&arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    let sentence = "equals this image without the word quiet";
    assert_eq!(text.lines().next(), Some(sentence));
}

#[test]
fn json_holds_sentence_changes_and_launch() {
    let files = Files::new();
    let launch = EXPECTED.replace("--vcpus 4", "--vcpus 2");
    let observed = files.measure(&launch, &["--append", "ro quiet"]);
    let (status, text) = files.explain(&observed, &["--json"]);
    assert_eq!(status, 0);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["observed"], format!("sha384:{observed}"));
    assert_eq!(
        json["sentence"],
        "equals this image with 2 vCPUs instead of 4"
    );
    let cause = &json["explanation"]["causes"][0];
    assert_eq!(
        cause["changes"],
        json!([{"type": "vcpus", "found": 2, "expected": 4}])
    );
    assert_eq!(cause["launch"]["vcpus"], 2);
    // The launch can be measured again.
    files.write(
        "again.json",
        cause["launch"]["inputs"].to_string().as_bytes(),
    );
    let again = "--inputs again.json --vcpus 2 --vcpu-type EPYC-v4";
    assert_eq!(files.measure(again, &[]), observed);
}

#[test]
fn exit_statuses_tell_the_outcomes_apart() {
    let files = Files::new();
    let nothing = "00".repeat(48);
    let (status, text) = files.explain(&nothing, &["--known", "other.fd"]);
    assert_eq!(status, 3);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "equals nothing that is known");
    assert!(lines[1].starts_with("ruled out: this image in "), "{text}");

    let status = |arguments: &str| {
        let arguments = arguments.split(' ').chain(["--observed", nothing.as_str()]);
        let arguments: Vec<&str> = std::iter::once("explain").chain(arguments).collect();
        files.run(&arguments).status.code().unwrap()
    };
    for usage in [
        "--ovmf good.fd --vcpus 4",
        "--ovmf good.fd --vcpus 1-4 --vcpu-type EPYC-v4",
        "--ovmf good.fd --ovmf other.fd --vcpus 4 --vcpu-type EPYC-v4",
        "--ovmf good.fd --vcpus 4 --vcpu-type EPYC-v4 --mode seves",
        "--ovmf good.fd --vcpus 4 --vcpu-type EPYC-v4 --verbose",
        "--ovmf good.fd --vcpus 0 --vcpu-type EPYC-v4",
        "--igvm guest.igvm --vcpus 4",
        "--no-such-option",
    ] {
        assert_eq!(status(usage), 2, "{usage}");
    }
    for error in [
        "--ovmf missing.fd --vcpus 4 --vcpu-type EPYC-v4",
        "--ovmf kernel --vcpus 4 --vcpu-type EPYC-v4",
        "--ovmf good.fd --vcpus 4 --vcpu-type EPYC-v4 --known missing",
        "--ovmf good.fd --vcpus 4 --vcpu-type EPYC-v4 --known kernel",
        "--ovmf good.fd --vcpus 4 --vcpu-type EPYC-v4 --guest-features 2",
    ] {
        assert_eq!(status(error), 1, "{error}");
    }
}
