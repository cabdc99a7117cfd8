//! `assay verify` as a person uses it: files in, checks and an exit status out.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use assay_crds::v1alpha1::AttestationPolicy;
use assay_psp_sim::{Endorsement, Processor};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::page_info::PageType;
use assay_tee::{GuestPolicy, LaunchDigest, Sha256Digest, TcbVersion};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha384};

/// The AttestationPolicy of the record, but for its defaults.
const POLICY: &str = "
apiVersion: assay.dev/v1alpha1
kind: AttestationPolicy
metadata: {name: standard}
spec:
  tees: [SimulatedSNP]
  snp:
    products: [{name: Genoa, minimumTCB: {bootLoader: 10, tee: 0, snp: 23, microcode: 84}}]
";
const RUNTIME: &str = r#"{"nonce":"AAAA"}"#;

fn policy_hash() -> String {
    let policy: AttestationPolicy = serde_saphyr::from_str(POLICY).unwrap();
    policy.spec.hash().unwrap().to_string()
}

fn instance() -> String {
    format!(r#"{{"pod":"a","policyHash":"{}"}}"#, policy_hash())
}

/// Evidence of a simulated guest that attested with [`RUNTIME`] and was
/// launched with [`instance`].
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
            .launch_finish(Sha256Digest::of(instance().as_bytes()))
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
        "status": {"verdict": "Accepted", "policyHash": policy_hash(), "evidence": {
            "report": STANDARD.encode(response.report),
            "certificates": STANDARD.encode(&table),
            "instanceData": instance(),
            "nonce": "AAAA",
            "runtimeData": RUNTIME,
        }},
    });
    write("report.bin", &response.report);
    write("table.bin", &table);
    write("chain.pem", chain);
    write("root.der", root);
    write("record.json", &serde_json::to_vec(&record).unwrap());
    write("policy.yaml", POLICY.as_bytes());
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
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(reason), "{said}");
}

#[track_caller]
fn assert_unreadable(output: &Output, reason: &str) {
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
    let host_data = Sha256Digest::of(instance().as_bytes()).to_hex();
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
fn a_record_of_another_policy_is_refused() {
    let directory = files();
    let path = directory.path();
    let digest = evidence().digest.to_string();
    let verify_record = |policy: &str| {
        let arguments = ["--record", "record.json", "--measurement", &digest];
        let trusted = [
            "--simulated-root",
            "root.der",
            "--attestation-policy",
            policy,
        ];
        verify(path, &[arguments, trusted].concat())
    };
    assert_eq!(verify_record("policy.yaml").status.code(), Some(0));

    let other = POLICY.replace("snp: 23", "snp: 22");
    std::fs::write(path.join("other.yaml"), other).unwrap();
    assert_refused(&verify_record("other.yaml"), "status.policyHash is sha256:");

    // What the verifier wrote is not what the guest was launched with.
    let mut record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path.join("record.json")).unwrap()).unwrap();
    let policy: AttestationPolicy =
        serde_saphyr::from_str(&std::fs::read_to_string(path.join("other.yaml")).unwrap()).unwrap();
    record["status"]["policyHash"] = policy.spec.hash().unwrap().to_string().into();
    std::fs::write(path.join("record.json"), record.to_string()).unwrap();
    let output = verify_record("other.yaml");
    assert_refused(&output, "policyHash in the instance data is sha256:");

    record["status"]
        .as_object_mut()
        .unwrap()
        .remove("policyHash");
    std::fs::write(path.join("record.json"), record.to_string()).unwrap();
    assert_refused(&verify_record("policy.yaml"), "status.policyHash is absent");
}

#[test]
fn what_cannot_be_read_is_no_refusal() {
    let directory = files();
    for (file, content) in [
        ("hcl", &b"HCLA"[..]),
        ("json", b"{}"),
        ("policy.yaml", b"tees: ["),
        ("table.bin", b"cut"),
    ] {
        std::fs::write(directory.path().join(file), content).unwrap();
    }
    let run = |report: &str, more: &[&str]| {
        let arguments = ["--report", report, "--measurement", "any"];
        let waived = ["--report-data", "any", "--host-data", "any"];
        verify(directory.path(), &[&arguments[..], &waived, more].concat())
    };
    assert_unreadable(&run("absent", &[]), "cannot read absent");
    assert_unreadable(&run("hcl", &[]), "the HCL report ends within its header");
    assert_unreadable(&run("json", &[]), "neither the field attestation_report");
    let policy = ["--policy", "policy.yaml"];
    assert_unreadable(&run("report.bin", &policy), "not an appraisal policy");
    let table = ["--certs", "table.bin"];
    assert_unreadable(&run("report.bin", &table), "certificate table");
    // Bytes that could be a report are appraised.
    let output = run("root.der", &[]);
    assert_refused(&output, "ReportLength: ReportLengthInvalid");
}

/// Real evidence in the forms of other projects, without a single file of
/// certificates. Skipped where the vectors are absent.
#[test]
fn evidence_of_other_projects_is_read() {
    let vectors = std::env::var_os("ASSAY_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        Into::into,
    );
    if !vectors.is_dir() {
        eprintln!("SKIPPED: no test vectors (set ASSAY_VECTORS)");
        return;
    }
    let waived = [
        "--measurement",
        "any",
        "--report-data",
        "any",
        "--host-data",
        "any",
    ];
    for file in ["azure-genoa-evidence.json", "evidence-genoa-chain.json"] {
        let path = vectors.join("coco").join(file);
        let arguments = ["--evidence", path.to_str().unwrap()];
        let output = verify(&vectors, &[&arguments[..], &waived].concat());
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{file}: {said}");
        assert!(said.contains("Accepted (AMD)"), "{file}: {said}");
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
