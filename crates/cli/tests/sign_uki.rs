//! `assay sign-uki` as a person uses it: with a key in a file, and with a key
//! that only signs what it is given.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn key(name: &str) -> String {
    format!("{}/../image/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn assay(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .current_dir(directory)
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn succeed(directory: &Path, arguments: &[&str]) -> String {
    let output = assay(directory, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(directory: &Path, arguments: &[&str]) -> String {
    let output = assay(directory, arguments);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// A PE32+ image with room for signatures and one section.
fn image() -> Vec<u8> {
    let mut image = vec![0; 0x600];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &[0x40]);
    put(0x40, b"PE\0\0");
    put(0x46, &[1]);
    put(0x54, &[240]);
    put(0x58, &[0x0b, 2]);
    put(0x58 + 32, &0x1000_u32.to_le_bytes());
    put(0x58 + 36, &0x200_u32.to_le_bytes());
    put(0x58 + 60, &0x400_u32.to_le_bytes());
    put(0x58 + 108, &[16]);
    put(0x58 + 240, b".linux");
    for (at, number) in [(8, 0x200_u32), (12, 0x1000), (16, 0x200), (20, 0x400)] {
        put(0x58 + 240 + at, &number.to_le_bytes());
    }
    image
}

#[test]
fn a_key_elsewhere_gives_the_same_file_as_a_key_at_hand() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("uki.efi"), image()).unwrap();
    let (private, certificate) = (key("secure-boot.key.pem"), key("secure-boot.pem"));
    let other_certificate = key("other.pem");
    let create = ["sign-uki", "create", "uki.efi", "--key", &private];
    let create = [&create[..], &["--certificate", &certificate, "-o", "here"]].concat();
    let said = succeed(directory, &create);
    assert!(said.contains("certificate digest  sha256:"), "{said}");

    succeed(directory, &["sign-uki", "prepare", "uki.efi", "-o", "todo"]);
    let signed = Command::new("openssl")
        .current_dir(directory)
        .args(["dgst", "-sha256", "-sign", &private, "-out", "sig", "todo"])
        .status();
    if !signed.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED the part that needs openssl");
        return;
    }
    let assemble = |uki, certificate| {
        let what = ["sign-uki", "assemble", uki, "--certificate", certificate];
        [&what[..], &["--signature", "sig", "-o", "there"]].concat()
    };
    succeed(directory, &assemble("uki.efi", &certificate));
    let file = |name: &str| fs::read(directory.join(name)).unwrap();
    assert_eq!(file("here"), file("there"));

    let why = refused(directory, &assemble("uki.efi", &other_certificate));
    assert!(why.contains("by the certificate's key"), "{why}");
    let mut other = image();
    other[0x400] ^= 1;
    fs::write(directory.join("other.efi"), other).unwrap();
    let why = refused(directory, &assemble("other.efi", &certificate));
    assert!(why.contains("cannot sign other.efi"), "{why}");
}

/// A limit on the length of files ends the program while it writes.
#[test]
fn what_cannot_be_written_whole_leaves_the_file_that_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("uki.efi"), image()).unwrap();
    fs::write(directory.join("signed"), "before").unwrap();
    let create = |limit| {
        Command::new("sh")
            .current_dir(directory)
            .args(["-c", "ulimit -f \"$0\" && exec \"$@\"", limit])
            .args([env!("CARGO_BIN_EXE_assay"), "sign-uki", "create", "uki.efi"])
            .args(["--key", &key("secure-boot.key.pem")])
            .args(["--certificate", &key("secure-boot.pem"), "-o", "signed"])
            .output()
            .unwrap()
    };
    assert!(!create("1").status.success());
    assert_eq!(fs::read(directory.join("signed")).unwrap(), b"before");
    assert!(create("100").status.success());
    assert!(
        fs::read(directory.join("signed"))
            .unwrap()
            .starts_with(b"MZ")
    );
    assert!(!directory.join("signed.partial").exists());
}

#[test]
fn a_pipe_is_no_file_to_replace() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("uki.efi"), image()).unwrap();
    let prepare = ["sign-uki", "prepare", "uki.efi", "-o", "/dev/stdout"];
    let printed = assay(directory, &prepare);
    assert!(printed.status.success());
    succeed(directory, &["sign-uki", "prepare", "uki.efi", "-o", "todo"]);
    let todo = fs::read(directory.join("todo")).unwrap();
    assert!(printed.stdout.starts_with(&todo));
}

#[test]
fn inspect_says_who_signed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("uki.efi"), image()).unwrap();
    let (private, certificate) = (key("secure-boot.key.pem"), key("secure-boot.pem"));
    let create = ["sign-uki", "create", "uki.efi", "--key", &private];
    let create = [
        &create[..],
        &["--certificate", &certificate, "-o", "signed"],
    ]
    .concat();
    let said = succeed(directory, &create);
    let digest = said.rsplit_once("  ").unwrap().1.trim();

    let text = succeed(directory, &["inspect", "signed"]);
    assert!(text.contains("CN=Secure Boot"), "{text}");
    assert!(text.contains(digest), "{text}");
    let inspected = |name| -> Value {
        serde_json::from_str(&succeed(directory, &["inspect", name, "--json"])).unwrap()
    };
    let signature = &inspected("signed")["signatures"][0];
    assert_eq!(signature["certificate"], digest);
    assert_eq!(inspected("uki.efi")["signatures"], Value::Array(Vec::new()));

    let mut changed = fs::read(directory.join("signed")).unwrap();
    changed[0x400] ^= 1;
    fs::write(directory.join("changed"), changed).unwrap();
    let problem = inspected("changed")["signatures"][0]["problem"].clone();
    assert!(
        problem
            .as_str()
            .unwrap()
            .contains("of an image with digest"),
        "{problem}"
    );
}

#[test]
fn what_firmware_would_not_verify_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("uki.efi"), image()).unwrap();
    let create = |key: &str, certificate: &str| {
        let what = ["sign-uki", "create", "uki.efi", "--key", key];
        let why = [&what[..], &["--certificate", certificate, "-o", "out"]].concat();
        let why = refused(directory, &why);
        assert!(!directory.join("out").exists());
        why
    };
    let (private, certificate) = (key("secure-boot.key.pem"), key("secure-boot.pem"));
    for (why, option, words) in [
        (create(&private, &key("p256.pem")), "--certificate", "RSA"),
        (create(&key("p256.key.pem"), &certificate), "--key", "RSA"),
        (
            create(&key("encrypted.key.pem"), &certificate),
            "--key",
            "encrypted",
        ),
        (create("/nowhere", &certificate), "--key", "/nowhere"),
    ] {
        assert!(why.contains(option) && why.contains(words), "{why}");
    }
}

#[test]
fn a_build_takes_a_certificate_only_with_what_signs() {
    let directory = tempfile::tempdir().unwrap();
    let build = ["build", "--recipe", "r", "-o", "o"];
    for options in [
        &["--secure-boot-certificate", "c"][..],
        &["--secure-boot-key", "k"],
        &["--secure-boot-signature", "s"],
    ] {
        let why = refused(directory.path(), &[&build[..], options].concat());
        assert!(why.contains("--secure-boot"), "{why}");
    }
}
