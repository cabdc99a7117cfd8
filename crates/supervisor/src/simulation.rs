//! The host's side of a simulated launch: gives the simulated processor what
//! QEMU and KVM give a real one, and carries the guest's requests to it.
//!
//! It measures the bytes that QEMU was told to load, read back from the files
//! that its arguments name. So a host that hands QEMU something else gets the
//! digest of something else, as on hardware.

mod igvm;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use assay_launcher::plan::{BootFiles, LaunchPlan};
use assay_launcher::spec::{LaunchSpec, Simulation};
use assay_measure::inputs::FirmwareInputsError;
use assay_measure::{MeasureError, MeasurementInputs, measure_snp};
use assay_psp_sim::{Endorsement, Guest, LaunchError, Launching, PkiError, Processor};
use assay_tee::cpu::{CpuModel, UnknownCpuModelError};
use assay_tee::guest_message::{GuestMessageError, encode_frame, parse_frame_length};
use assay_tee::hashes_table::{KernelHashes, ParseHashesTableError};
use assay_tee::ovmf::{OvmfMetadata, ParseOvmfError, SectionKind, parse_ovmf};
use assay_tee::page_info::PageType;
use assay_tee::vmsa::{KVM_VMSA_GPA, Vcpu, Vmm, build_vmsa};
use assay_tee::{LaunchDigest, LaunchShape};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tracing::{error, info, warn};
use zerocopy::IntoBytes as _;

use self::igvm::IgvmBytes;
pub use self::igvm::IgvmError;

