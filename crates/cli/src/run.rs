//! `assay run`: boots what a directory for `kubectl apply` describes, on this
//! machine and without Kubernetes: the same artifact, the same launch
//! specification, the same verifier.

mod artifact;
mod broker;
mod console;
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use assay_broker::standalone::Standalone;
use assay_crds::v1alpha1::attestation_record::PodReference;
use assay_crds::v1alpha1::measured_image::MeasuredImageStatus;
use assay_crds::v1alpha1::{AttestationPolicy, ConfidentialDeployment, MeasuredImage, TeeType};
use assay_image::igvm::measure_self_contained;
use assay_launcher::spec::{Console, LaunchSpec};
use assay_measure::measure_snp;
use assay_supervisor::launch::{Place, prepare};
use assay_supervisor::supervise::{
    ConsoleOutput, StopSignals, SuperviseError, Supervision, Supervisor,
};
use assay_tee::BootMethod;
use assay_tee::instance::{PodIdentity, VerifierEndpoint};
use assay_workload::artifact::describe_artifact;
use assay_workload::launch::build_spec;
use assay_workload::shapes::{firmware_name, row, shape};
use assay_workload::simulation::SimulationPki;
use assay_workload::validate::{Rejection, Surroundings, Valid, validate};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tracing_subscriber::EnvFilter;

use self::artifact::LocalArtifact;
use self::ports::Publish;
use self::substitute::Substitute;
use self::verdict::{Decision, Watcher};
use crate::inputs::{Builder, InputArgs};
use crate::objects::{Objects, choose, full_name};
use crate::progress::{Progress, ProgressMode};

/// Time that the guest has to power off when it is asked to.
const GRACE_PERIOD: Duration = Duration::from_secs(15);
/// The same for a guest that has shown what was asked of it: it has nothing to lose.
const ATTESTED_GRACE_PERIOD: Duration = Duration::from_secs(3);
/// Lines of the console that may wait to be printed.
const CONSOLE_BACKLOG: usize = 256;
/// How long what is read may take to be printed once QEMU is gone.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);
/// Name of the node that records show.
const NODE: &str = "localhost";

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

/// The objects that matter.
struct Chosen {
    deployment: ConfidentialDeployment,
    image: MeasuredImage,
    policy: AttestationPolicy,
}

impl Chosen {
    fn find(args: &Args, objects: &Objects) -> Result<Self> {
        let kind = "ConfidentialDeployment";
        let name = args.deployment.as_deref();
        let deployment = choose(kind, &objects.deployments, "--deployment", name)?;
        let full = full_name(&deployment.metadata);
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let referenced = |field: &str, name: &str| {
            let text = format!("{kind} {full}: {field}");
            (format!("{namespace}/{name}"), text)
        };
        let (image, field) = referenced("spec.imageRef", &deployment.spec.image_ref.name);
        let image = choose("MeasuredImage", &objects.images, "", Some(&image)).context(field)?;
        let (policy, field) = referenced("spec.policyRef", &deployment.spec.policy_ref.name);
        let policy =
            choose("AttestationPolicy", &objects.policies, "", Some(&policy)).context(field)?;
        say(
            "objects",
            format_args!(
                "{kind} {full}, MeasuredImage {}, AttestationPolicy {}",
                deployment.spec.image_ref.name, deployment.spec.policy_ref.name
            ),
        );
        if !objects.left_out.is_empty() {
            let left_out: Vec<&str> = objects.left_out.iter().map(String::as_str).collect();
            say(
                "",
                format_args!("of no meaning here: {}", left_out.join(", ")),
            );
        }
        Ok(Self {
            deployment: deployment.clone(),
            image: image.clone(),
            policy: policy.clone(),
        })
    }
}

impl Chosen {
    fn validate(
        &self,
        simulation: Option<Arc<SimulationPki>>,
        verifier: Option<VerifierEndpoint>,
    ) -> Result<Valid, Rejection> {
        let surroundings = Surroundings {
            image: Some(&self.image),
            policy: Some(&self.policy),
            verifier,
            simulation,
            ..Surroundings::default()
        };
        validate(&self.deployment, &surroundings)
    }

