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

const TDX: &str = "## TDX quotes: checks and tests";

#[test]
fn every_check_has_a_row_in_its_tables() {
    for (heading, columns, checks) in [
        ("## Checks and peers", 8, CheckName::SNP),
        ("## Checks and tests", 3, CheckName::SNP),
        (TDX, 3, CheckName::TDX),
    ] {
        let table = table(heading);
        let named: Vec<_> = table.iter().map(|row| row[0]).collect();
        let checks: Vec<_> = checks.iter().map(|check| check.as_str()).collect();
        assert_eq!(named, checks, "{heading}");
        assert!(table.iter().all(|row| row.len() == columns), "{heading}");
    }
}

/// The reasons in a table, each in one row.
fn reasons(heading: &str) -> BTreeSet<&'static str> {
    let rows = table(heading).into_iter();
    let named: Vec<_> = rows
        .flat_map(|row| row[1].split(", ").collect::<Vec<_>>())
        .collect();
    let set: BTreeSet<_> = named.iter().copied().collect();
    assert_eq!(set.len(), named.len(), "{heading}");
    set
}

#[test]
fn every_reason_has_one_place() {
    let names = |reasons: &[ReasonCode]| -> BTreeSet<_> {
        let derived = ReasonCode::EarlierCheckFailed;
        let found = reasons.iter().filter(|reason| **reason != derived);
        found.map(|reason| reason.as_str()).collect()
    };
    let snp = reasons("## Checks and tests");
    assert_eq!(snp, names(ReasonCode::SNP));
    let both: BTreeSet<_> = snp.union(&reasons(TDX)).copied().collect();
    assert_eq!(both, names(ReasonCode::ALL));
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
