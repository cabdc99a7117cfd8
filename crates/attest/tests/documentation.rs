//! docs/verification.md against the code: no check, reason or attack is left
//! out, and every test that it names exists.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use assay_attest::{CheckName, ReasonCode};

const DOCUMENT: &str = include_str!("../../../docs/verification.md");
const ATTACKS: &str = include_str!("attacks.rs");
/// Crates whose tests the document names.
const CRATES: [&str; 3] = ["attest", "cli", "tee"];

/// The cells of every row of the table under a heading, but for its header.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = DOCUMENT.split_once(heading).unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter_map(|line| {
        let cells = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(cells.split('|').map(str::trim).collect())
    });
    rows.skip(2).collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Names of the functions behind `#[test]` in a source text.
fn tests(source: &str) -> impl Iterator<Item = &str> {
    source.split("#[test]").skip(1).filter_map(|behind| {
        let (_, declared) = behind.split_once("fn ")?;
        declared.split('(').next()
    })
}

#[test]
fn every_check_has_a_row_in_both_tables() {
    let checks: Vec<_> = CheckName::ALL.iter().map(|check| check.as_str()).collect();
    for (heading, columns) in [("## Checks and peers", 8), ("## Checks and tests", 3)] {
        let table = table(heading);
        let named: Vec<_> = table.iter().map(|row| row[0]).collect();
        assert_eq!(named, checks, "{heading}");
        assert!(table.iter().all(|row| row.len() == columns), "{heading}");
    }
}

#[test]
fn every_reason_has_one_place() {
    let mut named: Vec<_> = table("## Checks and tests")
        .into_iter()
        .flat_map(|row| row[1].split(", ").collect::<Vec<_>>())
        .collect();
    named.sort_unstable();
    let mut reasons: Vec<_> = ReasonCode::ALL
        .iter()
        .filter(|reason| **reason != ReasonCode::EarlierCheckFailed)
        .map(|reason| reason.as_str())
        .collect();
    reasons.sort_unstable();
    assert_eq!(named, reasons);
    assert!(DOCUMENT.contains(ReasonCode::EarlierCheckFailed.as_str()));
}

#[test]
fn every_test_that_is_named_exists() {
    let mut files = Vec::new();
    for name in CRATES {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        sources(&directory.join("src"), &mut files);
        sources(&directory.join("tests"), &mut files);
    }
    let texts: Vec<String> = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let existing: BTreeSet<&str> = texts.iter().flat_map(|text| tests(text)).collect();
    // Test names are the snake case in backticks.
    let quoted = DOCUMENT.split('`').skip(1).step_by(2);
    let is_test = |name: &&str| {
        name.contains('_') && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
    };
    let named: BTreeSet<&str> = quoted.filter(is_test).collect();
    assert!(named.len() > 30, "{named:?}");
    let absent: Vec<_> = named.difference(&existing).collect();
    assert!(absent.is_empty(), "{absent:?}");
}

#[test]
fn every_attack_is_named() {
    let attacks: Vec<_> = tests(ATTACKS).collect();
    assert_eq!(attacks.len(), 13);
    for attack in attacks {
        assert!(DOCUMENT.contains(&format!("`{attack}`")), "{attack}");
    }
}