    /// Finds a person's mistakes before anything is built.
    fn check(&self, simulation: Option<Arc<SimulationPki>>) -> Result<()> {
        match self.validate(simulation, None) {
            Err(why) if why.stalled => Err(self.refusal(&why)),
            // What is not there yet comes later.
            _ => Ok(()),
        }
    }

    fn refusal(&self, why: &Rejection) -> anyhow::Error {
        let name = full_name(&self.deployment.metadata);
        let reason = why.reason.as_str();
        anyhow!("ConfidentialDeployment {name}: {reason}: {}", why.message)
    }
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

fn artifact(args: &Args, image: &mut MeasuredImage, room: &Path) -> Result<LocalArtifact> {
    if let Some(directory) = &args.artifact {
        return LocalArtifact::read(directory, &directory.display().to_string());
    }
    let progress = Progress::new(args.progress);
    let (rootfs, kit) = (args.rootfs.as_ref(), args.kit.as_ref());
    let layouts = substitute::apply(image, rootfs, kit, args.inputs.layouts())?;
    let sources = args.inputs.open(Builder::Person)?;
    let directory = room.join("artifact");
    artifact::make(image, &sources, layouts, &directory, &progress).with_context(|| {
        format!(
            "no artifact of MeasuredImage {}; correct that, give other images with --rootfs and \
             --kit, or an artifact with --artifact",
            full_name(&image.metadata)
        )
    })
}

/// Everything that a guest needs but its verifier.
struct Guest {
    args: Arc<Args>,
    chosen: Chosen,
    artifact: LocalArtifact,
    secrets: broker::Secrets,
    /// The PKI of this run, where the guest is simulated.
    simulation: Option<Arc<SimulationPki>>,
    /// A directory that somebody else removes.
    scratch: PathBuf,
    qemu: PathBuf,
}

impl Guest {
    /// Reads, builds and pulls.
    fn gather(args: Arc<Args>, scratch: PathBuf, room: &Path) -> Result<Self> {
        let objects = Objects::load(&args.file)?;
        let mut chosen = Chosen::find(&args, &objects)?;
        let qemu = qemu::find(&args.qemu)?;
        let tee = chosen.deployment.spec.machine.tee;
        qemu::check_machine(tee, args.accel)?;
        let simulation = (tee == TeeType::SimulatedSnp)
            .then(|| SimulationPki::generate(Timestamp::now()))
            .transpose()
            .context("cannot make a development PKI")?
            .map(Arc::new);
        chosen.check(simulation.clone())?;
        let secrets = broker::Secrets::gather(&chosen.deployment, &objects.secrets, &args.secret)?;
        let artifact = artifact(&args, &mut chosen.image, room)?;
        say("artifact", &artifact.reference);
        Ok(Self {
            args,
            chosen,
            artifact,
            secrets,
            simulation,
            scratch,
            qemu,
        })
    }

