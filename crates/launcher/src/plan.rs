//! The plan of one launch: QEMU's arguments, the files it needs, and what the
//! secure processor is told.
//!
//! Pure: the same specification and inputs give the same plan. It decides
//! everything; the runner only writes the files and starts the program.
//!
//! Nothing on QEMU's command line is measured except through the launch digest,
//! so a plan protects no guest from its host. What it does protect is the host:
//! no text of a specification becomes a QEMU option.

mod check;
mod devices;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use assay_tee::canonical::EncodeCanonicalError;
use assay_tee::cpu::{CpuModel, UnknownCpuModelError};
use assay_tee::guest_event::{EVENT_PORT, PSP_SIM_PORT};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::instance::{INSTANCE_FW_CFG_NAME, PodIdentity};
use assay_tee::ovmf::OvmfMetadata;
use assay_tee::{BootMethod, InstanceData, Sha256Digest, Tee};

use self::check::Places;
use crate::qemu::{Argv, OptionList};
use crate::spec::LaunchSpec;

/// Least guest memory in MiB. AmdSev OVMF does not come as far as the kernel
/// with 128; a distribution kernel needs more than it anyway.
pub const MIN_MEMORY_MIB: u32 = 256;

/// Most bytes of a virtio disk's serial (virtio 1.2, VIRTIO_BLK_T_GET_ID).
const MAX_SERIAL_LEN: usize = 20;

/// Most bytes of a UNIX socket's path, its NUL not counted (unix(7)).
const MAX_SOCKET_PATH_LEN: usize = 107;

/// What a plan depends on besides the specification.
#[derive(Debug, Clone)]
pub struct PlanInputs<'a> {
    /// The pod that runs the guest.
    pub pod: PodIdentity,
    /// Name of the node.
    pub node: String,
    /// The firmware's metadata.
    pub firmware: &'a OvmfMetadata,
    /// The hashes that a simulated launch places in guest memory. On hardware
    /// QEMU computes them itself. Unused with an IGVM file.
    pub kernel_hashes: &'a KernelHashes,
    /// Bytes of the UKI.
    pub uki_len: u64,
    /// Directory that the artifact is mounted at; absolute.
    pub artifact_dir: &'a Path,
    /// Writable directory for sockets and files; absolute.
    pub run_dir: &'a Path,
    /// A UKI to boot in place of the artifact's, to play a hostile host.
    pub substitute_uki: Option<&'a Path>,
    /// Port of the pod that serves the launcher's own health, if there is one.
    pub status_port: Option<u16>,
    /// What runs the processor of a simulated launch. On hardware it is KVM.
    pub accelerator: Accelerator,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU itself, on any machine.
    #[default]
    Tcg,
    /// The kernel, where it lets QEMU.
    Kvm,
}

/// Everything that the runner needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// QEMU's arguments, the program itself not included.
    pub argv: Vec<String>,
    /// Files to write before QEMU starts.
    pub files: Vec<PlannedFile>,
    /// The files that QEMU reads the guest's first bytes from.
    pub boot: BootFiles,
    /// HOST_DATA: SHA-256 of the instance document.
    pub host_data: Sha256Digest,
    /// Sockets that must listen before QEMU starts; it connects to them.
    pub sockets: Sockets,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub content: Vec<u8>,
}

/// The files that QEMU reads the guest's first bytes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootFiles {
    /// Firmware and UKI apart.
    DirectKernel {
        /// The firmware (`-bios`).
        firmware: PathBuf,
        /// The UKI (`-kernel`).
        uki: PathBuf,
        /// The hashes table that the loader device places, in a simulated launch.
        hashes_table: Option<PlacedTable>,
    },
    /// The IGVM file that holds both, which must be written before QEMU starts.
    Igvm {
        /// Where.
        file: PathBuf,
    },
}

/// A hashes table and its place in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTable {
    /// The table's file.
    pub path: PathBuf,
    /// Guest physical address.
    pub gpa: u32,
}

/// Sockets between launcher and QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sockets {
    /// QEMU Machine Protocol.
    pub qmp: PathBuf,
    /// The guest's events ([`EVENT_PORT`]).
    pub events: PathBuf,
    /// The simulated processor ([`PSP_SIM_PORT`]), in a simulated launch.
    pub psp: Option<PathBuf>,
}

