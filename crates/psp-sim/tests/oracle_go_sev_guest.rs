//! Oracle: go-sev-guest's `check` accepts a simulated report under the
//! development root, and refuses it under AMD's and after a change.
//!
//! `ASSAY_GO_SEV_GUEST_CHECK` names the program
//! (github.com/google/go-sev-guest/tools/check).
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use assay_psp_sim::{Endorsement, Processor};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::page_info::PageType;
use assay_tee::{GuestPolicy, Sha256Digest, TcbVersion};

const PROGRAM: &str = "ASSAY_GO_SEV_GUEST_CHECK";
/// Exit status of `check` for a signature or chain that does not verify.
const EXIT_VERIFY: i32 = 2;
/// Exit status of `check` for a report that its policy refuses.
const EXIT_POLICY: i32 = 5;

/// Runs `check` without network on the report and certificate table in
/// `directory`; gives its exit status and what it says.
fn check(program: &OsString, directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program)
        .current_dir(directory)
        .args([
            "-in",
            "report.bin",
            "-inform",
            "bin",
            "-network=false",
            "-check_crl=false",
        ])
        .args([
            "-product_name",
            "Genoa-B1",
            "-guest_policy",
            "0x30000",
            "-platform_info",
            "0x27",
        ])
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn go_sev_guest_accepts_the_simulated_report() {
    let Some(program) = std::env::var_os(PROGRAM) else {
        eprintln!("SKIPPED: {PROGRAM} does not name go-sev-guest's check program");
        return;
    };
    let start = jiff::Timestamp::now() - std::time::Duration::from_hours(1);
    let tcb = TcbVersion {
        fmc: None,
        bootloader: 10,
        tee: 0,
        snp: 25,
        microcode: 200,
    };
    let endorsement = Endorsement::generate("chip", tcb, start).unwrap();
    let chain_pem = endorsement.chain_pem().unwrap();
    let processor = Processor::new(endorsement).unwrap();
    let mut launch = processor.launch_start(GuestPolicy::default()).unwrap();
    launch
        .launch_update(PageType::Normal, 0, &[1; 4096])
        .unwrap();
    let guest = launch.launch_finish(Sha256Digest::of(b"instance")).unwrap();
    let request = ReportRequest::new([0x5a; 64], 0).encode();
    let response = guest.extended_guest_request(&request).unwrap();
    let response = ReportResponse::parse(&response).unwrap();

    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, report: &[u8], certificates: &[u8]| {
        std::fs::write(directory.path().join(file), [report, certificates].concat()).unwrap();
    };
    let table = response.certificates.encode().unwrap();
    write("report.bin", &response.report, &table);
    // ASK and ARK without the VCEK that stands in front.
    let end = "-----END CERTIFICATE-----\n";
    let (_, roots) = chain_pem.split_once(end).unwrap();
    write("roots.pem", roots.as_bytes(), &[]);

    let measurement = guest.launch_digest().to_hex();
    let report_data = "5a".repeat(64);
    let host_data = Sha256Digest::of(b"instance").to_hex();
    let trusted = ["-product_key_path", "roots.pem"];
    let expected = [
        ["-measurement", &measurement],
        ["-report_data", &report_data],
        ["-host_data", &host_data],
        ["-vmpl", "0"],
    ];
    let arguments = [&trusted[..], &expected.concat()].concat();
    let (status, said) = check(&program, directory.path(), &arguments);
    assert_eq!(status, Some(0), "{said}");

    let (status, said) = check(&program, directory.path(), &[]);
    assert_eq!(status, Some(EXIT_VERIFY), "under AMD's root: {said}");

    let other = "00".repeat(48);
    let arguments = [&trusted[..], &["-measurement", &other]].concat();
    let (status, said) = check(&program, directory.path(), &arguments);
    assert_eq!(status, Some(EXIT_POLICY), "another measurement: {said}");

    let mut changed = response.report;
    changed[0x90] ^= 1;
    write("report.bin", &changed, &table);
    let (status, said) = check(&program, directory.path(), &trusted);
    assert_eq!(status, Some(EXIT_VERIFY), "changed: {said}");
}