    async fn run(mut self, signals: &mut StopSignals) -> Result<u8> {
        self.measure()?;
        let broker = self.start_broker()?;
        let verifier = Some(broker::verifier(&broker));
        let valid = self.chosen.validate(self.simulation.clone(), verifier);
        let valid = valid.map_err(|why| self.chosen.refusal(&why))?;
        let spec = self.spec(&valid)?;
        let run_dir = self.scratch.join("guest");
        fs::create_dir(&run_dir).context("cannot make the guest's directory")?;
        let pod = pod_identity(&self.chosen.deployment)?;
        let launch = prepare(
            &spec,
            Place {
                pod: pod.clone(),
                node: NODE.to_owned(),
                artifact_dir: self.artifact.directory.clone(),
                run_dir,
                status_port: None,
                accelerator: self.args.accel.into(),
            },
        )?;
        let (console, lines) = mpsc::channel(CONSOLE_BACKLOG);
        let printer = tokio::spawn(console::print(lines, !self.args.no_console));
        let supervisor = Supervisor::listen(Supervision {
            qemu: self.qemu.clone(),
            launch,
            console: ConsoleOutput::Lines(console),
            grace_period: if self.args.until_attested {
                ATTESTED_GRACE_PERIOD
            } else {
                GRACE_PERIOD
            },
        })?;
        let pod = PodReference {
            name: pod.name,
            uid: pod.uid,
        };
        let inventory = broker.inventory().clone();
        let progress = supervisor.progress();
        let mut watcher = Watcher::new(inventory, &self.chosen.deployment, pod, progress);
        let runner = match self.simulation {
            Some(_) => self.args.accel.to_string(),
            None => "SEV-SNP".to_owned(),
        };
        say(
            "guest",
            format_args!("starts under {runner}; Ctrl-C stops it"),
        );

        let interrupted = AtomicBool::new(false);
        let (enough, told) = oneshot::channel();
        let stop = async {
            tokio::select! {
                () = signals.next() => interrupted.store(true, Ordering::Relaxed),
                _ = told => {}
            }
        };
        let mut running = std::pin::pin!(supervisor.run(stop));
        let mut decision = None;
        let ended = tokio::select! {
            ended = &mut running => ended,
            made = self.decide(&mut watcher) => {
                decision = Some(made);
                // Where nobody listens any more the guest is gone.
                let _ = enough.send(());
                running.await
            }
        };
        // What the verifier said last may be what the guest ended by.
        let last = watcher.look().filter(|_| self.args.until_attested);
        // Everything that QEMU wrote was read before its end.
        let _ = tokio::time::timeout(PRINT_TIMEOUT, printer).await;
        outcome(
            ended,
            decision.or(last),
            interrupted.load(Ordering::Relaxed),
            self.args.until_attested,
        )
    }

    /// Publishes the launch digest of the deployment's machine in the image's
    /// status, as the operator does.
    fn measure(&mut self) -> Result<()> {
        let machine = &self.chosen.deployment.spec.machine;
        let shape = shape(
            machine.tee.into(),
            machine.boot.into(),
            machine.vcpus,
            &machine.cpu_model,
        );
        let shape = shape.context("spec.machine.vcpus is no number of vCPUs")?;
        let artifact = describe_artifact(&self.artifact.reference, &self.artifact.read);
        let read = &self.artifact.read;
        let digest = match shape.boot {
            BootMethod::DirectKernel => measure_snp(&read.manifest.measurement, &shape)
                .map(|measurement| measurement.digest)
                .map_err(anyhow::Error::new),
            BootMethod::Igvm => measure_self_contained(&read.firmware, &read.uki)
                .map_err(anyhow::Error::new)
                .and_then(|inputs| Ok(inputs.launch_digest(&shape)?)),
        };
        let digest = digest.context("spec.machine: no launch digest can be computed")?;
        say(
            "digest",
            format_args!(
                "{digest} ({}, vCPUs: {}, {})",
                shape.cpu_model,
                shape.vcpus.get(),
                shape.tee
            ),
        );
        let firmware = firmware_name(&artifact.firmware.sha256);
        let lifecycle = self.chosen.image.spec.lifecycle.state;
        self.chosen.image.status = Some(MeasuredImageStatus {
            launch_digests: vec![row(&firmware, &shape, digest, lifecycle)],
            artifact: Some(artifact),
            measurement_inputs: self.artifact.inputs_status(),
            ..MeasuredImageStatus::default()
        });
        Ok(())
    }

    fn start_broker(&self) -> Result<Standalone> {
        let Chosen {
            deployment,
            image,
            policy,
        } = &self.chosen;
        let directory = self.scratch.join("broker");
        let setup = broker::Setup {
            directory: &directory,
            objects: [
                serde_json::to_value(deployment)?,
                serde_json::to_value(image)?,
                serde_json::to_value(policy)?,
            ],
            secrets: &self.secrets,
            simulated_root: self.simulation.as_deref().map(|pki| pki.ark.as_str()),
            collateral: self.args.collateral.as_deref(),
        };
        let broker = setup.start()?;
        say(
            "broker",
            format_args!("https://{}, in this process", broker.address),
        );
        Ok(broker)
    }

