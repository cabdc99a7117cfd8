//! `assay measure` as a script uses it: arguments in, a digest on standard
//! output and an exit status out.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../measure/tests/support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::{LaunchDigest, Sha256Digest, Sha384Digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use synthetic_firmware::{SyntheticFirmware, build_firmware, build_svsm};

const fn section(gpa: u32, size: u32, kind: SectionKind) -> Section {
    Section { gpa, size, kind }
}

const MEMORY: Section = section(0x80_0000, 0x9000, SectionKind::SecMem);
const SECRETS: Section = section(0x80_d000, 0x1000, SectionKind::SnpSecrets);
const CPUID: Section = section(0x80_e000, 0x1000, SectionKind::Cpuid);
const HASHES: Section = section(0x81_0000, 0x1000, SectionKind::KernelHashes);

/// The digest of a report that a Milan processor signed, of the launch in
/// `crates/measure/vectors/hardware.toml`.
const SIGNED: &str = "7f51e17f72a04d5422cb2c00998166536019a217376f3aa45a630e59c805a599\
                      847ff250dbffcd07e1ba639771d6f05d";

/// A directory with every file that the tests name.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            fs::write(directory.path().join(name), bytes).unwrap();
        };
        let firmware = |sections: &[Section], reset_eip, hashes_table_gpa| {
            build_firmware(&SyntheticFirmware {
                pages: 4,
                filler: 0xf4,
                sections,
                reset_eip,
                hashes_table_gpa,
            })
        };
        let good = firmware(&[MEMORY, SECRETS, CPUID, HASHES], 0x80_b004, 0x81_0c00);
        write("good.fd", &good);
        write("cut.fd", &good[..good.len() - 4096]);
        write("odd.fd", &good[..good.len() - 1]);
        write("empty.fd", &[]);
        let plain = [MEMORY, SECRETS, CPUID];
        write("no-hashes.fd", &firmware(&plain, 0x80_b004, 0));
        write("one-cpu.fd", &firmware(&plain, 0, 0));
        write("no-sections.fd", &firmware(&[], 0x80_b004, 0));
        let overlapping = section(0x80_8000, 0x1000, SectionKind::SnpSecrets);
        write(
            "overlap.fd",
            &firmware(&[MEMORY, overlapping], 0x80_b004, 0),
        );
        let unknown = section(0x80_d000, 0x1000, SectionKind::Unknown(9));
        write("unknown.fd", &firmware(&[MEMORY, unknown], 0x80_b004, 0));
        let elsewhere = [MEMORY, SECRETS, CPUID, HASHES];
        write("unmeasured.fd", &firmware(&elsewhere, 0x80_b004, 0x82_0c00));
        let low = section(0, 0x9000, SectionKind::SecMem);
        write("svsm.bin", &build_svsm(2, 0x90, &[low], 0x10));
        write("vars.fd", &[0; 0x4000]);
        write("kernel", b"a kernel");
        write("initrd", b"an initrd");
        write("signed.json", signed_inputs(true).to_string().as_bytes());
        write(
            "signed-firmware.json",
            signed_inputs(false).to_string().as_bytes(),
        );
        write("empty.json", b"{}");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs `assay measure` in the directory.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_assay"))
            .arg("measure")
            .args(arguments)
            .current_dir(self.path())
            .output()
            .unwrap()
    }

    /// Standard output of a run that must succeed.
    fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// [`Files::stdout`] for arguments separated by blanks.
    fn line(&self, arguments: &str) -> String {
        self.stdout(&arguments.split(' ').collect::<Vec<_>>())
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.line(arguments)).unwrap()
    }
}

/// The launch of the signed report from the repository's vectors.
fn signed_case() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../measure/vectors/hardware.toml");
    let vectors: Value = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    vectors["case"][0].clone()
}

