//! One guest, from its objects to its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use assay_broker::standalone::Standalone;
use assay_crds::v1alpha1::attestation_record::PodReference;
use assay_crds::v1alpha1::measured_image::MeasuredImageStatus;
use assay_crds::v1alpha1::{BootMethod, ConfidentialDeployment, MeasuredImage, TeeType};
use assay_launcher::plan::Accelerator;
use assay_launcher::spec::{Console, LaunchSpec};
use assay_supervisor::Progress as GuestProgress;
use assay_supervisor::launch::{Place, prepare};
use assay_supervisor::supervise::{ConsoleOutput, StopSignals, Supervision, Supervisor};
use assay_tee::instance::PodIdentity;
use assay_workload::artifact::MeasuredArtifact;
use assay_workload::launch::build_spec;
use assay_workload::shapes::{firmware_name, row, shape};
use assay_workload::simulation::SimulationPki;
use assay_workload::validate::Valid;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::artifact::{self, LocalArtifact};
use super::chosen::Chosen;
use super::outcome::outcome;
use super::verdict::{Decision, Watcher};
use super::{Args, boot, broker, console, ports, qemu, say, substitute};
use crate::inputs::Builder;
use crate::objects::{Objects, full_name};
use crate::progress::Progress;

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

/// Everything that a guest needs but its verifier.
pub(super) struct Guest {
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
    pub(super) fn gather(args: Arc<Args>, scratch: PathBuf, room: &Path) -> Result<Self> {
        let objects = Objects::load(&args.file)?;
        let mut chosen = Chosen::find(&args, &objects)?;
        let qemu = qemu::find(&args.qemu)?;
        let tee = chosen.deployment.spec.machine.tee;
        qemu::check_machine(tee, args.accel)?;
        if chosen.deployment.spec.machine.boot == BootMethod::Igvm {
            qemu::check_igvm(&qemu)?;
        }
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

    pub(super) async fn run(mut self, signals: &mut StopSignals) -> Result<u8> {
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
        let silence = self.silence(progress.clone());
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
            made = decide(&self.args, &mut watcher, silence) => {
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
        let artifact = MeasuredArtifact::of(&self.artifact.reference, &self.artifact.read);
        let digest = artifact.launch_digest(&shape);
        let digest = digest.context("spec.machine: no launch digest can be computed")?;
        say(
            "digest",
            format_args!(
                "{digest} ({}, vCPUs: {}, {}, boot {})",
                shape.cpu_model,
                shape.vcpus.get(),
                shape.tee,
                shape.boot
            ),
        );
        let firmware = firmware_name(&artifact.status().firmware.sha256);
        let lifecycle = self.chosen.image.spec.lifecycle.state;
        self.chosen.image.status = Some(MeasuredImageStatus {
            launch_digests: vec![row(&firmware, &shape, digest, lifecycle)],
            artifact: Some(artifact.status().clone()),
            measurement_inputs: artifact.inputs_status(),
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

    /// Ends if the guest says nothing in the time that it has to boot.
    fn silence(
        &self,
        progress: watch::Receiver<GuestProgress>,
    ) -> impl Future<Output = Decision> + use<> {
        let limit = Duration::from_secs(self.args.boot_timeout_seconds);
        let boot = self.chosen.deployment.spec.machine.boot;
        let accelerator = match self.simulation {
            Some(_) => self.args.accel.into(),
            None => Accelerator::Kvm,
        };
        boot::silence(progress, limit, boot.into(), accelerator)
    }
}

/// Waits until there is nothing left to wait for; forever, if the guest boots and is to
/// run on.
async fn decide(
    args: &Args,
    watcher: &mut Watcher,
    silence: impl Future<Output = Decision>,
) -> Decision {
    let decision = async {
        let followed = watcher.follow(args.until_attested);
        if !args.until_attested {
            return followed.await;
        }
        let deadline = Duration::from_secs(args.timeout_seconds);
        let decided = tokio::time::timeout(deadline, followed).await;
        decided.unwrap_or_else(|_| {
            Decision::Refused(format!(
                "the guest is not attested and running after {} s; see what it printed, or give \
                 it more with --timeout-seconds",
                args.timeout_seconds
            ))
        })
    };
    tokio::select! {
        decision = decision => decision,
        silence = silence => silence,
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
