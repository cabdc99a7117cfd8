//! `assay audit verify`: the chain, and the first line that breaks it.

#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and has not is a failure"
)]

use std::fs;
use std::process::{Command, Output};

use assay_protocol::audit::{AuditChain, AuditEntry, AuditOutcome};

fn log() -> String {
    let mut chain = AuditChain::default();
    let lines = ["shop/web/a", "shop/web/b", "shop/web/c"].map(|resource| {
        let entry = AuditEntry {
            time: "2027-01-15T08:00:00Z".to_owned(),
            resource: resource.to_owned(),
            outcome: AuditOutcome::Released,
            reason: None,
            namespace: "shop".to_owned(),
            deployment: "web".to_owned(),
            pod: "web-abc".to_owned(),
            pod_uid: "uid".to_owned(),
            image: "web-1".to_owned(),
            trust_domain: "AMD".to_owned(),
            policy: "sha256:00".to_owned(),
            nonce: "bm9uY2U=".to_owned(),
            volume: None,
        };
        let line = chain.encode(entry).unwrap();
        chain = chain.after(&line);
        String::from_utf8(line).unwrap()
    });
    lines.concat()
}

fn verify(log: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.jsonl");
    fs::write(&file, log).unwrap();
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .args(["audit", "verify"])
        .arg(&file)
        .output()
        .unwrap()
}

#[test]
fn a_whole_log_has_a_head() {
    let output = verify(&log());
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("3 lines, head sha256:"), "{text}");
}

#[test]
fn the_first_broken_line_is_named() {
    let output = verify(&log().replace("shop/web/b", "shop/web/x"));
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("line 3 is broken: prev is sha256:"), "{text}");
    assert!(output.stdout.is_empty());
}
