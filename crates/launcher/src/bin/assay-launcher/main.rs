//! `assay-launcher`: runs one confidential guest as the only container of an
//! ordinary, unprivileged pod.
//!
//! It verifies the artifact, plans QEMU ([`assay_launcher::plan`]), plays the
//! secure processor of a simulated launch, and supervises QEMU until the guest
//! is gone. It is part of the untrusted host: no decision here protects a guest.

mod artifact;
mod events;
mod fault;
mod lines;
mod qmp;
mod reaper;
mod simulation;
mod status;
mod supervise;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use assay_launcher::plan::{LaunchPlan, PlanInputs, plan};
use assay_launcher::spec::{Fault, LaunchSpec};
use assay_tee::Sha256Digest;
use assay_tee::hashes_table::KernelHashes;
use assay_tee::instance::PodIdentity;
use assay_tee::ovmf::parse_ovmf;
use clap::Parser;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::artifact::Artifact;
use crate::supervise::{StopSignals, Supervision};

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
    let stop_signals = StopSignals::listen().context("cannot listen for signals")?;
    let spec = read_spec(&options.spec)?;
    let artifact = Artifact::read_verified(&options.artifact, &spec.artifact)?;
    let fault = spec
        .simulation
        .as_ref()
        .and_then(|simulation| simulation.fault);
    let boot = BootChoice::make(&artifact, fault, &options.run_dir)?;
    let firmware = parse_ovmf(&artifact.firmware).context("firmware is refused")?;
    let plan = plan(
        &spec,
        &PlanInputs {
            pod: PodIdentity {
                name: options.pod_name,
                uid: options.pod_uid,
            },
            node: options.node_name,
            firmware: &firmware,
            kernel_hashes: &boot.hashes,
            artifact_dir: &options.artifact,
            run_dir: &options.run_dir,
            substitute_uki: boot.substitute.as_deref(),
            status_port: options.status_address.port(),
        },
    )
    .context("launch specification is refused")?;
    if let Some(deed) = &boot.deed {
        warn!("SIMULATION: playing a hostile host: {deed}");
    }
    write_files(&plan, boot.tampered_uki.as_deref())?;
    let guest = match &spec.simulation {
        Some(simulation) => Some(simulation::launch(&spec, simulation, &plan)?),
        None => None,
    };
    info!(
        tee = %spec.shape.tee,
        host_data = %plan.host_data,
        expected_digest = %spec.expected_digest,
        "starting QEMU"
    );
    let code = supervise::run(Supervision {
        qemu: options.qemu,
        plan,
        guest,
        tee: spec.shape.tee,
        status_address: options.status_address,
        grace_period: Duration::from_secs(options.grace_period_seconds),
        stop_signals,
    })
    .await?;
    Ok(code)
}

fn read_spec(path: &Path) -> anyhow::Result<LaunchSpec> {
    let text = fs::read(path)
        .with_context(|| format!("cannot read the launch specification {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no launch specification", path.display()))
}

/// What QEMU boots: the artifact's UKI, or what a hostile host makes of it.
struct BootChoice {
    hashes: KernelHashes,
    substitute: Option<PathBuf>,
    tampered_uki: Option<Vec<u8>>,
    deed: Option<String>,
}

impl BootChoice {
    fn make(artifact: &Artifact, fault: Option<Fault>, run_dir: &Path) -> anyhow::Result<Self> {
        let hashes_of = |uki: &[u8]| KernelHashes::from_digests(Sha256Digest::of(uki), None, "");
        let Some(fault) = fault else {
            return Ok(Self {
                hashes: hashes_of(&artifact.uki),
                substitute: None,
                tampered_uki: None,
                deed: None,
            });
        };
        let tampered = fault::tamper(&artifact.uki)?;
        let (hashes, table) = match fault {
            Fault::TamperedKernel => (hashes_of(&artifact.uki), "original"),
            Fault::TamperedKernelRehashed => (hashes_of(&tampered.uki), "recomputed"),
        };
        let deed = format!(
            "one byte of the UKI is changed (offset {:#x}, section {}), the hashes table is the \
             {table} one",
            tampered.offset, tampered.section
        );
        Ok(Self {
            hashes,
            substitute: Some(run_dir.join("uki-tampered.efi")),
            tampered_uki: Some(tampered.uki),
            deed: Some(deed),
        })
    }
}

fn write_files(plan: &LaunchPlan, tampered_uki: Option<&[u8]>) -> anyhow::Result<()> {
    let planned = plan
        .files
        .iter()
        .map(|file| (&file.path, file.content.as_slice()));
    let tampered = tampered_uki.map(|uki| (&plan.boot.uki, uki));
    for (path, content) in planned.chain(tampered) {
        fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
