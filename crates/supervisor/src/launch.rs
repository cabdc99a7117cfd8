//! From a launch specification to everything that QEMU needs, in files.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use assay_image::igvm::{EncodeIgvmError, IgvmKernel, IgvmSpec, encode_igvm};
use assay_image::rope::Rope;
use assay_launcher::plan::{Accelerator, BootFiles, LaunchPlan, PlanError, PlanInputs, plan};
use assay_launcher::spec::{Fault, LaunchSpec};
use assay_psp_sim::Guest;
use assay_tee::Sha256Digest;
use assay_tee::cpu::{CpuModel, UnknownCpuModelError};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::instance::PodIdentity;
use assay_tee::ovmf::{ParseOvmfError, parse_ovmf};
use bytes::Bytes;
use tracing::warn;

use crate::artifact::{Artifact, ArtifactError};
use crate::fault::{self, TamperError};
use crate::simulation::{self, SimulationError};

/// Where a guest is launched.
#[derive(Debug, Clone)]
pub struct Place {
    /// The pod, or what stands for one.
    pub pod: PodIdentity,
    /// Name of the node.
    pub node: String,
    /// Directory of the artifact's files; absolute.
    pub artifact_dir: PathBuf,
    /// Writable directory for sockets and files; absolute.
    pub run_dir: PathBuf,
    /// Port that no guest may take, if there is one.
    pub status_port: Option<u16>,
    /// What runs the processor of a simulated launch.
    pub accelerator: Accelerator,
}

/// A launch whose files are written.
pub struct Launch {
    /// The plan.
    pub plan: LaunchPlan,
    /// The guest of a simulated processor.
    pub(crate) guest: Option<Guest>,
}

/// Nothing can be launched.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The artifact is not what the specification names.
    #[error("the artifact is refused")]
    Artifact(#[source] ArtifactError),
    /// A hostile host cannot be played.
    #[error("cannot play a hostile host")]
    Tamper(#[source] TamperError),
    /// The firmware cannot be parsed.
    #[error("firmware is refused")]
    Firmware(#[source] ParseOvmfError),
    /// There is no plan.
    #[error("launch specification is refused")]
    Plan(#[source] PlanError),
    /// The IGVM file is for a CPU model that nobody knows.
    #[error("launch specification is refused")]
    CpuModel(#[source] UnknownCpuModelError),
    /// The IGVM file cannot be made.
    #[error("cannot make the guest's IGVM file")]
    Igvm(#[source] EncodeIgvmError),
    /// A file cannot be written.
    #[error("cannot write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The secure processor cannot be played.
    #[error("cannot simulate the launch")]
    Simulate(#[source] SimulationError),
}

/// Verifies the artifact, plans, writes the plan's files, and launches the guest
/// on the simulated processor where the specification has one.
///
/// # Errors
/// See [`PrepareError`].
pub fn prepare(spec: &LaunchSpec, place: Place) -> Result<Launch, PrepareError> {
    let artifact = Artifact::read_verified(&place.artifact_dir, &spec.artifact)
        .map_err(PrepareError::Artifact)?;
    let fault = spec
        .simulation
        .as_ref()
        .and_then(|simulation| simulation.fault);
    let boot = BootChoice::make(&artifact, fault, &place.run_dir).map_err(PrepareError::Tamper)?;
    let firmware = parse_ovmf(&artifact.firmware).map_err(PrepareError::Firmware)?;
    let inputs = PlanInputs {
        pod: place.pod,
        node: place.node,
        firmware: &firmware,
        kernel_hashes: &boot.hashes,
        uki_len: artifact.uki.len() as u64,
        artifact_dir: &place.artifact_dir,
        run_dir: &place.run_dir,
        substitute_uki: boot.substitute.as_deref(),
        status_port: place.status_port,
        accelerator: place.accelerator,
    };
    let plan = plan(spec, &inputs).map_err(PrepareError::Plan)?;
    if let Some(deed) = &boot.deed {
        warn!("SIMULATION: playing a hostile host: {deed}");
    }
    write_files(spec, &plan, &artifact, boot.tampered_uki.as_ref())?;
    drop(artifact);
    let guest = match &spec.simulation {
        Some(simulation) => {
            let guest = simulation::launch(spec, simulation, &plan);
            Some(guest.map_err(PrepareError::Simulate)?)
        }
        None => None,
    };
    Ok(Launch { plan, guest })
}

/// What QEMU boots: the artifact's UKI, or what a hostile host makes of it.
struct BootChoice {
    hashes: KernelHashes,
    substitute: Option<PathBuf>,
    tampered_uki: Option<Bytes>,
    deed: Option<String>,
}

impl BootChoice {
    fn make(
        artifact: &Artifact,
        fault: Option<Fault>,
        run_dir: &Path,
    ) -> Result<Self, TamperError> {
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
            "one byte of the UKI is changed (offset {:#x}, section {}), its measurement is the \
             {table} one",
            tampered.offset, tampered.section
        );
        Ok(Self {
            hashes,
            substitute: Some(run_dir.join("uki-tampered.efi")),
            tampered_uki: Some(tampered.uki.into()),
            deed: Some(deed),
        })
    }
}

fn write_files(
    spec: &LaunchSpec,
    plan: &LaunchPlan,
    artifact: &Artifact,
    tampered_uki: Option<&Bytes>,
) -> Result<(), PrepareError> {
    for file in &plan.files {
        write_file(&file.path, [file.content.as_slice()])?;
    }
    match (&plan.boot, tampered_uki) {
        (BootFiles::DirectKernel { .. }, None) => Ok(()),
        (BootFiles::DirectKernel { uki, .. }, Some(tampered)) => write_file(uki, [&tampered[..]]),
        (BootFiles::Igvm { file }, _) => {
            let uki = tampered_uki.unwrap_or(&artifact.uki);
            let igvm = build_igvm(spec, &artifact.firmware, uki)?;
            write_file(file, igvm.chunks().iter().map(|chunk| &chunk[..]))
        }
    }
}

/// The file is made here and not built with the image, because there is one for
/// each number of virtual CPUs and each CPU model, and each holds the whole UKI.
/// What it must be is known all the same: its launch digest is what the operator
/// computed of the same bytes.
fn build_igvm(spec: &LaunchSpec, firmware: &Bytes, uki: &Bytes) -> Result<Rope, PrepareError> {
    let model = CpuModel::by_name(&spec.shape.cpu_model).map_err(PrepareError::CpuModel)?;
    encode_igvm(&IgvmSpec {
        firmware,
        kernel: IgvmKernel::Embedded(uki),
        vcpus: spec.shape.vcpus,
        cpu_signature: model.signature(),
        guest_features: spec.shape.guest_features,
        policy: spec.guest_policy,
    })
    .map_err(PrepareError::Igvm)
}

fn write_file<'a>(
    path: &Path,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(), PrepareError> {
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for chunk in chunks {
            file.write_all(chunk)?;
        }
        file.flush()
    };
    write().map_err(|source| PrepareError::Write {
        path: path.to_owned(),
        source,
    })
}
