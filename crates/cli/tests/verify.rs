//! `assay verify` as a person uses it: files in, checks and an exit status out.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use assay_psp_sim::{Endorsement, Processor};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::page_info::PageType;
use assay_tee::{GuestPolicy, LaunchDigest, Sha256Digest, TcbVersion};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha384};

const INSTANCE: &str = r#"{"pod":"a"}"#;
const RUNTIME: &str = r#"{"nonce":"AAAA"}"#;

/// Evidence of a simulated guest that attested with [`RUNTIME`] and was
/// launched with [`INSTANCE`].
struct Evidence {
    response: ReportResponse,
    chain: Vec<u8>,
    root: Vec<u8>,
    digest: LaunchDigest,
}

fn evidence() -> &'static Evidence {
    static EVIDENCE: OnceLock<Evidence> = OnceLock::new();
    EVIDENCE.get_or_init(|| {
        let tcb = TcbVersion {
            fmc: None,
            bootloader: 10,
            tee: 0,
            snp: 25,
            microcode: 200,
        };
        let start = "2026-01-01T00:00:00Z".parse().unwrap();
        let endorsement = Endorsement::generate("chip", tcb, start).unwrap();
        let root = endorsement.chain().ark.clone();
        let chain = endorsement.chain_pem().unwrap().into_bytes();
        let processor = Processor::new(endorsement).unwrap();
        let mut launch = processor.launch_start(GuestPolicy::default()).unwrap();
        launch
            .launch_update(PageType::Normal, 0, &[1; 4096])
            .unwrap();
        let guest = launch
            .launch_finish(Sha256Digest::of(INSTANCE.as_bytes()))
            .unwrap();
        let mut report_data = [0; 64];
        report_data[..48].copy_from_slice(&Sha384::digest(RUNTIME));
        let request = ReportRequest::new(report_data, 0).encode();
        let response = guest.extended_guest_request(&request).unwrap();
        let response = ReportResponse::parse(&response).unwrap();
        Evidence {
            response,
            chain,
            root,
            digest: guest.launch_digest(),
        }
    })
}

/// A directory with the evidence in every form that the command reads.
fn files() -> tempfile::TempDir {
    let Evidence {
        response,
        chain,
        root,
        ..
    } = evidence();
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, bytes: &[u8]| {
        std::fs::write(directory.path().join(file), bytes).unwrap();
    };
    let table = response.certificates.encode().unwrap();
    let record = serde_json::json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "AttestationRecord",
        "status": {"verdict": "Accepted", "evidence": {
            "report": STANDARD.encode(response.report),
            "certificates": STANDARD.encode(&table),
            "instanceData": INSTANCE,
            "nonce": "AAAA",
            "runtimeData": RUNTIME,
        }},
    });
    write("report.bin", &response.report);
    write("table.bin", &table);
    write("chain.pem", chain);
    write("root.der", root);
    write("record.json", &serde_json::to_vec(&record).unwrap());
    directory
}

fn verify(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .current_dir(directory)
        .arg("verify")
        .args(["--now", "2026-07-01T00:00:00Z"])
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(reason), "{said}");
}

#[test]
fn a_record_is_accepted_and_says_that_it_is_simulated() {
    let directory = files();
    let digest = evidence().digest.to_string();
    let arguments = ["--record", "record.json", "--measurement", &digest];
    let trusted = [&arguments[..], &["--simulated-root", "root.der"]].concat();
    let output = verify(directory.path(), &trusted);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("Accepted (Simulated sha256:"), "{said}");
    assert!(said.contains("protects nothing"), "{said}");

    let output = verify(directory.path(), &arguments);
    assert_refused(&output, "TrustAnchor: RootUnknown");
}

#[test]
fn files_are_accepted_and_each_expected_value_counts() {
    let directory = files();
    let digest = evidence().digest.to_string();
    let report_data = format!(
        "{}{}",
        hex::encode(Sha384::digest(RUNTIME)),
        "00".repeat(16)
    );
    let host_data = Sha256Digest::of(INSTANCE.as_bytes()).to_hex();
    let (other_digest, other_data) = (format!("sha384:{}", "00".repeat(48)), "00".repeat(64));
    let other_host = "00".repeat(32);
    let run = |certificates: [&str; 2], digest: &str, report_data: &str, host_data: &str| {
        let arguments = ["--report", "report.bin", "--simulated-root", "root.der"];
        let expected = [
            "--measurement",
            digest,
            "--report-data",
            report_data,
            "--host-data",
            host_data,
        ];
        verify(
            directory.path(),
            &[&arguments[..], &certificates, &expected].concat(),
        )
    };
    for certificates in [["--certs", "table.bin"], ["--vek", "chain.pem"]] {
        let output = run(certificates, &digest, &report_data, &host_data);
        assert_eq!(output.status.code(), Some(0), "{certificates:?}");
        let output = run(certificates, &other_digest, &report_data, &host_data);
        assert_refused(&output, "Measurement: MeasurementUnknown");
        let output = run(certificates, &digest, &other_data, &host_data);
        assert_refused(&output, "ReportData: ReportDataMismatch");
        let output = run(certificates, &digest, &report_data, &other_host);
        assert_refused(&output, "HostData: HostDataMismatch");
    }
}

#[test]
fn nothing_is_left_out_in_silence() {
    let directory = files();
    let arguments = ["--report", "report.bin", "--certs", "table.bin"];
    let output = verify(directory.path(), &arguments);
    assert_eq!(
        output.status.code(),
        Some(2),
        "expected values must be asked for"
    );

    let waived = [
        "--measurement",
        "any",
        "--report-data",
        "any",
        "--host-data",
        "any",
    ];
    let trusted = ["--simulated-root", "root.der", "--json"];
    let output = verify(
        directory.path(),
        &[&arguments[..], &waived, &trusted].concat(),
    );
    assert_eq!(output.status.code(), Some(0));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let waived: Vec<_> = verdict["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["expected"] == "any")
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert_eq!(waived, ["ReportData", "HostData", "Measurement"]);
}
