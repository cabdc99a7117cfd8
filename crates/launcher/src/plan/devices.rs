//! The guest's hardware, option by option.

use assay_tee::cpu::CpuModel;
use assay_tee::{BootMethod, Sha256Digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Accelerator;
use crate::qemu::{Argv, OptionList};
use crate::spec::{Console, LaunchSpec, PortForward, RootDisk};

/// Bit of a page table entry that marks encrypted memory. 51 on every processor
/// with SEV-SNP (CPUID Fn8000_001F EBX 5:0); QEMU compares it with the host's.
const C_BIT_POSITION: &str = "51";

/// Physical address bits lost to encryption (CPUID Fn8000_001F EBX 11:6). QEMU
/// accepts any positive number up to 63 and shows it to the guest.
const REDUCED_PHYS_BITS: &str = "1";

/// Name of the object with the IGVM file.
pub(super) const IGVM_ID: &str = "igvm0";

/// Where the firmware comes from, as an option of the machine.
fn with_firmware(machine: OptionList, spec: &LaunchSpec) -> OptionList {
    match spec.shape.boot {
        BootMethod::DirectKernel => machine,
        BootMethod::Igvm => machine.set("igvm-cfg", IGVM_ID),
    }
}

/// A machine that any computer can emulate. The CPU model is not the measured
/// one: TCG lacks features of every EPYC, and the simulated processor measures
/// what the shape names.
pub(super) fn push_simulated_machine(argv: &mut Argv, spec: &LaunchSpec, accelerator: Accelerator) {
    match accelerator {
        Accelerator::Tcg => {
            argv.list("-accel", OptionList::new("tcg").set("thread", "multi"));
        }
        Accelerator::Kvm => argv.verbatim("-accel", "kvm"),
    }
    let machine = OptionList::new("q35").set("vmport", "off");
    argv.list("-machine", with_firmware(machine, spec));
    argv.verbatim("-cpu", "max");
    argv.verbatim("-m", mebibytes(spec.memory_mib));
}

/// A machine under SEV-SNP (QEMU 9.1 or newer,
/// `docs/system/i386/amd-memory-encryption.rst`). `kernel-hashes=on` makes QEMU
/// put the hashes table into the measured page; with an IGVM file it finds no page,
/// because it does not read the firmware's metadata then (QEMU
/// `target/i386/sev.c`). SEV_FEATURES are KVM's choice: QEMU has no option for
/// them, and an IGVM file has the same.
pub(super) fn push_snp_machine(
    argv: &mut Argv,
    spec: &LaunchSpec,
    cpu_model: CpuModel,
    host_data: &Sha256Digest,
) {
    argv.verbatim("-accel", "kvm");
    let machine = OptionList::new("q35")
        .set("vmport", "off")
        .set("kernel-irqchip", "split")
        .set("confidential-guest-support", "snp0")
        .set("memory-backend", "ram1");
    argv.list("-machine", with_firmware(machine, spec));
    argv.verbatim("-cpu", cpu_model.name());
    argv.verbatim("-m", mebibytes(spec.memory_mib));
    argv.list(
        "-object",
        OptionList::new("memory-backend-memfd")
            .set("id", "ram1")
            .set("size", mebibytes(spec.memory_mib))
            .set("share", "on")
            .set("prealloc", "off"),
    );
    let kernel_hashes = match spec.shape.boot {
        BootMethod::DirectKernel => "on",
        BootMethod::Igvm => "off",
    };
    argv.list(
        "-object",
        OptionList::new("sev-snp-guest")
            .set("id", "snp0")
            .set("policy", format!("{:#x}", spec.guest_policy.0))
            .set("cbitpos", C_BIT_POSITION)
            .set("reduced-phys-bits", REDUCED_PHYS_BITS)
            .set("kernel-hashes", kernel_hashes)
            .set("host-data", STANDARD.encode(host_data.as_bytes())),
    );
}

fn mebibytes(count: u32) -> String {
    format!("{count}M")
}

pub(super) fn push_console(argv: &mut Argv, console: Console) {
    match console {
        Console::None => argv.verbatim("-serial", "null"),
        Console::Full => {
            argv.list(
                "-chardev",
                OptionList::new("stdio")
                    .set("id", "console")
                    .set("signal", "off"),
            );
            argv.verbatim("-serial", "chardev:console");
        }
    }
}

/// The guest's only interface: QEMU's user-mode network, whose addresses
/// [`LaunchSpec::instance_data`] tells the guest. No boot ROM: the firmware is to
/// boot what was measured and nothing from the network.
pub(super) fn push_network(argv: &mut Argv, ports: &[PortForward]) {
    let netdev = OptionList::new("user")
        .set("id", "n0")
        .set("ipv6", "off")
        .set("restrict", "off");
    let netdev = ports.iter().fold(netdev, |netdev, port| {
        // Without an address QEMU listens on all.
        let address = port.address.map(|address| address.to_string());
        let address = address.unwrap_or_default();
        netdev.set(
            "hostfwd",
            format!("tcp:{address}:{}-:{}", port.pod, port.guest),
        )
    });
    argv.list("-netdev", netdev);
    argv.list(
        "-device",
        virtio("virtio-net-pci")
            .set("netdev", "n0")
            .set("romfile", ""),
    );
}

/// The read-only root disk. Unlocked, as every guest on the node reads the same
/// file and none writes.
pub(super) fn push_root_disk(argv: &mut Argv, disk: &RootDisk, path: &str) {
    argv.list(
        "-drive",
        OptionList::keyed("if", "none")
            .set("id", "root")
            .set("file", path)
            .set("format", "raw")
            .set("readonly", "on")
            .set("file.locking", "off"),
    );
    argv.list(
        "-device",
        virtio("virtio-blk-pci")
            .set("drive", "root")
            .set("serial", &disk.serial),
    );
}

/// A virtio device whose buffers the guest shares on purpose: a confidential
/// guest's device cannot reach anything else. Simulated guests take the same
/// path.
pub(super) fn virtio(model: &'static str) -> OptionList {
    OptionList::new(model)
        .set("disable-legacy", "on")
        .set("iommu_platform", "on")
}

/// A named virtio-serial port on a socket of the launcher.
pub(super) fn push_port(argv: &mut Argv, id: &'static str, socket: &str, name: &'static str) {
    push_socket(argv, id, socket);
    argv.list(
        "-device",
        OptionList::new("virtserialport")
            .set("bus", "ports.0")
            .set("chardev", id)
            .set("name", name),
    );
}

/// A character device that connects to a socket of the launcher. The launcher
/// listens and QEMU connects, so that nothing the guest says first is lost.
pub(super) fn push_socket(argv: &mut Argv, id: &'static str, socket: &str) {
    argv.list(
        "-chardev",
        OptionList::new("socket")
            .set("id", id)
            .set("path", socket)
            .set("server", "off"),
    );
}
