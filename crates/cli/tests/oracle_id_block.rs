//! snp-create-id-block of sev-snp-measure as an oracle: what it makes is what
//! `assay id-block` makes, but for the random signatures, and ours accepts it.
//!
//! `ASSAY_SEV_SNP_MEASURE` names the executable sev-snp-measure, beside which
//! snp-create-id-block lies.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use assay_tee::id_block::IdAuth;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const DIGEST: &str = "B28FLQi9p6cAqipgjFyqawDrrSl7bWioWkWx5mmlWLZ+G5HShKMB/mPE+gdQRn7t";

fn key(name: &str) -> String {
    format!("{}/../attest/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

fn assay(arguments: &[&str]) -> String {
    output(
        Command::new(env!("CARGO_BIN_EXE_assay"))
            .arg("id-block")
            .args(arguments),
    )
}

/// `name=value` of a comma-separated list.
fn properties(line: &str) -> BTreeMap<&str, &str> {
    line.trim_end()
        .split(',')
        .filter_map(|property| property.split_once('='))
        .collect()
}

#[test]
fn sev_snp_measure_makes_the_same() {
    let Some(program) = std::env::var_os("ASSAY_SEV_SNP_MEASURE") else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED oracle snp-create-id-block: ASSAY_SEV_SNP_MEASURE does not name \
             sev-snp-measure"
        );
        return;
    };
    let (id, author) = (key("p384.sec1.pem"), key("author.sec1.pem"));
    let theirs = output(
        Command::new(Path::new(&program).with_file_name("snp-create-id-block")).args([
            "--measurement",
            DIGEST,
            "--idkey",
            &id,
            "--authorkey",
            &author,
        ]),
    );
    let create = ["create", "--launch-digest", DIGEST];
    let keys = ["--id-key", &id, "--author-key", &author];
    let ours = assay(&[&create[..], &keys].concat());

    let mut lines = theirs.lines();
    let theirs = properties(lines.next().unwrap());
    let ours = properties(&ours);
    assert_eq!(ours["id-block"], theirs["id-block"]);
    for (line, name, file) in [
        (lines.next().unwrap(), "id_key_hash: ", &id),
        (lines.next().unwrap(), "author_key: ", &author),
    ] {
        let digest = assay(&["key-digest", "--base64", file]);
        assert_eq!(line.strip_prefix(name), Some(digest.trim_end()));
    }

    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let block = write("id-block", theirs["id-block"]);
    let auth = write("id-auth", theirs["id-auth"]);
    assay(&["verify", "--id-block", &block, "--id-auth", &auth]);

    let parse = |text: &str| IdAuth::parse(&STANDARD.decode(text).unwrap()).unwrap();
    let (ours, mut theirs) = (parse(ours["id-auth"]), parse(theirs["id-auth"]));
    theirs.id_block_signature = ours.id_block_signature;
    theirs.id_key_signature = ours.id_key_signature;
    assert_eq!(ours, theirs);
}
