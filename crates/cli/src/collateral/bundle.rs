//! `assay collateral bundle`: what reports need, out of directories that have more,
//! for verifiers without a network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use assay_attest::TrustAnchors;
use assay_attest::collateral::{Collateral, CollateralRequest};
use assay_broker::collateral::CollateralStore;
use jiff::Timestamp;

use super::{anchors, describe, requests_of};
use crate::output_file;
use crate::stdout::write_line;

/// Options of `assay collateral bundle`.
#[derive(Debug, clap::Args)]
pub(super) struct BundleArgs {
    /// Directory to take from, as `fetch` fills it; may be given more than once
    #[arg(long, value_name = "DIR", required = true)]
    from: Vec<PathBuf>,
    /// Attestation report or evidence that must be verifiable with the bundle; may be
    /// given more than once [default: everything that is valid]
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Directory to write to; made if it does not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Root of a simulation to believe, PEM or DER. Its evidence protects nothing
    #[arg(long, value_name = "FILE")]
    simulated_root: Option<PathBuf>,
    /// Time at which everything must be valid, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    now: Option<Timestamp>,
}

/// The best of what the directories have for one request.
struct Found {
    bytes: Vec<u8>,
    collateral: Collateral,
}

/// Writes the bundle, or nothing where something is missing.
pub(super) fn bundle(args: &BundleArgs) -> Result<()> {
    let anchors = anchors(args.simulated_root.as_deref())?;
    let now = args.now.unwrap_or_else(Timestamp::now);
    let mut found = BTreeMap::new();
    for directory in &args.from {
        collect(directory, &anchors, now, &mut found)?;
    }
    if !args.report.is_empty() {
        let needed = needed(&args.report, &anchors, &found)?;
        found.retain(|name, _| needed.contains(name));
    }
    ensure!(
        !found.is_empty(),
        "the directories have nothing that is valid at {now}: fill one with `assay collateral \
         fetch`"
    );
    fs::create_dir_all(&args.output)
        .with_context(|| format!("create {}", args.output.display()))?;
    for (name, Found { bytes, collateral }) in found {
        output_file::write(&args.output.join(&name), &bytes.into())?;
        let request = CollateralRequest::from_file_name(&name).context("a known name")?;
        write_line(describe(&request, &collateral, now))?;
    }
    Ok(())
}

/// Adds what is valid in a directory, where it is better than what is known.
fn collect(
    directory: &Path,
    anchors: &TrustAnchors,
    now: Timestamp,
    found: &mut BTreeMap<String, Found>,
) -> Result<()> {
    let context = || format!("read {}", directory.display());
    let store = CollateralStore::offline(directory, *anchors, Arc::new(move || now));
    for entry in fs::read_dir(directory).with_context(context)? {
        let name = entry.with_context(context)?.file_name();
        let Some(request) = name.to_str().and_then(CollateralRequest::from_file_name) else {
            continue;
        };
        let path = directory.join(&name);
        let collateral = store
            .load(&request, now)
            .with_context(|| format!("cannot use {}", path.display()))?;
        if !collateral.is_valid(now) {
            eprintln!("note: left out: {}", describe(&request, &collateral, now));
            continue;
        }
        let rank =
            |collateral: &Collateral| (collateral.revocation_list_number(), collateral.valid_until);
        let known = found.get(&request.file_name());
        if known.is_some_and(|known| rank(&known.collateral) >= rank(&collateral)) {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        found.insert(request.file_name(), Found { bytes, collateral });
    }
    Ok(())
}

/// Names of the files that reports need; all of them are there.
fn needed(
    reports: &[PathBuf],
    anchors: &TrustAnchors,
    found: &BTreeMap<String, Found>,
) -> Result<BTreeSet<String>> {
    let mut needed = BTreeSet::new();
    let mut missing = Vec::new();
    for report in reports {
        for request in requests_of(report, anchors)? {
            let name = request.file_name();
            if !found.contains_key(&name) {
                missing.push(format!("{name}, for {}", report.display()));
            }
            needed.insert(name);
        }
    }
    if !missing.is_empty() {
        bail!(
            "no directory has what is needed, valid: {}. Fetch it with `assay collateral fetch \
             --report`",
            missing.join("; ")
        );
    }
    Ok(needed)
}
