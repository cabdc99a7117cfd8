//! `assay-launcher`: runs one confidential guest as the only container of an
//! ordinary, unprivileged pod.
//!
//! It reads the launch specification, serves the kubelet's probes, and leaves
//! everything else to the library.

mod status;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use assay_launcher::plan::Accelerator;
use assay_launcher::spec::LaunchSpec;
use assay_supervisor::launch::{Place, prepare};
use assay_supervisor::supervise::{ConsoleOutput, StopSignals, Supervision, Supervisor};
use assay_tee::instance::PodIdentity;
use clap::Parser;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::status::Probes;

/// Launches one confidential guest and supervises it.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Launch specification, JSON.
    #[arg(long, default_value = "/etc/assay/launch/launch.json")]
    spec: PathBuf,
    /// Directory that the artifact is mounted at.
    #[arg(long, default_value = "/artifact")]
    artifact: PathBuf,
    /// Writable directory for sockets and files.
    #[arg(long, default_value = "/run/assay")]
    run_dir: PathBuf,
    /// QEMU, by path or by name in PATH.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Address of /healthz and /readyz.
    #[arg(long, default_value = "0.0.0.0:9990")]
    status_address: SocketAddr,
    /// Seconds that the guest has to power off after SIGTERM. Below the pod's
    /// terminationGracePeriodSeconds, which is 30 by default.
    #[arg(long, default_value_t = 25)]
    grace_period_seconds: u64,
    /// Name of the pod.
    #[arg(long, env = "ASSAY_POD_NAME")]
    pod_name: String,
    /// UID of the pod.
    #[arg(long, env = "ASSAY_POD_UID")]
    pod_uid: String,
    /// Name of the node.
    #[arg(long, env = "ASSAY_NODE_NAME")]
    node_name: String,
}

// One thread: the work is waiting, and the pod's CPUs are the guest's.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_ansi(false)
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    match launch(Options::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

async fn launch(options: Options) -> anyhow::Result<u8> {
    // First: the kernel discards signals of PID 1 that nobody listens to.
    let mut stop_signals = StopSignals::listen().context("cannot listen for signals")?;
    let spec = read_spec(&options.spec)?;
    let place = Place {
        pod: PodIdentity {
            name: options.pod_name,
            uid: options.pod_uid,
        },
        node: options.node_name,
        artifact_dir: options.artifact,
        run_dir: options.run_dir,
        status_port: Some(options.status_address.port()),
        accelerator: Accelerator::Tcg,
    };
    let launch = prepare(&spec, place)?;
    info!(
        tee = %spec.shape.tee,
        host_data = %launch.plan.host_data,
        expected_digest = %spec.expected_digest,
        "starting QEMU"
    );
    let supervisor = Supervisor::listen(Supervision {
        qemu: options.qemu,
        launch,
        console: ConsoleOutput::Inherit,
        grace_period: Duration::from_secs(options.grace_period_seconds),
    })?;
    let probes = Probes {
        qmp: supervisor.qmp(),
        progress: supervisor.progress(),
        tee: spec.shape.tee,
    };
    let address = options.status_address;
    let status = status::bind(address, probes)
        .await
        .with_context(|| format!("cannot serve the status on {address}"))?;
    tokio::spawn(status);
    Ok(supervisor.run(stop_signals.next()).await?)
}

fn read_spec(path: &Path) -> anyhow::Result<LaunchSpec> {
    let text = fs::read(path)
        .with_context(|| format!("cannot read the launch specification {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no launch specification", path.display()))
}