/// A launch cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// A boot file cannot be read back.
    #[error("cannot read back {path:?}")]
    ReadBack {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The plan places no hashes table.
    #[error("the plan places no hashes table")]
    NoHashesTable,
    /// The simulated chip's key or certificates are unusable.
    #[error("the specification's simulated endorsement is refused")]
    Endorsement(#[source] PkiError),
    /// The simulated processor refuses a launch command.
    #[error("the simulated processor refuses the launch")]
    Launch(#[from] LaunchError),
    /// The firmware cannot be parsed.
    #[error("cannot parse the firmware")]
    Firmware(#[from] ParseOvmfError),
    /// QEMU would not know what to do with a section either.
    #[error("the firmware has a section of unknown type {0:#x}")]
    UnknownSection(u32),
    /// The table does not lie in the firmware's page for it.
    #[error("the hashes table at {table_gpa:#x} lies outside the section at {section_gpa:#x}")]
    TableOutsideSection {
        /// Address of the table.
        table_gpa: u32,
        /// Address of the section.
        section_gpa: u32,
    },
    /// More than one vCPU, and no address for them to start at.
    #[error("the firmware names no address for application processors to start at")]
    NoResetAddress,
    /// The CPU model is unknown.
    #[error("cannot look up the CPU model")]
    CpuModel(#[from] UnknownCpuModelError),
    /// The firmware cannot be measured.
    #[error("cannot measure the firmware")]
    MeasureFirmware(#[from] FirmwareInputsError),
    /// The placed hashes table cannot be read.
    #[error("cannot read the placed hashes table")]
    HashesTable(#[from] ParseHashesTableError),
    /// The launch cannot be measured.
    #[error("cannot measure the launch")]
    Measure(#[from] MeasureError),
    /// The IGVM file cannot be loaded or measured.
    #[error("cannot launch from the IGVM file")]
    Igvm(#[from] IgvmError),
}

/// Launches the guest on a simulated processor and compares the launch digest
/// with the prediction and with the expectation.
///
/// A difference is told and not enforced: a hostile host would not stop at it
/// either, and it is the verifier that must notice.
pub(crate) fn launch(
    spec: &LaunchSpec,
    simulation: &Simulation,
    plan: &LaunchPlan,
) -> Result<Guest, SimulationError> {
    warn!("SIMULATION: the secure processor is simulated, nothing protects this guest");
    let boot = BootBytes::read_back(&plan.boot)?;
    let endorsement = Endorsement::from_pem(&simulation.vcek_key, &simulation.vcek_chain)
        .map_err(SimulationError::Endorsement)?;
    let processor = Processor::new(endorsement).map_err(SimulationError::Endorsement)?;
    let mut launching = processor.launch_start(spec.guest_policy)?;
    boot.update(&mut launching, &spec.shape)?;
    let guest = launching.launch_finish(plan.host_data)?;

    let digest = guest.launch_digest();
    let predicted = boot.predict(&spec.shape)?;
    if digest != predicted {
        error!(
            %digest, %predicted,
            "DEFECT: the simulated processor and the prediction disagree about the same bytes"
        );
    }
    if digest == spec.expected_digest {
        info!(%digest, "launch digest is the expected one");
    } else {
        warn!(
            %digest, expected = %spec.expected_digest,
            "LAUNCH DIGEST DIFFERS from the expected one: no verifier will accept this guest"
        );
    }
    Ok(guest)
}

fn read_back(path: &Path) -> Result<Vec<u8>, SimulationError> {
    fs::read(path).map_err(|source| SimulationError::ReadBack {
        path: path.to_owned(),
        source,
    })
}

/// What guest memory holds when the guest starts, besides zeros.
enum BootBytes {
    DirectKernel(DirectKernelBytes),
    Igvm(IgvmBytes),
}

impl BootBytes {
    fn read_back(files: &BootFiles) -> Result<Self, SimulationError> {
        match files {
            BootFiles::DirectKernel {
                firmware,
                uki: _,
                hashes_table,
            } => {
                let placed = hashes_table
                    .as_ref()
                    .ok_or(SimulationError::NoHashesTable)?;
                Ok(Self::DirectKernel(DirectKernelBytes {
                    firmware: read_back(firmware)?,
                    table: read_back(&placed.path)?,
                    table_gpa: placed.gpa,
                }))
            }
            BootFiles::Igvm { file } => Ok(Self::Igvm(IgvmBytes(read_back(file)?))),
        }
    }

    fn update(
        &self,
        launching: &mut Launching,
        shape: &LaunchShape,
    ) -> Result<(), SimulationError> {
        match self {
            Self::DirectKernel(boot) => boot.update(launching, shape),
            Self::Igvm(boot) => Ok(boot.update(launching)?),
        }
    }

    /// The launch digest by the other implementation.
    fn predict(&self, shape: &LaunchShape) -> Result<LaunchDigest, SimulationError> {
        match self {
            Self::DirectKernel(boot) => boot.predict(shape),
            Self::Igvm(boot) => Ok(boot.predict(shape)?),
        }
    }
}

/// Firmware, and the hashes of a UKI that it takes from the host.
struct DirectKernelBytes {
    firmware: Vec<u8>,
    table: Vec<u8>,
    table_gpa: u32,
}

impl DirectKernelBytes {
    /// The launch commands in the order in which QEMU and KVM give them: the
    /// firmware, its sections in file order, every vCPU's save area.
    fn update(
        &self,
        launching: &mut Launching,
        shape: &LaunchShape,
    ) -> Result<(), SimulationError> {
        let metadata = parse_ovmf(&self.firmware)?;
        launching.launch_update(PageType::Normal, metadata.base_gpa, &self.firmware)?;
        for section in &metadata.sections {
            let size = usize::try_from(section.size).unwrap_or(usize::MAX);
            // Firmware for several TEEs has empty sections for the others.
            if size == 0 {
                continue;
            }
            let (page_type, content) = match section.kind {
                SectionKind::SecMem | SectionKind::SvsmCaa => (PageType::Zero, vec![0; size]),
                SectionKind::SnpSecrets => (PageType::Secrets, vec![0; size]),
                SectionKind::Cpuid => (PageType::Cpuid, vec![0; size]),
                SectionKind::KernelHashes => {
                    (PageType::Normal, self.hashes_section(section.gpa, size)?)
                }
                SectionKind::Unknown(kind) => return Err(SimulationError::UnknownSection(kind)),
            };
            launching.launch_update(page_type, u64::from(section.gpa), &content)?;
        }
        let signature = CpuModel::by_name(&shape.cpu_model)?.signature();
        for vcpu in vcpus(&metadata, shape)? {
            let vmsa = build_vmsa(Vmm::Qemu, vcpu, signature, shape.guest_features);
            launching.launch_update(PageType::Vmsa, KVM_VMSA_GPA, vmsa.as_bytes())?;
        }
        Ok(())
    }

    /// The section as it is in guest memory: zeros and the table.
    fn hashes_section(&self, section_gpa: u32, size: usize) -> Result<Vec<u8>, SimulationError> {
        let outside = SimulationError::TableOutsideSection {
            table_gpa: self.table_gpa,
            section_gpa,
        };
        let mut content = vec![0; size];
        let place = self
            .table_gpa
            .checked_sub(section_gpa)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| content.get_mut(start..start.checked_add(self.table.len())?));
        let Some(place) = place else {
            return Err(outside);
        };
        place.copy_from_slice(&self.table);
        Ok(content)
    }

    fn predict(&self, shape: &LaunchShape) -> Result<LaunchDigest, SimulationError> {
        let hashes = KernelHashes::parse_table(&self.table)?;
        let inputs = MeasurementInputs::from_bytes(&self.firmware, Some(hashes))?;
        Ok(measure_snp(&inputs, shape)?.digest)
    }
}

fn vcpus(metadata: &OvmfMetadata, shape: &LaunchShape) -> Result<Vec<Vcpu>, SimulationError> {
    let mut vcpus = vec![Vcpu::Boot];
    for _ in 1..shape.vcpus.get() {
        let reset_eip = metadata.reset_eip.ok_or(SimulationError::NoResetAddress)?;
        vcpus.push(Vcpu::Application { reset_eip });
    }
    Ok(vcpus)
}

/// Accepts QEMU's connection and answers the guest's report requests until QEMU
/// closes it.
pub(crate) async fn serve(listener: UnixListener, guest: Guest) {
    let result = async {
        let (stream, _) = listener.accept().await.map_err(ServeError::Io)?;
        answer_requests(stream, &guest).await
    };
    if let Err(error) = result.await {
        error!(
            "{:#}",
            anyhow::Error::new(error).context("simulated processor's port")
        );
    }
}

/// The simulated processor's port is broken.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("cannot read or write")]
    Io(#[source] io::Error),
    /// The guest does not keep to the framing; there is no way back into step.
    #[error("the guest broke the framing")]
    Frame(#[from] GuestMessageError),
    #[error("cannot make a report")]
    Report(#[from] PkiError),
}

async fn answer_requests<S>(mut stream: S, guest: &Guest) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let mut prefix = [0; 4];
        match stream.read_exact(&mut prefix).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result.map_err(ServeError::Io)?,
        };
        let mut request = vec![0; parse_frame_length(prefix)?];
        stream
            .read_exact(&mut request)
            .await
            .map_err(ServeError::Io)?;
        let response = encode_frame(&guest.extended_guest_request(&request)?)?;
        stream.write_all(&response).await.map_err(ServeError::Io)?;
        info!("SIMULATION: answered a report request");
    }
}

#[cfg(test)]
mod tests;
