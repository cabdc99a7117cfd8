//! `assay pcrs` as a person runs it.

#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and has not is a failure"
)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use assay_image::rope::Rope;
use assay_image::uki::{OptionalSections, UkiParts, encode_uki};

fn pcrs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .arg("pcrs")
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn values_are_printed_like_systemd_measure_prints_them() {
    const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
    let Some(root) = std::env::var_os("ASSAY_IMAGE_ORACLES") else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: ASSAY_IMAGE_ORACLES is not set (cargo xtask programs)"
        );
        return;
    };
    // A stub is a PE image, as a kernel is.
    let stub = std::fs::read(Path::new(&root).join(STUB)).unwrap().into();
    let uki = encode_uki(&UkiParts {
        stub: &stub,
        kernel: &stub,
        initrd: &Rope::from(b"initrd".to_vec()),
        cmdline: "quiet",
        uname: "6.12",
        optional: OptionalSections::default(),
    })
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uki.efi");
    std::fs::write(&path, uki.to_bytes()).unwrap();
    let path = path.to_str().unwrap();

    let plain = pcrs(&[path]);
    assert!(plain.status.success());
    let lines = text(&plain.stdout);
    let pcr_of = |line: &str| line.split(":sha256=").next().unwrap().to_owned();
    assert_eq!(
        lines.lines().map(pcr_of).collect::<Vec<_>>(),
        ["4", "11", "12"]
    );
    let notes = text(&plain.stderr);
    assert!(notes.contains("PCR 9 cannot be predicted"), "{notes}");

    let line = |output: &Output, pcr: &str| {
        let lines = text(&output.stdout);
        let mut lines = lines.lines();
        lines.find(|line| pcr_of(line) == pcr).unwrap().to_owned()
    };
    let disk = pcrs(&[path, "--boot", "disk"]);
    assert_ne!(line(&plain, "4"), line(&disk, "4"));
    assert_eq!(line(&plain, "11"), line(&disk, "11"));
    let entered = pcrs(&[path, "--phase", "enter-initrd"]);
    assert_ne!(line(&plain, "11"), line(&entered, "11"));

    let json = pcrs(&[path, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(
        json["values"]["11"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert!(json["events"].as_array().unwrap().len() > 10);
    assert_eq!(json["unpredictable"][0]["pcr"], 9);
}

#[test]
fn what_is_no_uki_is_an_error_that_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uki.efi");
    std::fs::write(&path, "not a PE image").unwrap();
    for path in [path.to_str().unwrap(), "/nowhere/uki.efi"] {
        let output = pcrs(&[path]);
        assert!(!output.status.success());
        let message = text(&output.stderr);
        assert!(message.contains("uki.efi"), "{message}");
    }
}
