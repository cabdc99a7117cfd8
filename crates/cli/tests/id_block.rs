//! `assay id-block` as a person uses it: with keys in files, and with a key that
//! only signs what it is given.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use assay_attest::id_block::PrivateKey;
use assay_psp_sim::{Endorsement, IdBlockInput, Processor};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::page_info::PageType;
use assay_tee::{GuestPolicy, Sha256Digest, TcbVersion};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Of sev-snp-measure 0.0.13, tests/test_id_block.py: launch digest and the ID
/// block that follows from it.
const DIGEST: &str = "B28FLQi9p6cAqipgjFyqawDrrSl7bWioWkWx5mmlWLZ+G5HShKMB/mPE+gdQRn7t";
const BLOCK_TAIL: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAwAAAAAA";

fn key(name: &str) -> String {
    format!("{}/../attest/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn assay(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .current_dir(directory)
        .arg("id-block")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn succeed(directory: &Path, arguments: &[&str]) -> String {
    let output = assay(directory, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refuse(directory: &Path, arguments: &[&str], parts: &[&str]) {
    let output = assay(directory, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn create_gives_what_qemu_takes_and_the_same_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let (id, author) = (key("p384.sec1.pem"), key("author.sec1.pem"));
    let arguments = [
        "create",
        "--launch-digest",
        DIGEST,
        "--id-key",
        &id,
        "--author-key",
        &author,
    ];
    let line = succeed(directory.path(), &arguments);
    let line = line.trim_end();
    let rest = line
        .strip_prefix(&format!("id-block={DIGEST}{BLOCK_TAIL},id-auth="))
        .unwrap();
    let auth = rest.strip_suffix(",author-key-enabled=on").unwrap();
    assert_eq!(STANDARD.decode(auth).unwrap().len(), 4096);
    assert_eq!(succeed(directory.path(), &arguments).trim_end(), line);

    let json = [&arguments[..], &["--json"]].concat();
    let json: Value = serde_json::from_str(&succeed(directory.path(), &json)).unwrap();
    assert_eq!(json["qemu"], line);
    assert_eq!(json["idAuth"], auth);
    let digest = |key: &str| {
        format!(
            "sha384:{}",
            succeed(directory.path(), &["key-digest", key]).trim_end()
        )
    };
    assert_eq!(json["idKeyDigest"], digest(&id));
    assert_eq!(json["authorKeyDigest"], digest(&author));
    assert_eq!(digest(&id), digest(&key("p384.public.pem")));

    // Both forms of the files are read back.
    for format in ["binary", "base64"] {
        let files = ["--output", format, "--format", format];
        succeed(directory.path(), &[&arguments[..], &files].concat());
        let block = format!("{format}/id-block");
        let auth = format!("{format}/id-auth");
        let said = succeed(
            directory.path(),
            &["verify", "--id-block", &block, "--id-auth", &auth, "--json"],
        );
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["idKeyDigest"], json["idKeyDigest"]);
        assert_eq!(said["policy"], "0x30000");
    }
    assert_eq!(
        fs::read(directory.path().join("binary/id-auth")).unwrap(),
        STANDARD
            .decode(fs::read(directory.path().join("base64/id-auth")).unwrap())
            .unwrap()
    );
}

/// The signatures come from outside; the result is what `create` makes of the
/// same keys.
#[test]
fn prepare_and_assemble_are_create_in_two_steps() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let block = [
        "--launch-digest",
        DIGEST,
        "--family-id",
        "0102030405060708090a0b0c0d0e0f10",
        "--guest-svn",
        "3",
    ];
    let (id, author) = (key("p384.pkcs8.pem"), key("author.sec1.pem"));
    let public = key("p384.public.pem");
    let keys = ["--id-key", &id, "--author-key", &author, "--output", "made"];
    succeed(path, &[&["create"], &block[..], &keys].concat());
    let prepare = ["--id-public-key", &public, "--output", "todo"];
    succeed(path, &[&["prepare"], &block[..], &prepare].concat());

    for (key, message, signature) in [
        (&id, "todo/id-block", "id.sig"),
        (&author, "todo/id-key", "author.sig"),
    ] {
        let key = PrivateKey::from_pem(&fs::read_to_string(key).unwrap()).unwrap();
        let message = fs::read(path.join(message)).unwrap();
        fs::write(path.join(signature), key.sign(&message).to_fixed()).unwrap();
    }
    // The author's public key from its private key's file.
    let mut assemble = vec![
        "assemble",
        "--id-block",
        "todo/id-block",
        "--id-public-key",
        &public,
        "--id-signature",
        "id.sig",
        "--author-public-key",
        &author,
        "--author-signature",
        "author.sig",
        "--output",
        "assembled",
    ];
    succeed(path, &assemble);
    for file in ["id-block", "id-auth"] {
        assert_eq!(
            fs::read(path.join("assembled").join(file)).unwrap(),
            fs::read(path.join("made").join(file)).unwrap(),
            "{file}"
        );
    }
    assemble[6] = "author.sig";
    refuse(path, &assemble, &["not what the ID key signed"]);
    assemble[6] = "todo/id-key";
    refuse(
        path,
        &assemble,
        &["--id-signature", "no ECDSA P-384 signature"],
    );
}

/// OpenSSL signs for us and verifies what we signed. Skipped, loudly, without it.
#[test]
fn openssl_signatures_are_taken_and_ours_are_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let openssl = |arguments: &[&str]| {
        Command::new("openssl")
            .current_dir(path)
            .args(arguments)
            .output()
    };
    if openssl(&["version"]).is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no openssl");
        return;
    }
    let (id, public) = (key("p384.pkcs8.pem"), key("p384.public.pem"));
    let prepare = ["prepare", "--launch-digest", DIGEST, "--output", "todo"];
    succeed(path, &prepare);
    let sign = ["dgst", "-sha384", "-sign", &id, "-out", "id.der"];
    let signed = openssl(&[&sign[..], &["todo/id-block"]].concat()).unwrap();
    assert!(signed.status.success());
    let assemble = [
        "assemble",
        "--id-block",
        "todo/id-block",
        "--id-public-key",
        &public,
        "--id-signature",
        "id.der",
    ];
    let line = succeed(path, &assemble);
    assert!(!line.contains("author-key-enabled"));

    // A signature of ours, in the form that OpenSSL reads.
    let key = PrivateKey::from_pem(&fs::read_to_string(&id).unwrap()).unwrap();
    let fixed = key
        .sign(&fs::read(path.join("todo/id-block")).unwrap())
        .to_fixed();
    let integer = |bytes: &[u8]| {
        let mut value = vec![0x02, 49, 0];
        value.extend(bytes);
        value
    };
    // DER wants no leading zero before a number whose top bit is clear.
    let minimal = |bytes: &[u8]| {
        if bytes[0] & 0x80 == 0 {
            [&[0x02, 48], bytes].concat()
        } else {
            integer(bytes)
        }
    };
    let body = [minimal(&fixed[..48]), minimal(&fixed[48..])].concat();
    let der = [&[0x30, u8::try_from(body.len()).unwrap()], &body[..]].concat();
    fs::write(path.join("ours.der"), der).unwrap();
    let verify = ["dgst", "-sha384", "-verify", &public, "-signature"];
    let verified = openssl(&[&verify[..], &["ours.der", "todo/id-block"]].concat()).unwrap();
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn a_report_of_the_simulated_processor_shows_the_id_block() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let tcb = TcbVersion {
        fmc: None,
        bootloader: 10,
        tee: 0,
        snp: 25,
        microcode: 200,
    };
    let start = "2026-01-01T00:00:00Z".parse().unwrap();
    let endorsement = Endorsement::generate("chip", tcb, start).unwrap();
    let processor = Processor::new(endorsement).unwrap();
    let launch = || {
        let mut launch = processor.launch_start(GuestPolicy::default()).unwrap();
        launch
            .launch_update(PageType::Normal, 0, &[1; 4096])
            .unwrap();
        launch
    };
    let host_data = Sha256Digest::of(b"");
    let digest = launch().launch_finish(host_data).unwrap().launch_digest();
    let digest = digest.to_string();
    let (id, author) = (key("p384.pkcs8.pem"), key("author.sec1.pem"));
    let create = |name: &str, svn: &str| {
        let arguments = [
            "create",
            "--launch-digest",
            &digest,
            "--guest-svn",
            svn,
            "--id-key",
            &id,
            "--author-key",
            &author,
            "--output",
            name,
        ];
        succeed(path, &arguments);
        let read = |file| fs::read(path.join(name).join(file)).unwrap();
        (read("id-block"), read("id-auth"))
    };
    let (block, auth) = create("launched", "5");
    create("newer", "6");
    let input = IdBlockInput {
        block: &block,
        auth: &auth,
        author_key_enabled: true,
    };
    let guest = launch()
        .launch_finish_with_id_block(host_data, &input)
        .unwrap();
    let response = guest
        .guest_request(&ReportRequest::new([0; 64], 0).encode())
        .unwrap();
    let response = ReportResponse::parse(&response).unwrap();
    fs::write(path.join("report.bin"), response.report).unwrap();

    let verify = |name: &str| {
        [
            "verify".to_owned(),
            format!("--id-block={name}/id-block"),
            format!("--id-auth={name}/id-auth"),
            "--report=report.bin".to_owned(),
        ]
    };
    let launched = verify("launched");
    succeed(path, &launched.each_ref().map(String::as_str));
    let newer = verify("newer");
    refuse(
        path,
        &newer.each_ref().map(String::as_str),
        &["GUEST_SVN: the ID block has 6, the report 5"],
    );
    refuse(
        path,
        &[
            "verify",
            "--id-block",
            "newer/id-block",
            "--id-auth",
            "launched/id-auth",
        ],
        &["launched/id-auth", "not what the ID key signed"],
    );
}

#[test]
fn wrong_keys_and_fields_name_option_and_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let good = key("p384.pkcs8.pem");
    for (file, remedy) in [
        ("p384.encrypted.pem", "openssl pkey"),
        ("p384.public.pem", "private key's file"),
        ("p256.sec1.pem", "on P-256"),
        ("p256.pkcs8.pem", "ec_paramgen_curve:P-384"),
        ("ed25519.pkcs8.pem", "Ed25519"),
        ("README.md", "not a PEM file"),
        ("missing.pem", "No such file"),
    ] {
        let file = key(file);
        let create = ["create", "--launch-digest", DIGEST, "--id-key"];
        let arguments = [&create[..], &[&file]].concat();
        refuse(directory.path(), &arguments, &["--id-key", &file, remedy]);
        let author = ["--author-key", &file];
        let arguments = [&create[..], &[&good], &author].concat();
        refuse(directory.path(), &arguments, &["--author-key", remedy]);
    }
    for (option, value, said) in [
        ("--launch-digest", "00", "96 hex digits"),
        ("--policy", "0x10000", "bit 17"),
        ("--policy", "0x8000000000030000", "reserved bits"),
        ("--policy", "x", "invalid digit"),
        ("--family-id", "00", "32 hex digits"),
        ("--guest-svn", "4294967296", "--guest-svn"),
    ] {
        let mut arguments = vec!["create", "--id-key", &good, option, value];
        if option != "--launch-digest" {
            arguments.extend(["--launch-digest", DIGEST]);
        }
        refuse(directory.path(), &arguments, &[said]);
    }
}
