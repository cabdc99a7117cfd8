//! `assay collateral`: what AMD publishes about a processor, as a directory of
//! files that verifiers use without a network.

mod bundle;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use assay_attest::TrustAnchors;
use assay_attest::collateral::{
    AMD_KDS, Collateral, CollateralRequest, KeyKind, collateral_requests,
};
use assay_attest::evidence::parse_evidence;
use assay_broker::collateral::CollateralStore;
use assay_tee::{Product, Sha256Digest};
use clap::Subcommand;
use jiff::Timestamp;

use self::bundle::{BundleArgs, bundle};
use crate::stdout::write_line;
use crate::verify::{certificate, read};

/// Options of `assay collateral`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch what is needed to verify a report, or all reports of a chip
    ///
    /// AMD answers one request in ten seconds. What the directory has and is not
    /// due to be replaced is not fetched again.
    Fetch(FetchArgs),
    /// Take what reports need out of directories, for verifiers without a network
    Bundle(BundleArgs),
    /// Show what a directory has, and how long it is valid
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct FetchArgs {
    /// Attestation report or evidence, as `assay verify` takes it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["product", "chip", "tcb"])]
    report: Option<PathBuf>,
    /// Product: Milan, Genoa or Turin
    #[arg(long, required_unless_present = "report", requires_all = ["chip", "tcb"])]
    product: Option<Product>,
    /// Identity of the chip: 128 hex digits, of Turin 16
    #[arg(long, value_name = "HEX")]
    chip: Option<String>,
    /// Reported TCB: boot loader, TEE, SNP and microcode as 4.0.23.213; of Turin
    /// with the FMC before
    #[arg(long, value_name = "VERSIONS")]
    tcb: Option<String>,
    /// Directory to write to; made if it does not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Key distribution service, or a mirror of it
    #[arg(long, default_value = AMD_KDS)]
    url: String,
    /// Root of a simulation to believe, PEM or DER. Its evidence protects nothing
    #[arg(long, value_name = "FILE")]
    simulated_root: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The directory
    directory: PathBuf,
    /// Root of a simulation to believe, PEM or DER. Its evidence protects nothing
    #[arg(long, value_name = "FILE")]
    simulated_root: Option<PathBuf>,
    /// Time to show validity at, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    now: Option<Timestamp>,
}

/// Fetches, bundles or shows.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Fetch(args) => fetch(args),
        Command::Bundle(args) => bundle(args),
        Command::Show(args) => show(args),
    }
}

fn anchors(simulated_root: Option<&Path>) -> Result<TrustAnchors> {
    Ok(match simulated_root {
        Some(path) => TrustAnchors::with_simulated(Sha256Digest::of(&certificate(path)?)),
        None => TrustAnchors::amd(),
    })
}

fn fetch(args: &FetchArgs) -> Result<()> {
    let anchors = anchors(args.simulated_root.as_deref())?;
    let requests = requests(args, &anchors)?;
    let clock = Arc::new(Timestamp::now);
    let store = CollateralStore::open(&args.output, anchors, Some(&args.url), clock)
        .context("use --url")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    for request in &requests {
        let now = Timestamp::now();
        let held = store.held(request, now).filter(|held| !held.is_due(now));
        let collateral = match held {
            Some(held) => held,
            None => runtime
                .block_on(store.fetch(request))
                .with_context(|| format!("fetch {}{}", args.url, request.path()))?,
        };
        write_line(describe(request, &collateral, now))?;
    }
    Ok(())
}

fn requests(args: &FetchArgs, anchors: &TrustAnchors) -> Result<Vec<CollateralRequest>> {
    if let Some(path) = &args.report {
        let requests = requests_of(path, anchors)?;
        if requests.is_empty() {
            bail!(
                "{} is no report of a known product: give --product, --chip and --tcb",
                path.display()
            );
        }
        return Ok(requests);
    }
    let (Some(product), Some(chip), Some(tcb)) = (args.product, &args.chip, &args.tcb) else {
        bail!("--report, or --product, --chip and --tcb, are needed");
    };
    let kind = KeyKind::Vcek;
    let name = format!("vcek-{product}-{}-{tcb}.der", chip.to_lowercase());
    let vcek = CollateralRequest::from_file_name(&name)
        .with_context(|| format!("no chip of {product} has this --chip and --tcb"))?;
    Ok(vec![
        CollateralRequest::CertChain { product, kind },
        CollateralRequest::RevocationList { product, kind },
        vcek,
    ])
}

/// What the evidence in a file needs.
fn requests_of(path: &Path, anchors: &TrustAnchors) -> Result<Vec<CollateralRequest>> {
    let evidence =
        parse_evidence(read(path)?).with_context(|| format!("read {}", path.display()))?;
    Ok(collateral_requests(&evidence, anchors))
}

fn show(args: &ShowArgs) -> Result<()> {
    let anchors = anchors(args.simulated_root.as_deref())?;
    let now = args.now.unwrap_or_else(Timestamp::now);
    let store = CollateralStore::offline(&args.directory, anchors, Arc::new(move || now));
    let context = || format!("read {}", args.directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&args.directory).with_context(context)? {
        names.push(entry.with_context(context)?.file_name());
    }
    names.sort();
    for name in names {
        let Some(request) = name.to_str().and_then(CollateralRequest::from_file_name) else {
            write_line(format_args!("{}: not collateral", name.display()))?;
            continue;
        };
        match store.load(&request, now) {
            Ok(collateral) => write_line(describe(&request, &collateral, now))?,
            Err(error) => {
                let error = anyhow::Error::from(error);
                write_line(format_args!("{}: {error:#}", name.display()))?;
            }
        }
    }
    Ok(())
}

/// A line about one file.
fn describe(request: &CollateralRequest, collateral: &Collateral, now: Timestamp) -> String {
    let state = if now < collateral.valid_from {
        "not valid yet"
    } else if !collateral.is_valid(now) {
        "ended"
    } else if collateral.is_due(now) {
        "valid, due to be replaced"
    } else {
        "valid"
    };
    let number = collateral.revocation_list_number();
    let number = number.map(|number| format!(", CRL number {number}"));
    format!(
        "{}: {state}, from {} to {}{}",
        request.file_name(),
        collateral.valid_from,
        collateral.valid_until,
        number.unwrap_or_default()
    )
}
