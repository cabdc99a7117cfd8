//! A disk as OVMF and the kernel read it.

use super::tests::partitions;
use super::*;
use crate::artifact::build;
use crate::artifact::tests::inputs;
use crate::oracles::Oracles;

/// Partitions by the kernel's names, and their content.
const SCRIPT: &str = "cat /sys/block/vda/vda*/uevent\n\
    sha256sum /dev/vda1 /dev/vda2 /dev/vda3\n";

#[test]
fn firmware_boots_the_disk_and_the_kernel_sees_its_partitions() {
    let Some(oracles) = Oracles::find("OVMF boots a disk") else {
        return;
    };
    let mut artifact = build(&inputs()).unwrap();
    let uki = oracles.uki(SCRIPT, &["drivers/block/virtio_blk.ko.xz"]);
    for (name, content) in &mut artifact.files {
        if *name == UKI_PATH {
            *content = uki.clone().into();
        }
    }
    artifact.manifest.uki.sha256 = Sha256Digest::of(&uki);
    let disk = encode_disk(&artifact).unwrap().to_bytes();
    let drive = oracles.write("disk", &disk);
    let drive = format!("file={drive},format=raw,if=none,id=disk,readonly=on");
    let console = oracles.boot(&[
        "-bios",
        "/usr/share/ovmf/OVMF.fd",
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=disk",
    ]);
    for (index, (.., content)) in partitions(&disk, 1).iter().enumerate() {
        let sum = Sha256Digest::of(content).to_hex();
        let line = format!("{sum}  /dev/vda{}\n", index + 1);
        assert!(console.contains(&line), "{line} is not in\n{console}");
    }
    for name in ["esp", "root-x86-64", "root-x86-64-verity"] {
        assert!(console.contains(&format!("PARTNAME={name}\n")), "{console}");
    }
}
