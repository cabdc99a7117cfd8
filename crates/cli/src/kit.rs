//! `assay kit`: boot kits from packages, images or an unpacked system; what they
//! can do; and where they go.

mod sources;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use assay_image::boot_kit::{BootKit, PackOptions, pack_kit};
use assay_image::tree::Tree;
use assay_registry::{LayoutWriter, NoProgress, is_layout, list_layout, read_layout};
use assay_tee::Sha256Digest;
use clap::Subcommand;

use self::sources::{SourceArgs, flatten_image};
use crate::registry::RegistryArgs;
use crate::stdout;

/// Options of `assay kit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pack a kernel, the modules that guests load, systemd-stub and firmware
    Build(BuildArgs),
    /// Show what a kit can do; fails where no guest runs on it
    Check(CheckArgs),
    /// Push a kit from an OCI layout, and print its reference by digest
    Push(PushArgs),
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    #[command(flatten)]
    sources: SourceArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Release of the kernel, where there are several
    #[arg(long, value_name = "RELEASE")]
    kernel: Option<String>,
    /// Path of systemd-stub, where it is at another place than distributions
    /// install it
    #[arg(long, value_name = "PATH")]
    stub: Option<String>,
    /// Path of OVMF, where it is at another place than distributions install it
    #[arg(long, value_name = "PATH")]
    firmware: Option<String>,
    /// Keep every module of the kernel, and not only those that guests load
    #[arg(long)]
    all_modules: bool,
    /// OCI layout to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// The kit: host/repository@sha256:…, or an OCI layout that holds it
    kit: String,
    /// Digest of the kit, where the layout holds several images
    #[arg(long, value_name = "DIGEST")]
    digest: Option<Sha256Digest>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct PushArgs {
    /// OCI layout that holds the kit
    layout: PathBuf,
    /// Where to push it: host/repository, optionally with a tag
    reference: String,
    /// Digest of the kit, where the layout holds several images
    #[arg(long, value_name = "DIGEST")]
    digest: Option<Sha256Digest>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Runs `assay kit`.
pub(crate) fn run(args: &Args) -> ExitCode {
    let result = match &args.command {
        Command::Build(args) => build(args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => check(args),
        Command::Push(args) => push(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn build(args: &BuildArgs) -> Result<()> {
    let paths: Vec<&str> = [&args.stub, &args.firmware]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let tree = args.sources.tree(&args.registry, &paths)?;
    let options = PackOptions {
        release: args.kernel.clone(),
        stub: args.stub.clone(),
        firmware: args.firmware.clone(),
        all_modules: args.all_modules,
    };
    let packed = pack_kit(&tree, &options)?;
    for note in &packed.notes {
        eprintln!("note: {note}");
    }
    let image = packed.to_image().context("cannot assemble the image")?;
    let name = format!("kit-{}", packed.document.release);
    let mut layout = LayoutWriter::create(&args.output)?;
    layout.add(&name, &image)?;
    stdout::write_line(image.manifest_digest)?;
    Ok(())
}

fn check(args: &CheckArgs) -> Result<ExitCode> {
    let tree = kit_tree(args)?;
    let report = BootKit::from_tree(&tree)?.report();
    if args.json {
        let json = serde_json::to_string_pretty(&report).context("cannot encode the report")?;
        stdout::write_line(json)?;
    } else {
        stdout::write(table::show(&report))?;
    }
    Ok(if report.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn kit_tree(args: &CheckArgs) -> Result<Tree> {
    let directory = Path::new(&args.kit);
    if directory.is_dir() {
        let digest = only_image(directory, args.digest)?;
        return flatten_image(&read_layout(directory, digest, None)?)
            .with_context(|| format!("cannot read the kit in {}", directory.display()));
    }
    let client = args.registry.client()?;
    let pulled = client
        .runtime
        .block_on(client.registry.pull(&args.kit))
        .with_context(|| format!("cannot pull {}", args.kit))?;
    if let Some(digest) = args.digest {
        ensure!(
            digest == pulled.digest,
            "{} has the digest {}, not {digest}",
            args.kit,
            pulled.digest
        );
    }
    flatten_image(&pulled).with_context(|| format!("cannot read {}", args.kit))
}

/// The image that is asked for, or the only one of a layout.
fn only_image(directory: &Path, digest: Option<Sha256Digest>) -> Result<Sha256Digest> {
    ensure!(
        is_layout(directory),
        "{} is no OCI layout; make one with `assay kit build -o`",
        directory.display()
    );
    if let Some(digest) = digest {
        return Ok(digest);
    }
    match list_layout(directory)?.as_slice() {
        [(_, digest)] => Ok(*digest),
        images => bail!(
            "{} holds {} images; name one with --digest",
            directory.display(),
            images.len()
        ),
    }
}

fn push(args: &PushArgs) -> Result<()> {
    let digest = only_image(&args.layout, args.digest)?;
    let pulled = read_layout(&args.layout, digest, None)?;
    let tree = flatten_image(&pulled)
        .with_context(|| format!("cannot read the kit in {}", args.layout.display()))?;
    BootKit::from_tree(&tree).context("nothing is pushed")?;
    let client = args.registry.client()?;
    let image = pulled.to_image();
    let reference = client
        .runtime
        .block_on(client.registry.push(&args.reference, &image, &NoProgress))
        .with_context(|| format!("cannot push to {}", args.reference))?;
    stdout::write_line(reference)?;
    Ok(())
}
