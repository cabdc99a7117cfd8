//! The checks of a plan: every value is accepted as it is or refused.

use std::path::{Component, Path};

use assay_image::igvm::min_memory;
use assay_tee::ovmf::{HashesTableArea, OvmfMetadata, SectionKind};
use assay_tee::{BootMethod, GuestPolicy};

use super::{MAX_SERIAL_LEN, MAX_SOCKET_PATH_LEN, MIN_MEMORY_MIB, PlanError, PlanInputs};
use crate::spec::{Fault, LaunchSpec};

const MIB: u64 = 1 << 20;

/// Whether the launch is simulated.
pub(super) fn tee(spec: &LaunchSpec, inputs: &PlanInputs<'_>) -> Result<bool, PlanError> {
    if spec.version != LaunchSpec::VERSION {
        return Err(PlanError::Version { got: spec.version });
    }
    let tee = spec.shape.tee;
    let fault = match (tee.is_hardware(), &spec.simulation) {
        (true, None) => None,
        (true, Some(_)) => return Err(PlanError::SimulationOnHardware { tee }),
        (false, None) => return Err(PlanError::SimulationMissing),
        (false, Some(simulation)) => simulation.fault,
    };
    if inputs.substitute_uki.is_some() && fault.is_none() {
        return Err(PlanError::SubstituteWithoutFault);
    }
    if spec.shape.boot == BootMethod::Igvm && fault == Some(Fault::TamperedKernel) {
        return Err(PlanError::FaultWithoutTable);
    }
    Ok(!tee.is_hardware())
}

/// Where the firmware reads the hashes table from, if it also measures it.
pub(super) fn hashes_table_area(firmware: &OvmfMetadata) -> Result<HashesTableArea, PlanError> {
    if firmware.section(SectionKind::KernelHashes).is_none() {
        return Err(PlanError::UnverifyingFirmware {
            missing: "KERNEL_HASHES section",
        });
    }
    firmware.hashes_table.ok_or(PlanError::UnverifyingFirmware {
        missing: "area for the hashes table",
    })
}

/// The plain values of the specification and of the pod.
pub(super) fn values(spec: &LaunchSpec, inputs: &PlanInputs<'_>) -> Result<(), PlanError> {
    if spec.memory_mib < MIN_MEMORY_MIB {
        return Err(PlanError::Memory {
            got: spec.memory_mib,
        });
    }
    if spec.shape.boot == BootMethod::Igvm {
        let least = min_memory(inputs.uki_len).div_ceil(MIB);
        if u64::from(spec.memory_mib) < least {
            return Err(PlanError::IgvmMemory {
                got: spec.memory_mib,
                uki_len: inputs.uki_len,
                least,
            });
        }
    }
    let policy = spec.guest_policy;
    if !policy.contains(GuestPolicy::RESERVED_MUST_BE_ONE) || policy.unknown_bits() != 0 {
        return Err(PlanError::GuestPolicy { got: policy.0 });
    }
    for (value, name) in [(&inputs.pod.name, "name"), (&inputs.pod.uid, "uid")] {
        if value.is_empty() {
            return Err(PlanError::PodIdentity(name));
        }
    }
    if let Some(disk) = &spec.artifact.root_disk {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !(1..=MAX_SERIAL_LEN).contains(&disk.serial.len()) || !disk.serial.chars().all(allowed) {
            return Err(PlanError::DiskSerial {
                got: disk.serial.clone(),
            });
        }
    }
    let mut taken: Vec<u16> = inputs.status_port.into_iter().collect();
    for port in &spec.ports {
        if port.pod == 0 || port.guest == 0 {
            return Err(PlanError::PortZero {
                pod: port.pod,
                guest: port.guest,
            });
        }
        if taken.contains(&port.pod) {
            return Err(PlanError::PortTaken { pod: port.pod });
        }
        taken.push(port.pod);
    }
    Ok(())
}

/// Every path that QEMU is given: absolute, UTF-8, without control characters.
pub(super) struct Places {
    pub(super) firmware: String,
    pub(super) uki: String,
    pub(super) root_disk: Option<String>,
    pub(super) hashes: String,
    pub(super) igvm: String,
    pub(super) instance: String,
    pub(super) qmp_socket: String,
    pub(super) events_socket: String,
    pub(super) psp_socket: String,
}

impl Places {
    pub(super) fn resolve(spec: &LaunchSpec, inputs: &PlanInputs<'_>) -> Result<Self, PlanError> {
        let artifact = host_path("artifact directory", inputs.artifact_dir)?;
        let run = host_path("run directory", inputs.run_dir)?;
        let socket = |name: &str| {
            let path = format!("{run}/{name}");
            if path.len() > MAX_SOCKET_PATH_LEN {
                return Err(PlanError::SocketPath { path: path.into() });
            }
            Ok(path)
        };
        let files = &spec.artifact;
        let uki = artifact_path("artifact.uki.path", &artifact, &files.uki.path)?;
        Ok(Self {
            firmware: artifact_path("artifact.firmware.path", &artifact, &files.firmware.path)?,
            uki: match inputs.substitute_uki {
                Some(path) => host_path("substitute UKI", path)?,
                None => uki,
            },
            root_disk: match &files.root_disk {
                Some(disk) => Some(artifact_path(
                    "artifact.rootDisk.path",
                    &artifact,
                    &disk.path,
                )?),
                None => None,
            },
            hashes: format!("{run}/hashes.bin"),
            igvm: format!("{run}/guest.igvm"),
            instance: format!("{run}/instance.json"),
            qmp_socket: socket("qmp.sock")?,
            events_socket: socket("events.sock")?,
            psp_socket: socket("psp.sock")?,
        })
    }
}

fn host_path(name: &'static str, path: &Path) -> Result<String, PlanError> {
    match path.to_str() {
        Some(text) if path.is_absolute() && !text.contains(char::is_control) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(PlanError::HostPath {
            name,
            got: path.to_owned(),
        }),
    }
}

fn artifact_path(
    field: &'static str,
    artifact_dir: &str,
    relative: &str,
) -> Result<String, PlanError> {
    let inside = Path::new(relative)
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if relative.is_empty() || !inside || relative.contains(char::is_control) {
        return Err(PlanError::ArtifactPath {
            field,
            got: relative.to_owned(),
        });
    }
    Ok(format!("{artifact_dir}/{relative}"))
}