    fn spec(&self, valid: &Valid) -> Result<LaunchSpec> {
        let mut spec = build_spec(&self.chosen.deployment, valid);
        // The person at the terminal is the host here, and may read it.
        spec.console = Console::Full;
        spec.ports = ports::publish(&self.chosen.deployment.spec.ports, &self.args.publish)?;
        for port in &spec.ports {
            let address = port.address.map(|address| address.to_string());
            say(
                "port",
                format_args!(
                    "{}:{} for port {} of the guest",
                    address.unwrap_or_default(),
                    port.pod,
                    port.guest
                ),
            );
        }
        Ok(spec)
    }

    /// Waits until there is nothing left to wait for; forever, if the guest is to
    /// run on.
    async fn decide(&self, watcher: &mut Watcher) -> Decision {
        let decision = watcher.follow(self.args.until_attested);
        if !self.args.until_attested {
            return decision.await;
        }
        let deadline = Duration::from_secs(self.args.timeout_seconds);
        let decided = tokio::time::timeout(deadline, decision).await;
        decided.unwrap_or_else(|_| {
            Decision::Refused(format!(
                "the guest is not attested and running after {} s; see what it printed, or give \
                 it more with --timeout-seconds",
                self.args.timeout_seconds
            ))
        })
    }
}

/// What stands for the pod of a cluster.
fn pod_identity(deployment: &ConfidentialDeployment) -> Result<PodIdentity> {
    const UUID: &str = "/proc/sys/kernel/random/uuid";
    let uid = fs::read_to_string(UUID).with_context(|| format!("cannot read {UUID}"))?;
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    Ok(PodIdentity {
        name: format!("{name}-run"),
        uid: uid.trim().to_owned(),
    })
}

/// What the end of the guest means for the person who started it.
fn outcome(
    ended: Result<u8, SuperviseError>,
    decision: Option<Decision>,
    interrupted: bool,
    until_attested: bool,
) -> Result<u8> {
    match (ended, decision) {
        (Ok(_) | Err(SuperviseError::Stopped(_)), Some(Decision::Attested)) => {
            say("done", "the guest was attested and is stopped");
            Ok(0)
        }
        (_, Some(Decision::Refused(why))) => bail!(why),
        (_, None) if interrupted && until_attested => {
            bail!("interrupted before the guest was attested")
        }
        (Ok(_) | Err(SuperviseError::Stopped(_)), None) if interrupted => {
            say("done", "the guest is stopped");
            Ok(0)
        }
        (Ok(code), None) => {
            say("done", format_args!("the workload ended with {code}"));
            Ok(code)
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// An absolute path that QEMU can be given.
fn absolute(path: &Path) -> Result<PathBuf> {
    let absolute = fs::canonicalize(path);
    let absolute = absolute.with_context(|| format!("cannot find {}", path.display()))?;
    ensure!(absolute.is_dir(), "{} is no directory", path.display());
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use assay_supervisor::Phase;

    use super::*;

    #[test]
    fn the_exit_status_is_what_the_person_asked_about() {
        let stopped = || Err(SuperviseError::Stopped(Phase::Running));
        let attested = || Some(Decision::Attested);
        let refused = || Some(Decision::Refused("why".to_owned()));
        let rows: [(_, _, bool, bool, Result<u8, &str>); 9] = [
            (stopped(), attested(), false, true, Ok(0)),
            (Ok(143), attested(), false, true, Ok(0)),
            (stopped(), refused(), false, true, Err("why")),
            (Ok(0), refused(), false, true, Err("why")),
            (stopped(), None, true, false, Ok(0)),
            (Ok(3), None, true, false, Ok(0)),
            (Ok(3), None, true, true, Err("interrupted before")),
            (Ok(3), None, false, false, Ok(3)),
            (
                Err(SuperviseError::GuestFailed("no root disk".to_owned())),
                None,
                true,
                false,
                Err("no root disk"),
            ),
        ];
        for (number, (ended, decision, interrupted, until_attested, expected)) in
            rows.into_iter().enumerate()
        {
            let got = outcome(ended, decision, interrupted, until_attested);
            match (got, expected) {
                (Ok(code), Ok(expected)) => assert_eq!(code, expected, "row {number}"),
                (Err(error), Err(words)) => {
                    assert!(error.to_string().contains(words), "row {number}: {error}");
                }
                (got, _) => panic!("row {number}: {got:?}"),
            }
        }
    }
}