/// Its recorded inputs, with or without the kernel's hashes.
fn signed_inputs(with_kernel: bool) -> Value {
    let case = signed_case();
    let sha256 = |name: &str| format!("sha256:{}", case[name].as_str().unwrap());
    let cmdline = format!("{}\0", case["cmdline"].as_str().unwrap());
    let hashes = json!({
        "kernel": sha256("kernel_sha256"),
        "initrd": sha256("initrd_sha256"),
        "cmdline": Sha256Digest::of(cmdline.as_bytes()),
    });
    let kernel_hashes = if with_kernel { hashes } else { Value::Null };
    json!({"firmware": case["firmware_inputs"], "kernelHashes": kernel_hashes})
}

#[test]
fn a_signed_digest_is_recomputed_without_a_file_of_the_launch() {
    let files = Files::new();
    let shape = "--vcpus 2 --vcpu-type EPYC-v4";
    assert_eq!(
        files.line(&format!("--inputs signed.json {shape}")),
        format!("{SIGNED}\n")
    );

    let case = signed_case();
    let text = |name: &str| case[name].as_str().unwrap().to_owned();
    let hashes = [
        text("kernel_sha256"),
        format!("sha256:{}", text("initrd_sha256")),
    ];
    let firmware = format!("--inputs signed-firmware.json {shape}");
    let mut arguments: Vec<&str> = firmware.split(' ').collect();
    arguments.extend(["--kernel-hash", &hashes[0], "--initrd-hash", &hashes[1]]);
    let cmdline = text("cmdline");
    let append = [&arguments[..], &["--append", &cmdline]].concat();
    assert_eq!(files.stdout(&append), format!("{SIGNED}\n"));
    let cmdline_hash = Sha256Digest::of(format!("{cmdline}\0").as_bytes()).to_hex();
    let by_hash = [&arguments[..], &["--cmdline-hash", &cmdline_hash]].concat();
    assert_eq!(files.stdout(&by_hash), format!("{SIGNED}\n"));
}

/// Arguments that must give the same digest, and so the same line.
#[test]
fn the_same_launch_has_the_same_digest_however_it_is_said() {
    let files = Files::new();
    let kernel = Sha256Digest::of(b"a kernel").to_hex();
    let initrd = Sha256Digest::of(b"an initrd").to_hex();
    let cmdline = Sha256Digest::of(b"quiet\0").to_hex();
    let no_cmdline = Sha256Digest::of(b"\0").to_hex();
    let milan = "--ovmf good.fd --vcpus 3 --vcpu-type EPYC-Milan";
    let booted = format!("{milan} --kernel kernel --initrd initrd --append quiet");
    let svsm = "--mode snp:svsm --ovmf good.fd --svsm svsm.bin --vcpus 2 --vcpu-type EPYC-v4";
    let ovmf_hash = files.line("--mode snp:ovmf-hash --ovmf good.fd");
    let rows = [
        (milan.to_owned(), format!("{milan} --mode snp")),
        (milan.to_owned(), format!("{milan} --vmm-type qemu")),
        (milan.to_owned(), format!("{milan} --guest-features 1")),
        (
            milan.to_owned(),
            format!("{milan} --guest-features SNPActive"),
        ),
        (milan.to_owned(), format!("{milan} --output-format hex")),
        (
            milan.to_owned(),
            format!("{milan} --snp-ovmf-hash {}", ovmf_hash.trim()),
        ),
        (milan.to_owned(), format!("{milan} --verbose")),
        (
            milan.to_owned(),
            "--ovmf good.fd --vcpus 3-3 --vcpu-sig 0x00a00f11".to_owned(),
        ),
        (
            milan.to_owned(),
            "--ovmf good.fd --vcpus 3 --vcpu-family 25 --vcpu-model 1 --vcpu-stepping 1".to_owned(),
        ),
        (
            format!("{milan} --guest-features 0x21"),
            format!("{milan} --guest-features snpactive,debugswap"),
        ),
        (
            booted.clone(),
            format!("{milan} --kernel kernel --initrd-hash {initrd} --append quiet"),
        ),
        (
            booted,
            format!(
                "{milan} --kernel-hash {kernel} --initrd-hash {initrd} --cmdline-hash {cmdline}"
            ),
        ),
        (
            format!("{milan} --kernel kernel"),
            format!("{milan} --kernel kernel --cmdline-hash {no_cmdline}"),
        ),
        (
            "--ovmf good.fd --vcpus 2 --vmm-type EC2".to_owned(),
            "--ovmf good.fd --vcpus 2 --vmm-type ec2".to_owned(),
        ),
        (
            format!("{svsm} --vars-size 16384"),
            format!("{svsm} --vars-file vars.fd --vmm-type QEMU --svsm-fpu before-init2"),
        ),
    ];
    for (one, other) in rows {
        assert_eq!(files.line(&one), files.line(&other), "{one} | {other}");
    }
}

