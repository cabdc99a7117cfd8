//! The disk image as all that firmware is given: OVMF as distributions ship it, no
//! `-kernel`, no root disk beside it. What the simulated processor measured is the
//! artifact that `assay run` was told of.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use assay_image::manifest::Manifest;
use assay_tee::guest_config::RootFs;

use crate::run::{Running, TIMEOUT_SECONDS, serves};
use crate::{Prepared, assay, prepared, quickstart};

/// Takes from QEMU's arguments whatever the guest could boot from.
const WITHOUT_BOOT_SOURCES: &str = r#"held=
for word do
  shift
  case $word in
  -*)
    [ -n "$held" ] && set -- "$@" "$held"
    held=$word
    continue
    ;;
  esac
  case "$held $word" in
  "-bios "* | "-kernel "* | "-device loader,"* | "-drive "* | *serial=assay-root*) ;;
  *) set -- "$@" "$held" "$word" ;;
  esac
  held=
done
[ -n "$held" ] && set -- "$@" "$held"
"#;

fn run(prepared: &Prepared, scratch: &Path, disk: &Path) -> Command {
    let firmware = prepared.oracles.join("usr/share/ovmf/OVMF.fd");
    let commands = format!(
        "{WITHOUT_BOOT_SOURCES}echo \"$@\" >{arguments}\n\
         set -- \"$@\" -bios {firmware} \
         -drive file={disk},format=raw,if=none,id=disk,readonly=on,file.locking=off \
         -device virtio-blk-pci,drive=disk,bootindex=0\n",
        arguments = scratch.join("arguments").display(),
        firmware = firmware.display(),
        disk = disk.display(),
    );
    let mut command = assay();
    command
        .env("TMPDIR", scratch)
        .args(["run", "--publish", "0:8080", "--qemu"])
        .arg(prepared.qemu_after(scratch, &commands))
        .arg("--artifact")
        .arg(prepared.artifact())
        .arg("-f")
        .arg(quickstart());
    command
}

#[test]
fn a_guest_of_which_there_is_only_the_disk_attests_and_serves() {
    let Some(prepared) = prepared("a guest on its disk image") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let mut command = run(prepared, scratch.path(), &prepared.disk_image());
    let mut running = Running::start(&mut command);
    let port = running.wait_for("for port 8080 of the guest");
    let address = port.split_whitespace().nth(1).unwrap().to_owned();
    running.wait_for("ACCEPTED (SIMULATED: protects nothing)");
    running.wait_for("htpasswd Released");
    running.wait_for("its workload runs");
    serves(&address);
    let arguments = fs::read_to_string(scratch.path().join("arguments")).unwrap();
    for word in ["uki.efi", "rootfs.img", "firmware.fd", "assay-root"] {
        assert!(!arguments.contains(word), "{word}: {arguments}");
    }
    running.interrupt();
    running.wait_for("the guest is stopped");
    assert!(running.child.wait().unwrap().success(), "{}", running.said);
}

/// Bytes of the disk that the guest reads on its way to the workload: the file
/// system's superblock, the tree's top, and the root partition's entry in the table.
#[test]
fn a_disk_with_a_flipped_byte_never_comes_to_its_workload() {
    let Some(prepared) = prepared("a guest on a disk with a flipped byte") else {
        return;
    };
    let manifest = fs::read(prepared.artifact().join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    let RootFs::DmVerity { data_blocks, .. } = manifest.root_disk.unwrap().root else {
        panic!("no dm-verity")
    };
    let scratch = tempfile::tempdir().unwrap();
    let disk = scratch.path().join("disk.img");
    fs::copy(prepared.disk_image(), &disk).unwrap();
    let mut options = fs::File::options();
    let file = options.read(true).write(true).open(&disk).unwrap();
    let first_sector = |entry: u64| {
        let mut number = [0; 8];
        let at = 1024 + 128 * entry + 32;
        file.read_exact_at(&mut number, at).unwrap();
        u64::from_le_bytes(number) * 512
    };
    let (data, tree) = (first_sector(1), first_sector(2));
    assert!(data + data_blocks * 4096 <= tree);
    for (at, cause) in [
        (data + 1024, "not syncing: dm-verity device corrupted"),
        (tree + 4096, "not syncing: dm-verity device corrupted"),
        (1024 + 128 + 16, "there is no root: "),
    ] {
        let flip = || {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        };
        flip();
        let output = run(prepared, scratch.path(), &disk)
            .args(["--until-attested", "--timeout-seconds", TIMEOUT_SECONDS])
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(1), "byte {at}: {said}");
        for word in ["ACCEPTED", "Released", "its workload runs"] {
            assert!(!said.contains(word), "byte {at}: {word}: {said}");
        }
        assert!(said.contains(cause), "byte {at}: {said}");
        flip();
    }
}