/// A specification or an input that no guest can be launched from.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The specification is of another version.
    #[error(
        "launch specification has version {got}, this launcher reads {}",
        LaunchSpec::VERSION
    )]
    Version {
        /// The version found.
        got: u32,
    },
    /// A simulated launch without the simulated chip's key.
    #[error("tee is SimulatedSNP but the specification has no simulation")]
    SimulationMissing,
    /// A hardware launch with a simulation.
    #[error("tee is {tee} but the specification has a simulation: hardware is never simulated")]
    SimulationOnHardware {
        /// The TEE asked for.
        tee: Tee,
    },
    /// Another UKI was to be booted although no fault asks for it.
    #[error("only a simulated launch with a fault may boot another UKI than the artifact's")]
    SubstituteWithoutFault,
    /// The CPU model is none that SEV guests can have.
    #[error("shape.cpuModel is refused")]
    CpuModel(#[source] UnknownCpuModelError),
    /// Too little memory.
    #[error("memoryMib is {got}, the least is {MIN_MEMORY_MIB}")]
    Memory {
        /// The value found.
        got: u32,
    },
    /// Too little memory for an IGVM file: QEMU would refuse it, or the firmware
    /// hang.
    #[error(
        "memoryMib is {got}, but a guest whose IGVM file holds a UKI of {uki_len} bytes needs at \
         least {least}"
    )]
    IgvmMemory {
        /// The value found.
        got: u32,
        /// Bytes of the UKI.
        uki_len: u64,
        /// The least value.
        least: u64,
    },
    /// A fault that is about a hashes table, which an IGVM guest has none of.
    #[error(
        "simulation.fault TamperedKernel goes with boot DirectKernel: nothing verifies the UKI of \
         an IGVM file, it is measured. Use TamperedKernelRehashed"
    )]
    FaultWithoutTable,
    /// A guest policy that no processor accepts.
    #[error("guestPolicy {got:#x} is invalid: bit 17 must be one and bits 63:26 zero")]
    GuestPolicy {
        /// The value found.
        got: u64,
    },
    /// A file name that could leave the artifact, or that QEMU cannot be given.
    #[error("{field} must be a relative path without `..` or control characters, got {got:?}")]
    ArtifactPath {
        /// Field of the specification.
        field: &'static str,
        /// The value found.
        got: String,
    },
    /// A path that QEMU cannot be given.
    #[error("the {name} must be an absolute UTF-8 path without control characters, got {got:?}")]
    HostPath {
        /// What the path is of.
        name: &'static str,
        /// The value found.
        got: PathBuf,
    },
    /// A disk serial that virtio cannot carry.
    #[error(
        "artifact.rootDisk.serial must be 1 to {MAX_SERIAL_LEN} letters, digits, '-', '_' or '.', \
         got {got:?}"
    )]
    DiskSerial {
        /// The value found.
        got: String,
    },
    /// A port zero.
    #[error("ports: {pod} to {guest} has a zero")]
    PortZero {
        /// Port of the pod.
        pod: u16,
        /// Port of the guest.
        guest: u16,
    },
    /// A port of the pod that is taken.
    #[error("ports: {pod} of the pod is already used")]
    PortTaken {
        /// Port of the pod.
        pod: u16,
    },
    /// A pod without name or UID.
    #[error("the pod's {0} is empty")]
    PodIdentity(&'static str),
    /// The firmware would boot any UKI.
    #[error(
        "the firmware has no {missing}: it would not verify the UKI. Use an OVMF of the AmdSev \
         platform"
    )]
    UnverifyingFirmware {
        /// What the metadata lacks.
        missing: &'static str,
    },
    /// A socket's path is too long for the kernel.
    #[error("socket path {path:?} is longer than {MAX_SOCKET_PATH_LEN} bytes")]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// The instance data has no canonical form.
    #[error("instance data cannot be encoded")]
    EncodeInstance(#[source] EncodeCanonicalError),
}

