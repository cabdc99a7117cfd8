//! `assay verify --quote` with real quotes. Skipped, loudly, where the vectors are
//! absent.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assay_tee::td_quote::{TdQuote, TdReport};

fn vectors() -> Option<PathBuf> {
    let path = std::env::var_os("ASSAY_VECTORS").map(PathBuf::from);
    let path = path.filter(|path| path.is_dir());
    if path.is_none() {
        eprintln!("SKIPPED: no test vectors (set ASSAY_VECTORS)");
    }
    path
}

fn report(quote: &Path) -> TdReport {
    *TdQuote::parse(&std::fs::read(quote).unwrap())
        .unwrap()
        .report
}

/// `assay verify` of a quote by its own values, but for `change`.
fn verify(quote: &Path, collateral: &Path, change: impl FnOnce(&mut Vec<String>)) -> Output {
    let report = report(quote);
    let digest = |bytes: &[u8; 48]| format!("sha384:{}", hex::encode(bytes));
    let mut args = vec![
        "verify".to_owned(),
        format!("--quote={}", quote.display()),
        format!("--collateral={}", collateral.display()),
        format!("--measurement={}", digest(&report.mr_td)),
        format!("--report-data={}", hex::encode(report.report_data)),
        format!("--mr-config-id={}", hex::encode(report.mr_config_id)),
        "--now=2025-07-01T00:00:00Z".to_owned(),
    ];
    let rtmrs = report.rtmrs.iter().enumerate();
    args.extend(rtmrs.map(|(index, value)| format!("--rtmr={index}={}", digest(value))));
    change(&mut args);
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .args(args)
        .output()
        .unwrap()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32, message: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(message), "{text}");
}

type Change = fn(&mut Vec<String>);

#[test]
fn a_quote_is_accepted_and_refused_with_a_reason() {
    let Some(vectors) = vectors() else { return };
    let tdx = vectors.join("tdx");
    let good = tdx.join("quote-v4.bin");
    let collateral = tdx.join("quote-v4.collateral.json");
    let accepted = verify(&good, &collateral, |_| ());
    assert_exit(&accepted, 0, "");
    let text = String::from_utf8(accepted.stdout).unwrap();
    assert!(text.contains("Accepted (Intel)"), "{text}");

    let rows: [(&str, &str, Change); 4] = [
        (
            "quote-v4.bin",
            "CollateralDates: CollateralExpired",
            |args| {
                args.retain(|arg| !arg.starts_with("--now"));
                args.push("--now=2025-08-01T00:00:00Z".to_owned());
            },
        ),
        ("quote-v4.bin", "ReportData: ReportDataMismatch", |args| {
            args.retain(|arg| !arg.starts_with("--report-data"));
            args.push(format!("--report-data={}", "00".repeat(64)));
        }),
        ("quote-v4.bin", "Rtmrs: RtmrMismatch", |args| {
            args.retain(|arg| !arg.starts_with("--rtmr=0"));
            args.push(format!("--rtmr=0=sha384:{}", "00".repeat(48)));
        }),
        ("quote-v4-debug.bin", "TdAttributes: DebugAllowed", |_| ()),
    ];
    for (quote, message, change) in rows {
        let refused = verify(&tdx.join(quote), &collateral, change);
        assert_exit(&refused, 3, message);
    }
    let missing = verify(&good, &collateral, |args| {
        args.retain(|arg| !arg.starts_with("--collateral"));
    });
    assert_exit(&missing, 3, "Collateral: CollateralMissing");
}

#[test]
fn what_is_waived_is_shown() {
    let Some(vectors) = vectors() else { return };
    let tdx = vectors.join("tdx");
    let collateral = tdx.join("quote-v4.collateral.json");
    let output = verify(&tdx.join("quote-v4.bin"), &collateral, |args| {
        args.retain(|arg| !arg.starts_with("--rtmr") && !arg.starts_with("--report-data"));
        args.extend(["--rtmr=any", "--report-data=any", "--json"].map(str::to_owned));
    });
    assert_exit(&output, 0, "");
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["outcome"], "Accepted");
    assert_eq!(verdict["trustDomain"]["type"], "Intel");
    assert_eq!(verdict["tdClaims"]["platform"]["tcbStatus"], "UpToDate");
    let checks = verdict["checks"].as_array().unwrap();
    let waived: Vec<_> = checks
        .iter()
        .filter(|check| check["result"] == "NotApplicable")
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert_eq!(waived, ["ReportData", "Rtmrs"]);
}

#[test]
fn a_policy_names_what_it_accepts() {
    let Some(vectors) = vectors() else { return };
    let tdx = vectors.join("tdx");
    let directory = tempfile::tempdir().unwrap();
    let policy = directory.path().join("policy.yaml");
    let collateral = tdx.join("quote-v4.collateral.json");
    for (text, code, message) in [
        ("tcbStatuses: [UpToDate]", 0, ""),
        (
            "tcbStatuses: [OutOfDate]",
            3,
            "TcbStatus: TcbStatusNotAllowed",
        ),
        (
            "{tcbStatuses: [UpToDate], minimumTcbEvaluation: 18}",
            3,
            "CollateralDates: CollateralSuperseded",
        ),
        ("tcbStatuses: [Revoked]", 1, "is not a policy for TDX"),
    ] {
        std::fs::write(&policy, text).unwrap();
        let output = verify(&tdx.join("quote-v4.bin"), &collateral, |args| {
            args.push(format!("--policy={}", policy.display()));
        });
        assert_exit(&output, code, message);
    }
}

#[test]
fn nothing_is_left_out_in_silence() {
    let Some(vectors) = vectors() else { return };
    let tdx = vectors.join("tdx");
    let collateral = tdx.join("quote-v4.collateral.json");
    for (option, code, message) in [
        ("--mr-config-id", 2, "--mr-config-id"),
        ("--report-data", 2, "--report-data"),
        ("--measurement", 2, "--measurement"),
        ("--rtmr=2", 1, "RTMR2 is not named"),
    ] {
        let output = verify(&tdx.join("quote-v4.bin"), &collateral, |args| {
            args.retain(|arg| !arg.starts_with(option));
        });
        assert_exit(&output, code, message);
    }
}