/// Arguments that must all give different digests.
#[test]
fn everything_that_is_measured_changes_the_digest() {
    let files = Files::new();
    let base = "--ovmf good.fd --vcpus 2";
    let svsm = "--mode snp:svsm --ovmf good.fd --svsm svsm.bin --vcpus 2 --vcpu-type EPYC-v4";
    let mut arguments: Vec<String> = [
        "--vcpu-type EPYC-v4",
        "--vcpu-type EPYC-Genoa",
        "--vcpu-type EPYC-v4 --guest-features SNPActive,DebugSwap",
        "--vcpu-type EPYC-v4 --vmm-type QEMU-before-init2",
        "--vcpu-type EPYC-v4 --kernel kernel",
        "--vcpu-type EPYC-v4 --kernel kernel --initrd initrd",
        "--vcpu-type EPYC-v4 --kernel kernel --append quiet",
        "--vcpu-type EPYC-v4 --mode seves",
        "--vmm-type ec2",
        "--vmm-type ec2-before-rdx",
        "--vmm-type gce",
        "--vmm-type gce-genoa",
        "--vmm-type krun",
    ]
    .map(|rest| format!("{base} {rest}"))
    .into();
    arguments.push("--ovmf good.fd --mode sev".to_owned());
    arguments.push("--ovmf good.fd --mode sev --kernel kernel".to_owned());
    arguments.push("--ovmf good.fd --mode snp:ovmf-hash".to_owned());
    arguments.push("--ovmf no-hashes.fd --vcpus 2 --vcpu-type EPYC-v4".to_owned());
    for rest in [
        "--vars-size 16384",
        "--vars-size 4096",
        "--vars-size 16384 --svsm-fpu init2",
        "--vars-size 16384 --svsm-fpu sev-snp-measure",
    ] {
        arguments.push(format!("{svsm} {rest}"));
    }
    let mut digests: Vec<String> = arguments.iter().map(|line| files.line(line)).collect();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), arguments.len());
}

#[test]
fn a_matrix_holds_the_digests_of_its_shapes() {
    let files = Files::new();
    let matrix = "--vcpus 1,2-3 --vcpu-type EPYC-v4,EPYC-Turin --vcpu-type EPYC-Rome-v5 \
                  --ovmf good.fd --ovmf no-hashes.fd";
    let table = files.line(matrix);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["FIRMWARE", "CPU", "VCPUS", "DIGEST"]);
    assert_eq!(lines.len(), 1 + 2 * 3 * 3);
    let rows = files.json(&format!("{matrix} --json"))["rows"].clone();
    for (line, row) in lines[1..].iter().zip(rows.as_array().unwrap()) {
        let &[firmware, cpu, vcpus, digest] = line.as_slice() else {
            unreachable!("{line:?}");
        };
        let alone = format!("--ovmf {firmware} --vcpu-type {cpu} --vcpus {vcpus}");
        assert_eq!(files.line(&alone).trim(), digest, "{alone}");
        assert_eq!(row["digest"], digest);
        assert_eq!(
            (&row["firmware"], &row["cpu"]),
            (&json!(firmware), &json!(cpu))
        );
        assert_eq!(row["vcpus"].to_string(), vcpus);
    }
    for mode in [
        "--mode seves --vcpu-type EPYC-v4",
        "--mode snp:svsm --vcpu-type EPYC-v4 --svsm svsm.bin --vars-size 4096",
        "--mode snp --vmm-type gce",
    ] {
        let table = files.line(&format!("{mode} --ovmf good.fd --vcpus 1,3"));
        for (line, vcpus) in table.lines().skip(1).zip([1, 3]) {
            let alone = files.line(&format!("{mode} --ovmf good.fd --vcpus {vcpus}"));
            assert!(line.ends_with(alone.trim()), "{mode}: {line}");
        }
    }
    let table = files.line("--mode sev --ovmf good.fd --ovmf no-hashes.fd");
    assert_eq!(table.lines().count(), 3);
}

