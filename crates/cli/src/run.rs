//! `assay run`: boots what a directory for `kubectl apply` describes, on this
//! machine and without Kubernetes: the same artifact, the same launch
//! specification, the same verifier.

mod artifact;
mod boot;
mod broker;
mod chosen;
mod console;
mod guest;
mod outcome;
mod ports;
mod qemu;
mod substitute;
mod verdict;

use std::env;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use assay_supervisor::supervise::StopSignals;
use tempfile::TempDir;
use tracing_subscriber::EnvFilter;

use self::guest::Guest;
use self::ports::Publish;
use self::substitute::Substitute;
use crate::inputs::InputArgs;
use crate::progress::ProgressMode;

/// Options of `assay run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// ConfidentialDeployment, MeasuredImage, AttestationPolicy and Secrets, as for
    /// `kubectl apply`: a file, a directory, or `-`
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Which ConfidentialDeployment, where there are several
    #[arg(long, value_name = "NAME")]
    deployment: Option<String>,
    /// Boot what `assay build` or `assay pull` wrote to this directory, whatever the
    /// MeasuredImage's source is
    #[arg(long, value_name = "DIR")]
    artifact: Option<PathBuf>,
    /// Build with this workload image instead of the MeasuredImage's:
    /// host/repository@sha256:…, or an OCI layout, DIR or DIR:NAME
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["artifact", "rootfs_layout"])]
    rootfs: Option<Substitute>,
    /// Build with this boot kit instead of the MeasuredImage's, in the same forms
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["artifact", "kit_layout"])]
    kit: Option<Substitute>,
    /// Value of an entry of spec.secrets from a file, instead of a Secret; may be
    /// given more than once
    #[arg(long, value_name = "NAME=FILE", value_parser = broker::parse_secret)]
    secret: Vec<(String, PathBuf)>,
    /// Port of this machine for a port of the guest, instead of those of
    /// spec.ports; may be given more than once. PORT 0 is any free one [default
    /// ADDRESS: 127.0.0.1]
    #[arg(long, value_name = "[ADDRESS:]PORT:GUEST_PORT")]
    publish: Vec<Publish>,
    /// What runs a simulated guest
    #[arg(long, value_enum, default_value = "tcg")]
    accel: qemu::Accel,
    /// QEMU, by path or by name in PATH
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Directory of what AMD publishes, as `assay collateral fetch` fills it, for
    /// policies that ask for revocation lists
    #[arg(long, value_name = "DIR")]
    collateral: Option<PathBuf>,
    /// End as soon as the guest is attested, has its secrets and runs its workload,
    /// or cannot come to that any more; the exit status says which
    #[arg(long)]
    until_attested: bool,
    /// Seconds after which --until-attested gives up
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 300,
        requires = "until_attested"
    )]
    timeout_seconds: u64,
    /// Seconds that the guest has to boot, from power-on to the first word of its
    /// agent; emulation on a busy machine takes one or two minutes
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    boot_timeout_seconds: u64,
    /// Do not print the guest's console
    #[arg(long)]
    no_console: bool,
    #[command(flatten)]
    inputs: InputArgs,
    /// How to show the progress of a build
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
}

/// Says something on standard error.
fn say(topic: &str, text: impl std::fmt::Display) {
    eprintln!("{topic:<10} {text}");
}

/// Runs `assay run`. The exit status is the workload's, unless the guest is ended
/// before.
pub(crate) fn run(args: Args) -> ExitCode {
    match run_guest(Arc::new(args)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_guest(args: Arc<Args>) -> Result<u8> {
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    // Only the first provider of a process counts, and there is no other.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let ended = runtime.block_on(async {
        // First: whatever is made from now on is taken away again.
        let mut signals = StopSignals::listen().context("cannot listen for signals")?;
        let small = temporary_directory(&env::temp_dir())?;
        // What is brought along needs no room.
        let large = match &args.artifact {
            Some(_) => None,
            None => Some(temporary_directory(args.inputs.scratch()?.directory())?),
        };
        let (scratch, room) = (path_of(Some(&small)), path_of(large.as_ref()));
        let gathering = tokio::task::spawn_blocking(move || Guest::gather(args, scratch, &room));
        let guest = tokio::select! {
            guest = gathering => guest.context("cannot go on")??,
            () = signals.next() => bail!("interrupted before the guest was started"),
        };
        Box::pin(guest.run(&mut signals)).await
    });
    // A build that was interrupted is not waited for.
    runtime.shutdown_background();
    ended
}

/// A directory that only its owner may read, removed when it is dropped.
fn temporary_directory(within: &Path) -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("assay-run-")
        .tempdir_in(within);
    directory.with_context(|| format!("cannot make a directory in {}", within.display()))
}

fn path_of(directory: Option<&TempDir>) -> PathBuf {
    directory.map_or_else(PathBuf::new, |directory| directory.path().to_owned())
}

/// An absolute path that QEMU can be given.
fn absolute(path: &Path) -> Result<PathBuf> {
    let absolute = fs::canonicalize(path);
    let absolute = absolute.with_context(|| format!("cannot find {}", path.display()))?;
    ensure!(absolute.is_dir(), "{} is no directory", path.display());
    Ok(absolute)
}