/// Plans the launch of one guest.
///
/// # Errors
/// See [`PlanError`]. Nothing is repaired: a wrong specification is refused.
pub fn plan(spec: &LaunchSpec, inputs: &PlanInputs<'_>) -> Result<LaunchPlan, PlanError> {
    let simulated = check::tee(spec, inputs)?;
    let cpu_model = CpuModel::by_name(&spec.shape.cpu_model).map_err(PlanError::CpuModel)?;
    let table_area = check::hashes_table_area(inputs.firmware)?;
    check::values(spec, inputs)?;
    let places = Places::resolve(spec, inputs)?;

    let instance = spec
        .instance_data(inputs.pod.clone(), inputs.node.clone())
        .encode()
        .map_err(PlanError::EncodeInstance)?;
    let host_data = InstanceData::host_data(&instance);

    let mut argv = Argv::default();
    argv.flag("-nodefaults");
    argv.flag("-no-user-config");
    argv.verbatim("-display", "none");
    argv.flag("-no-reboot");
    // The process that parses guest input needs neither new programs nor other
    // identities.
    argv.list(
        "-sandbox",
        OptionList::new("on")
            .set("obsolete", "deny")
            .set("elevateprivileges", "deny")
            .set("spawn", "deny")
            .set("resourcecontrol", "deny"),
    );
    if simulated {
        devices::push_simulated_machine(&mut argv, spec, inputs.accelerator);
    } else {
        devices::push_snp_machine(&mut argv, spec, cpu_model, &host_data);
    }
    argv.verbatim("-smp", spec.shape.vcpus.get().to_string());

    let mut files = vec![PlannedFile {
        path: places.instance.as_str().into(),
        content: instance,
    }];
    let boot = match spec.shape.boot {
        BootMethod::DirectKernel => {
            let table = simulated.then(|| PlacedTable {
                path: places.hashes.as_str().into(),
                gpa: table_area.gpa,
            });
            if let Some(table) = &table {
                files.push(PlannedFile {
                    path: table.path.clone(),
                    content: inputs.kernel_hashes.encode_table().to_vec(),
                });
            }
            push_direct_kernel(&mut argv, &places, table)
        }
        BootMethod::Igvm => push_igvm(&mut argv, &places),
    };

    devices::push_console(&mut argv, spec.console);
    devices::push_network(&mut argv, &spec.ports);
    if let (Some(disk), Some(path)) = (&spec.artifact.root_disk, &places.root_disk) {
        devices::push_root_disk(&mut argv, disk, path);
    }
    argv.list(
        "-fw_cfg",
        OptionList::keyed("name", INSTANCE_FW_CFG_NAME).set("file", &places.instance),
    );
    argv.list("-object", OptionList::new("rng-builtin").set("id", "rng0"));
    argv.list(
        "-device",
        devices::virtio("virtio-rng-pci").set("rng", "rng0"),
    );
    argv.list(
        "-device",
        devices::virtio("virtio-serial-pci").set("id", "ports"),
    );
    devices::push_port(&mut argv, "events", &places.events_socket, EVENT_PORT);
    if simulated {
        devices::push_port(&mut argv, "psp", &places.psp_socket, PSP_SIM_PORT);
    }
    devices::push_socket(&mut argv, "qmp", &places.qmp_socket);
    argv.list(
        "-mon",
        OptionList::keyed("chardev", "qmp").set("mode", "control"),
    );

    Ok(LaunchPlan {
        argv: argv.into_vec(),
        files,
        boot,
        host_data,
        sockets: Sockets {
            qmp: places.qmp_socket.into(),
            events: places.events_socket.into(),
            psp: simulated.then(|| places.psp_socket.into()),
        },
    })
}

/// No -append: the UKI's own command line is the only one, and the hashes table
/// says so.
fn push_direct_kernel(argv: &mut Argv, places: &Places, table: Option<PlacedTable>) -> BootFiles {
    argv.verbatim("-bios", places.firmware.as_str());
    argv.verbatim("-kernel", places.uki.as_str());
    if let Some(table) = &table {
        argv.list(
            "-device",
            OptionList::new("loader")
                .set("file", &places.hashes)
                .set("addr", format!("{:#x}", table.gpa))
                .set("force-raw", "on"),
        );
    }
    BootFiles::DirectKernel {
        firmware: places.firmware.as_str().into(),
        uki: places.uki.as_str().into(),
        hashes_table: table,
    }
}

/// QEMU ignores firmware beside an IGVM file, and a kernel beside it would be
/// another one than the measured.
fn push_igvm(argv: &mut Argv, places: &Places) -> BootFiles {
    argv.list(
        "-object",
        OptionList::new("igvm-cfg")
            .set("id", devices::IGVM_ID)
            .set("file", &places.igvm),
    );
    BootFiles::Igvm {
        file: places.igvm.as_str().into(),
    }
}