#[test]
fn recorded_inputs_stand_for_the_files() {
    let files = Files::new();
    let shape = "--vcpus 4 --vcpu-type EPYC-Milan";
    for (name, mode, with_files) in [
        (
            "a.json",
            "--mode snp",
            "--ovmf good.fd --kernel kernel --append quiet",
        ),
        (
            "b.json",
            "--mode snp:svsm",
            "--ovmf good.fd --svsm svsm.bin --vars-file vars.fd",
        ),
    ] {
        let recorded = format!("{mode} {shape} {with_files} --write-inputs {name}");
        let digest = files.line(&recorded);
        let again = format!("{mode} {shape} --inputs {name}");
        assert_eq!(files.line(&again), digest, "{mode}");
        let printed = files.json(&format!("{mode} {shape} {with_files} --json"))["inputs"].clone();
        let written: Value =
            serde_json::from_slice(&fs::read(files.path().join(name)).unwrap()).unwrap();
        assert_eq!(printed, written, "{mode}");
    }
}

#[test]
fn json_holds_digest_inputs_and_trace() {
    let files = Files::new();
    let shape = "--ovmf good.fd --kernel kernel --vcpus 2 --vcpu-type EPYC-v4";
    let json = files.json(&format!("{shape} --json"));
    let digest = files.line(shape);
    assert_eq!(json["digest"], digest.trim());
    assert_eq!(json["mode"], "snp");
    assert_eq!(json["vcpus"], 2);
    assert_eq!(json["profile"]["vmm"], "qemu");
    let kernel = Sha256Digest::of(b"a kernel").to_string();
    assert_eq!(json["inputs"]["kernelHashes"]["kernel"], kernel);
    let trace = json["trace"].as_array().unwrap();
    let kinds: Vec<_> = trace
        .iter()
        .map(|region| region["kind"].as_str().unwrap())
        .collect();
    let expected = [
        "firmware",
        "sec-mem",
        "secrets",
        "cpuid",
        "kernel-hashes",
        "vmsa",
        "vmsa",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(trace[6]["digestAfter"], format!("sha384:{}", digest.trim()));
}

#[test]
fn save_areas_are_written_as_they_are_measured() {
    let files = Files::new();
    let qemu = "--ovmf good.fd --vcpus 3 --vcpu-type EPYC-v4";
    let svsm = "--mode snp:svsm --svsm svsm.bin --vars-size 4096";
    for (directory, arguments) in [("snp", qemu.to_owned()), ("svsm", format!("{svsm} {qemu}"))] {
        let json = files.json(&format!("{arguments} --json --dump-vmsa {directory}/vmsas"));
        let trace = json["trace"].as_array().unwrap();
        let vmsas: Vec<_> = trace
            .iter()
            .filter(|region| region["kind"] == "vmsa")
            .collect();
        assert_eq!(vmsas.len(), 3);
        for (index, region) in vmsas.iter().enumerate() {
            let path = files
                .path()
                .join(format!("{directory}/vmsas/vmsa{index}.bin"));
            let page = fs::read(path).unwrap();
            assert_eq!(page.len(), 4096);
            assert_eq!(region["contents"], Sha384Digest::of(&page).to_string());
        }
    }
    files.line(&format!("--mode seves {qemu} --dump-vmsa"));
    let page = fs::read(files.path().join("vmsa2.bin")).unwrap();
    assert_eq!(page[0x3b0..0x3b8], [0; 8], "SEV-ES has no SEV_FEATURES");
    assert!(!files.path().join("vmsa3.bin").exists());
}

#[test]
fn base64_is_of_the_bytes() {
    let files = Files::new();
    let shape = "--ovmf good.fd --vcpus 1 --vmm-type ec2";
    let base64 = files.line(&format!("{shape} --output-format base64"));
    let bytes = BASE64_STANDARD.decode(base64.trim()).unwrap();
    let digest = LaunchDigest::new(bytes.try_into().unwrap());
    assert_eq!(files.line(shape).trim(), digest.to_hex());
}

/// Scripts for sev-snp-measure give them; the digest is the same without.
#[test]
fn options_that_change_nothing_are_noted() {
    let files = Files::new();
    let sev_es = "--mode seves --ovmf good.fd --vcpus 2 --vcpu-type EPYC-v4";
    for (plain, more, note) in [
        ("--mode sev --ovmf good.fd", "--vcpus 2", "--vcpus does not"),
        (
            "--mode sev --ovmf good.fd",
            "--vcpu-type EPYC",
            "--vcpu-type",
        ),
        ("--mode sev --ovmf good.fd", "--vcpu-sig 1", "--vcpu-sig"),
        ("--mode sev --ovmf good.fd", "--vmm-type ec2", "--vmm-type"),
        (
            "--mode snp:ovmf-hash --ovmf good.fd",
            "--vcpu-family 25 --vcpu-model 1 --vcpu-stepping 1",
            "--vcpu-family",
        ),
        (
            sev_es,
            "--guest-features 0x21",
            "--guest-features does not apply to --mode seves: SEV and SEV-ES have none",
        ),
        (
            "--ovmf good.fd --vcpus 1 --vmm-type ec2",
            "--vcpu-type EPYC-Milan",
            "change nothing with this --vmm-type",
        ),
        ("--mode sev --ovmf good.fd --kernel kernel", "--append=", ""),
    ] {
        let with = format!("{plain} {more}");
        let output = files.run(&with.split(' ').collect::<Vec<_>>());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{with}: {stderr}");
        assert!(stderr.contains(note), "{with}: {stderr}");
        assert_eq!(stderr.is_empty(), note.is_empty(), "{with}: {stderr}");
        let digest = String::from_utf8(output.stdout).unwrap();
        assert_eq!(digest, files.line(plain), "{with}");
    }
}

/// What was measured, piece by piece.
#[test]
fn streams_are_traced() {
    let files = Files::new();
    let sev_es = "--mode seves --ovmf good.fd --vcpus 2 --vcpu-type EPYC-v4 --kernel kernel";
    let document: Value = serde_json::from_str(&files.line(&format!("{sev_es} --json"))).unwrap();
    let trace = document["trace"].as_array().unwrap();
    let kinds: Vec<_> = trace.iter().map(|region| region["kind"].as_str()).collect();
    let expected = ["firmware", "kernel-hashes", "vmsa", "vmsa"].map(Some);
    assert_eq!(kinds, expected);
    assert_eq!(trace[0]["contents"], trace[0]["digestAfter"]);
    assert_eq!(trace[1]["length"], 176);
    assert_eq!(
        (&trace[2]["vcpu"], &trace[3]["vcpu"]),
        (&0.into(), &1.into())
    );
    let last = trace[3]["digestAfter"].as_str().unwrap();
    assert_eq!(
        last,
        format!("sha256:{}", document["digest"].as_str().unwrap())
    );
    assert_eq!(files.line(sev_es).trim(), document["digest"]);
}

/// A reader that has seen enough is no error.
#[test]
fn a_closed_pipe_is_no_error() {
    let files = Files::new();
    let arguments = "--ovmf good.fd --vcpus 1-512 --vmm-type gce --json";
    let mut process = Command::new(env!("CARGO_BIN_EXE_assay"))
        .current_dir(files.0.path())
        .arg("measure")
        .args(arguments.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
}

#[test]
fn nothing_but_the_digest_goes_to_standard_output() {
    let files = Files::new();
    let svsm = "--mode snp:svsm --ovmf good.fd --svsm svsm.bin --vars-size 4096 --vcpus 1 \
                --vcpu-type EPYC-v4";
    for (arguments, on_stderr) in [
        ("--ovmf good.fd --vcpus 1 --vmm-type gce".to_owned(), ""),
        (
            "--ovmf good.fd --vcpus 1 --vmm-type gce -v".to_owned(),
            "REGION",
        ),
        (
            "--ovmf good.fd --mode snp:ovmf-hash -v".to_owned(),
            "REGION",
        ),
        (svsm.to_owned(), "note: the FPU state is before-init2"),
        (format!("{svsm} --svsm-fpu init2"), ""),
    ] {
        let output = files.run(&arguments.split(' ').collect::<Vec<_>>());
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success());
        let digest = stdout.strip_suffix('\n').unwrap();
        assert!(
            digest.len() == 96 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{arguments}: {stdout}"
        );
        assert!(stderr.starts_with(on_stderr), "{arguments}: {stderr}");
        assert_eq!(
            stderr.is_empty(),
            on_stderr.is_empty(),
            "{arguments}: {stderr}"
        );
    }
}

/// Arguments that are refused: 2 for what is no such option or value, 1 for
/// what makes no sense together or cannot be measured; and what the message
/// says.
const REFUSED: &[(&str, i32, &str)] = &[
    // Values.
    (
        "--vcpus 0 --vmm-type gce --ovmf good.fd",
        2,
        "vcpus must be between 1 and 512, got 0",
    ),
    (
        "--vcpus 513 --vmm-type gce --ovmf good.fd",
        2,
        "vcpus must be between 1 and 512, got 513",
    ),
    (
        "--vcpus 1-100000 --vmm-type gce --ovmf good.fd",
        2,
        "must be between 1 and 512",
    ),
    (
        "--vcpus 8-4 --vmm-type gce --ovmf good.fd",
        2,
        "range 8-4 runs backwards; write 4-8",
    ),
    (
        "--vcpus many --vmm-type gce --ovmf good.fd",
        2,
        "write 4, 1-64 or 1,2,4-8",
    ),
    (
        "--vcpus -3 --vmm-type gce --ovmf good.fd",
        2,
        "unexpected argument '-3'",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --guest-features 0x10000000000000001",
        2,
        "is no number of at most 64 bits",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --guest-features SNPActive,Debug",
        2,
        "unknown guest feature \"Debug\"; known: SNPActive",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --guest-features 0x20",
        1,
        "lack bit 0 (SNPActive), which every SEV-SNP guest has",
    ),
    (
        "--vcpus 1 --vcpu-type epyc-milan --ovmf good.fd",
        1,
        "--vcpu-type: unknown CPU model",
    ),
    (
        "--vcpus 1 --vcpu-type host --ovmf good.fd",
        1,
        "explicit signature",
    ),
    (
        "--vcpus 1 --vcpu-sig 0x100000000 --ovmf good.fd",
        2,
        "does not fit into 32 bits",
    ),
    (
        "--vcpus 1 --vcpu-family 25 --vcpu-model 256 --vcpu-stepping 1 --ovmf good.fd",
        1,
        "CPU model number must be at most 255",
    ),
    (
        "--vcpus 1 --vmm-type azure --ovmf good.fd",
        2,
        "possible values: QEMU",
    ),
    ("--mode tdx --ovmf good.fd", 2, "possible values: sev"),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --snp-ovmf-hash 00",
        2,
        "expected 96 hex digits",
    ),
    (
        "--mode sev --ovmf good.fd --kernel-hash 00",
        2,
        "expected 64 hex digits",
    ),
    // Options that are missing.
    (
        "--vcpus 1 --vmm-type gce",
        1,
        "--ovmf is required in --mode snp",
    ),
    ("--mode sev", 1, "--ovmf is required in --mode sev"),
    (
        "--vmm-type gce --ovmf good.fd",
        1,
        "--vcpus is required in --mode snp",
    ),
    (
        "--mode seves --vcpu-type EPYC-v4 --ovmf good.fd",
        1,
        "--vcpus is required in --mode seves",
    ),
    (
        "--vcpus 1 --ovmf good.fd",
        1,
        "give --vcpu-type, --vcpu-sig or --vcpu-family",
    ),
    (
        "--vcpus 1 --vcpu-family 25 --ovmf good.fd",
        1,
        "--vcpu-family, --vcpu-model and --vcpu-stepping need each other; give all three",
    ),
    (
        "--mode sev --ovmf good.fd --initrd initrd",
        1,
        "--initrd and --initrd-hash need a kernel",
    ),
    (
        "--mode sev --ovmf good.fd --append quiet",
        1,
        "--append and --cmdline-hash need a kernel",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vcpu-type EPYC-v4 --ovmf good.fd --svsm svsm.bin",
        1,
        "needs --ovmf, --svsm and either --vars-size or --vars-file",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vcpu-type EPYC-v4 --ovmf good.fd --vars-size 4096",
        1,
        "needs --ovmf, --svsm and either --vars-size or --vars-file",
    ),
    // Options that exclude each other.
    (
        "--vcpus 1 --vcpu-type EPYC-v4 --vcpu-sig 1 --ovmf good.fd",
        1,
        "--vcpu-type, --vcpu-sig and --vcpu-family exclude each other",
    ),
    (
        "--vcpus 1 --vcpu-type EPYC-v4 --vcpu-stepping 1 --ovmf good.fd",
        1,
        "--vcpu-type, --vcpu-sig and --vcpu-family exclude each other",
    ),
    (
        "--mode sev --ovmf good.fd --kernel kernel --kernel-hash \
         0000000000000000000000000000000000000000000000000000000000000000",
        1,
        "--kernel and --kernel-hash exclude each other",
    ),
    (
        "--mode sev --ovmf good.fd --kernel kernel --append quiet --cmdline-hash \
         0000000000000000000000000000000000000000000000000000000000000000",
        1,
        "--append and --cmdline-hash exclude each other",
    ),
    (
        "--mode sev --ovmf good.fd --json --output-format base64",
        1,
        "--output-format and --json exclude each other",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vcpu-type EPYC-v4 --ovmf good.fd --svsm svsm.bin \
         --vars-size 4096 --vars-file vars.fd",
        1,
        "--vars-size and --vars-file exclude each other",
    ),
    (
        "--vcpus 1 --vmm-type gce --inputs signed.json --ovmf good.fd",
        1,
        "--ovmf and --inputs exclude each other",
    ),
    (
        "--vcpus 1 --vmm-type gce --inputs signed.json --kernel kernel",
        1,
        "signed.json holds the hashes of a kernel already; leave the options of the kernel out",
    ),
    // Options that the mode would ignore.
    (
        "--mode sev --ovmf good.fd --dump-vmsa",
        1,
        "--dump-vmsa does not apply",
    ),
    (
        "--mode sev --ovmf good.fd --inputs signed.json",
        1,
        "--inputs does not apply",
    ),
    (
        "--mode sev --ovmf good.fd --write-inputs x",
        1,
        "--write-inputs does not apply",
    ),
    (
        "--mode snp:ovmf-hash --ovmf good.fd --kernel kernel",
        1,
        "--kernel does not apply",
    ),
    (
        "--mode snp:ovmf-hash --ovmf good.fd --initrd initrd",
        1,
        "--initrd does not apply",
    ),
    (
        "--mode snp:ovmf-hash --ovmf good.fd --append quiet",
        1,
        "--append does not apply",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --svsm svsm.bin",
        1,
        "--svsm does not apply",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --vars-size 1",
        1,
        "--vars-size does not apply",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --vars-file x",
        1,
        "--vars-file does not apply",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --svsm-fpu init2",
        1,
        "--svsm-fpu does not apply",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vcpu-type EPYC-v4 --ovmf good.fd --svsm svsm.bin \
         --vars-size 4096 --kernel kernel",
        1,
        "--kernel does not apply to --mode snp:svsm",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vmm-type gce --ovmf good.fd --svsm svsm.bin --vars-size 4096",
        1,
        "--mode snp:svsm is about Coconut's QEMU alone",
    ),
    // One launch is asked for, and there are more.
    (
        "--vcpus 1-2 --vmm-type gce --ovmf good.fd --dump-vmsa x",
        1,
        "--dump-vmsa is about one launch, and 2 are asked for",
    ),
    (
        "--vcpus 1 --vcpu-type EPYC-v4,EPYC-Rome --ovmf good.fd --ovmf no-hashes.fd -v",
        1,
        "--verbose is about one launch, and 4 are asked for",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --ovmf no-hashes.fd --write-inputs x",
        1,
        "--write-inputs records one firmware, and 2 are given",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf good.fd --ovmf no-hashes.fd --snp-ovmf-hash \
         000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
        1,
        "--snp-ovmf-hash is of one firmware, and 2 are given",
    ),
    // Files.
    (
        "--vcpus 1 --vmm-type gce --ovmf missing.fd",
        1,
        "read missing.fd: No such file",
    ),
    (
        "--mode sev --ovmf good.fd --kernel missing",
        1,
        "read missing: No such file",
    ),
    ("--mode sev --ovmf good.fd --kernel .", 1, "read .: "),
    (
        "--vcpus 1 --vmm-type gce --inputs empty.json",
        1,
        "missing field `firmware`",
    ),
    (
        "--vcpus 1 --vmm-type gce --inputs kernel",
        1,
        "read the recorded inputs in kernel",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf empty.fd",
        1,
        "firmware of 0 bytes",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf odd.fd",
        1,
        "its length must be a multiple of 4096",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf cut.fd",
        1,
        "it is no OVMF code image",
    ),
    ("--mode sev --ovmf cut.fd", 1, "it is no OVMF code image"),
    (
        "--mode snp:ovmf-hash --ovmf odd.fd",
        1,
        "its length must be a multiple of 4096",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf overlap.fd",
        1,
        "overlaps section 0",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf unknown.fd",
        1,
        "has unknown type 0x9",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf no-sections.fd",
        1,
        "use an OVMF built for SEV-SNP",
    ),
    (
        "--vcpus 2 --vmm-type gce --ovmf one-cpu.fd",
        1,
        "2 vCPUs are asked for",
    ),
    (
        "--vcpus 1-9 --vmm-type gce --ovmf one-cpu.fd",
        1,
        "9 vCPUs are asked for",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf no-hashes.fd --kernel kernel",
        1,
        "measure no-hashes.fd: a kernel is given, but the firmware has no KERNEL_HASHES section",
    ),
    (
        "--mode sev --ovmf no-hashes.fd --kernel kernel",
        1,
        "no hashes table area",
    ),
    (
        "--mode seves --vcpus 1 --vcpu-type EPYC --ovmf no-hashes.fd --kernel kernel",
        1,
        "no hashes table area",
    ),
    (
        "--vcpus 1 --vmm-type gce --ovmf unmeasured.fd --kernel kernel",
        1,
        "so the hashes would be unmeasured",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vcpu-type EPYC-v4 --ovmf good.fd --svsm svsm.bin \
         --vars-size 0",
        1,
        "a variable store of 0 bytes is not possible",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vcpu-type EPYC-v4 --ovmf good.fd --svsm svsm.bin \
         --vars-size 4097",
        1,
        "its size must be a multiple of 4096",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vcpu-type EPYC-v4 --ovmf good.fd --svsm good.fd \
         --vars-size 4096",
        1,
        "SVSM binary names no entry point",
    ),
    (
        "--mode snp:svsm --vcpus 1 --vcpu-type EPYC-v4 --ovmf good.fd --svsm kernel \
         --vars-size 4096",
        1,
        "use svsm.bin as built",
    ),
];

#[test]
fn what_makes_no_sense_is_refused_with_a_sentence() {
    let files = Files::new();
    for &(arguments, status, message) in REFUSED {
        let output = files.run(&arguments.split_whitespace().collect::<Vec<_>>());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments}: {stderr}");
        assert!(stderr.starts_with("error: "), "{arguments}: {stderr}");
        // clap's own messages have several lines.
        let sentence = stderr.replace('\n', " ");
        assert!(sentence.contains(message), "{arguments}: {stderr}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{arguments}");
    }
    let written: Vec<_> = ["x", "vmsa0.bin"]
        .into_iter()
        .filter(|name| files.path().join(name).exists())
        .collect();
    assert_eq!(written, [""; 0], "a refused run writes nothing");
}
