//! `assay inspect` as a person uses it: a file in, what it says out.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../measure/tests/support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::path::Path;
use std::process::{Command, Output};

use assay_psp_sim::{Endorsement, Processor};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::{GuestPolicy, Sha256Digest, TcbVersion};
use serde_json::{Value, json};
use synthetic_firmware::{SyntheticFirmware, build_firmware};

const fn section(gpa: u32, kind: SectionKind) -> Section {
    Section {
        gpa,
        size: 0x1000,
        kind,
    }
}

const MEMORY: Section = section(0x80_0000, SectionKind::SecMem);
const SECRETS: Section = section(0x80_d000, SectionKind::SnpSecrets);
const CPUID: Section = section(0x80_e000, SectionKind::Cpuid);
const HASHES: Section = section(0x81_0000, SectionKind::KernelHashes);

fn firmware(sections: &[Section], reset_eip: u32, hashes_table_gpa: u32) -> Vec<u8> {
    build_firmware(&SyntheticFirmware {
        pages: 1,
        filler: 0xf4,
        sections,
        reset_eip,
        hashes_table_gpa,
    })
}

fn inspect(bytes: &[u8], arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), bytes).unwrap();
    run(directory.path(), &[&["file"], arguments].concat())
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .current_dir(directory)
        .arg("inspect")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn json(bytes: &[u8]) -> Value {
    let output = inspect(bytes, &["--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn text(bytes: &[u8]) -> String {
    let output = inspect(bytes, &[]);
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refusal(bytes: &[u8], arguments: &[&str]) -> String {
    let output = inspect(bytes, arguments);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn firmware_says_what_it_has_and_lacks() {
    let good = firmware(&[MEMORY, SECRETS, CPUID, HASHES], 0x80_b004, 0x81_0c00);
    let found = json(&good);
    assert_eq!(found["kind"], "ovmf");
    assert_eq!(found["size"], 4096);
    assert_eq!(found["digest"], Sha256Digest::of(&good).to_string());
    assert_eq!(found["metadata"]["baseGpa"], "0xfffff000");
    assert_eq!(found["metadata"]["resetEip"], "0x80b004");
    assert_eq!(found["metadata"]["hashesTable"]["gpa"], "0x810c00");
    assert_eq!(
        found["metadata"]["sections"][3],
        json!({"gpa": "0x810000", "size": 4096, "kind": 16, "name": "KERNEL_HASHES"})
    );
    assert!(text(&good).contains("KERNEL_HASHES"));

    for (sections, reset_eip, hashes, notes) in [
        (&[][..], 1, 0, &["no SEV metadata", "never verifies"][..]),
        (
            &[MEMORY, SECRETS, CPUID],
            1,
            0,
            &["SVSM_CAA", "no KERNEL_HASHES", "never verifies"],
        ),
        (
            &[MEMORY],
            0,
            0,
            &[
                "SNP_SECRETS",
                "CPUID",
                "SVSM_CAA",
                "no KERNEL_HASHES",
                "never verifies",
                "one virtual CPU",
            ],
        ),
        (&[MEMORY, MEMORY], 1, 0, &["overlaps section 0"]),
    ] {
        let found = json(&firmware(sections, reset_eip, hashes));
        let found = found["notes"].as_array().unwrap();
        assert_eq!(found.len(), notes.len(), "{found:?}");
        for (found, expected) in found.iter().zip(notes) {
            assert!(found.as_str().unwrap().contains(expected), "{found}");
        }
    }
}

fn report() -> (Vec<u8>, Vec<u8>) {
    let tcb = TcbVersion {
        fmc: None,
        bootloader: 10,
        tee: 0,
        snp: 25,
        microcode: 200,
    };
    let start = "2026-01-01T00:00:00Z".parse().unwrap();
    let endorsement = Endorsement::generate("chip", tcb, start).unwrap();
    let chain = endorsement.chain_pem().unwrap().into_bytes();
    let processor = Processor::new(endorsement).unwrap();
    let launch = processor.launch_start(GuestPolicy::default()).unwrap();
    let guest = launch.launch_finish(Sha256Digest::of(b"")).unwrap();
    let response = guest
        .guest_request(&ReportRequest::new([7; 64], 1).encode())
        .unwrap();
    let report = ReportResponse::parse(&response).unwrap().report;
    (report.to_vec(), chain)
}

#[test]
fn reports_and_certificates_are_shown_whole() {
    let (report, chain) = report();
    let found = json(&report);
    assert_eq!(found["kind"], "report");
    assert_eq!(found["version"], 5);
    assert_eq!(found["vmpl"], 1);
    assert_eq!(found["product"], "Genoa");
    assert_eq!(found["reportData"], "07".repeat(64));
    assert_eq!(found["policy"]["set"][0]["name"], "Smt");
    assert_eq!(found["reportedTcb"]["components"]["microcode"], 200);
    assert_eq!(found["currentFirmware"], "1.55.43");
    assert_eq!(found["keyInfo"]["signingKey"], "VCEK");
    assert_eq!(found["problems"], json!([]));

    // A reserved byte, an unknown platform bit and no known version.
    let mut odd = report.clone();
    (odd[0], odd[0x40], odd[0x4c]) = (9, 0x41, 1);
    let found = json(&odd);
    assert_eq!(found["platformInfo"]["unknown"], "0x40");
    let problems = found["problems"].as_array().unwrap();
    assert!(problems[0].as_str().unwrap().contains("version 9"));
    assert!(problems[1].as_str().unwrap().contains("0x4c"));
    assert!(text(&odd).contains("0x40: no meaning is known"));
    let refused = refusal(&report[1..], &["--kind", "report"]);
    assert!(refused.contains("1184 bytes, got 1183"), "{refused}");

    let found = json(&chain);
    let certificates = found["certificates"].as_array().unwrap();
    let roles: Vec<&str> = certificates
        .iter()
        .map(|certificate| certificate["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["VCEK", "ASK", "ARK"]);
    assert_eq!(certificates[0]["vendor"]["tcb"]["snp"], 25);
    assert_eq!(certificates[2]["product"], "Genoa");
    assert_eq!(certificates[2]["isAmdRoot"], false);
    let refused = refusal(&[0x30, 0x82, 0, 9, 1], &[]);
    assert!(refused.contains("DER byte"), "{refused}");
}

/// A PE32+ image with these sections: headers, then contents of a page each.
fn executable(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const PE: usize = 0x40;
    const OPTIONAL: usize = PE + 24;
    const TABLE: usize = OPTIONAL + 240;
    const PAGE: usize = 0x1000;
    let number = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    let mut image = vec![0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &number(PE));
    put(PE, b"PE\0\0");
    put(PE + 6, &number(sections.len())[..2]);
    put(PE + 20, &number(240)[..2]);
    put(OPTIONAL, &[0x0b, 2]);
    put(OPTIONAL + 32, &number(PAGE));
    put(OPTIONAL + 36, &number(PAGE));
    for (index, (name, content)) in sections.iter().enumerate() {
        let at = TABLE + 40 * index;
        put(at, name.as_bytes());
        put(at + 8, &number(content.len()));
        put(at + 12, &number(PAGE * (index + 1)));
        put(at + 16, &number(PAGE));
        put(at + 20, &number(PAGE * (index + 1)));
    }
    for (_, content) in sections {
        image.extend(*content);
        image.resize(image.len().next_multiple_of(PAGE), 0);
    }
    image
}

#[test]
fn images_show_sections_and_texts() {
    let image = executable(&[
        (".cmdline", b"console=ttyS0 \x1b[31m\0"),
        (".linux", b"kernel"),
        (".initrd", b"initrd"),
    ]);
    let found = json(&image);
    assert_eq!(found["kind"], "uki");
    assert_eq!(found["signed"], false);
    assert_eq!(found["notes"], json!([]));
    assert_eq!(
        found["sections"][1],
        json!({
            "name": ".linux",
            "size": 6,
            "offset": 0x2000,
            "virtualAddress": 0x2000,
            "digest": Sha256Digest::of(b"kernel").to_string(),
        })
    );
    assert_eq!(found["texts"][0]["text"], "console=ttyS0 \u{1b}[31m");
    let text = text(&image);
    assert!(text.contains("console=ttyS0 \u{fffd}[31m"), "{text}");

    let cut = json(&image[..0x3000]);
    let note = cut["notes"][0].as_str().unwrap();
    assert!(
        note.contains(".initrd") && note.contains("0x3000"),
        "{note}"
    );
    let foreign = json(&executable(&[(".text", b"code"), (".osrel", b"ID=x\n")]));
    let notes = foreign["notes"].as_array().unwrap();
    assert!(
        notes[0]
            .as_str()
            .unwrap()
            .contains("no unified kernel image")
    );
    assert!(notes[1].as_str().unwrap().contains(".osrel"));
    let refused = refusal(&image[..0x50], &[]);
    assert!(
        refused.contains("truncated headers at byte 0x58"),
        "{refused}"
    );
}

#[test]
fn what_is_nothing_known_says_what_was_looked_for() {
    let refused = refusal(b"text", &[]);
    assert!(
        refused.contains("MZ") && refused.contains("--kind"),
        "{refused}"
    );
    let refused = refusal(&[0; 4096], &["--kind", "ovmf"]);
    assert!(refused.contains("32 bytes before its end"), "{refused}");
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), &["missing"]);
    assert_eq!(output.status.code(), Some(1));
}
