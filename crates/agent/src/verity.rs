//! dm-verity by the device mapper's ioctl interface (Linux,
//! `uapi/linux/dm-ioctl.h` and `Documentation/admin-guide/device-mapper/verity.rst`).
//!
//! No superblock is read: the disk is the host's, so every parameter comes from
//! the measured configuration.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use crate::devices::RootDevices;
use crate::step::VerityDisk;
use crate::sys::{self, DM_IOCTL_LEN, DmCommand};

/// `struct dm_target_spec`.
const TARGET_LEN: usize = 40;
/// Size of the name in `struct dm_ioctl`, with its NUL.
const NAME_LEN: usize = 128;
/// DM_READONLY_FLAG.
const READ_ONLY: u32 = 1;
const SECTOR: u64 = 512;

/// A verity device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// The parameters do not fit the interface.
    #[error("the verity parameters do not fit a device mapper table")]
    Parameters,
    /// The device mapper is not there.
    #[error("cannot open /dev/mapper/control")]
    OpenControl(#[source] io::Error),
    /// A command failed.
    #[error("device mapper: cannot {action}")]
    Command {
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Length of the device in sectors.
fn sectors(disk: &VerityDisk) -> Option<u64> {
    disk.data_blocks
        .checked_mul(u64::from(disk.block_size))
        .map(|bytes| bytes / SECTOR)
}

/// The target's parameters. A block that fails verification stops the kernel:
/// a workload must not go on with a disk that someone changes. `None` when the tree
/// would begin before the data end.
fn parameters(disk: &VerityDisk, devices: &RootDevices) -> Option<String> {
    let VerityDisk {
        block_size,
        data_blocks,
        hash_start_block,
        root_hash,
        salt,
        ..
    } = disk;
    let after_data = hash_start_block.checked_sub(*data_blocks)?;
    let (data, tree, tree_start) = match devices {
        RootDevices::Appended { disk } => (disk, disk, *hash_start_block),
        // What is before the tree on one device is before it on its own.
        RootDevices::Separate { data, tree } => (data, tree, after_data),
    };
    let salt = if salt.is_empty() { "-" } else { salt };
    Some(format!(
        "1 {data} {tree} {block_size} {block_size} {data_blocks} {tree_start} sha256 {root} {salt} \
         1 panic_on_corruption",
        root = root_hash.to_hex()
    ))
}

/// A buffer that starts with `struct dm_ioctl` version 4.0.0.
fn header(name: &str, flags: u32, targets: u32) -> Option<Vec<u8>> {
    if name.is_empty() || name.len() >= NAME_LEN {
        return None;
    }
    let mut bytes = Vec::with_capacity(DM_IOCTL_LEN);
    let length = u32::try_from(DM_IOCTL_LEN).ok()?;
    for word in [4, 0, 0, length, length, targets, 0, flags, 0, 0] {
        bytes.extend_from_slice(&u32::to_ne_bytes(word));
    }
    bytes.extend_from_slice(&[0; 8]); // dev
    bytes.extend_from_slice(name.as_bytes());
    bytes.resize(DM_IOCTL_LEN, 0);
    Some(bytes)
}

/// The buffer of DM_TABLE_LOAD with one verity target.
fn table(disk: &VerityDisk, devices: &RootDevices) -> Option<Vec<u8>> {
    let mut bytes = header(&disk.name, READ_ONLY, 1)?;
    let parameters = parameters(disk, devices)?;
    // The next target would be aligned to eight bytes; there must be a NUL.
    let padded = (parameters.len() + 1).next_multiple_of(8);
    bytes.extend_from_slice(&0u64.to_ne_bytes());
    bytes.extend_from_slice(&sectors(disk)?.to_ne_bytes());
    bytes.extend_from_slice(&0i32.to_ne_bytes());
    bytes.extend_from_slice(&u32::try_from(TARGET_LEN + padded).ok()?.to_ne_bytes());
    bytes.extend_from_slice(b"verity\0\0\0\0\0\0\0\0\0\0");
    bytes.extend_from_slice(parameters.as_bytes());
    bytes.resize(DM_IOCTL_LEN + TARGET_LEN + padded, 0);
    Some(bytes)
}

/// The minor number in the `dev` field that DM_DEV_CREATE fills in (Linux,
/// `huge_encode_dev`).
fn minor(header: &[u8]) -> Option<u64> {
    let dev = u64::from_ne_bytes(*header.get(40..48)?.first_chunk()?);
    Some((dev & 0xff) | ((dev >> 12) & 0xfff_ff00))
}

/// Makes the verity device of `devices` and returns the number N of its node
/// `/dev/dm-N`.
///
/// # Errors
/// When the device mapper refuses.
pub fn open(disk: &VerityDisk, devices: &RootDevices) -> Result<u64, VerityError> {
    let mut create = header(&disk.name, 0, 0).ok_or(VerityError::Parameters)?;
    let mut load = table(disk, devices).ok_or(VerityError::Parameters)?;
    let mut resume = header(&disk.name, 0, 0).ok_or(VerityError::Parameters)?;

    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")
        .map_err(VerityError::OpenControl)?;
    let command = |action, command, buffer: &mut [u8]| {
        sys::dm_ioctl(control.as_fd(), command, buffer)
            .map_err(|source| VerityError::Command { action, source })
    };
    command("create the device", DmCommand::Create, &mut create)?;
    command("load the verity table", DmCommand::LoadTable, &mut load)?;
    command("start the device", DmCommand::Suspend, &mut resume)?;
    minor(&create).ok_or(VerityError::Parameters)
}

#[cfg(test)]
mod tests {
    use assay_tee::Sha256Digest;

    use super::*;

    fn disk() -> VerityDisk {
        VerityDisk {
            name: "assay-root".to_owned(),
            serial: "assay-root".to_owned(),
            block_size: 4096,
            data_blocks: 100,
            hash_start_block: 101,
            root_hash: Sha256Digest::new([0xab; 32]),
            salt: String::new(),
        }
    }

    fn appended() -> RootDevices {
        RootDevices::Appended {
            disk: "/dev/vda".to_owned(),
        }
    }

    #[test]
    fn the_table_line_is_that_of_the_documentation() {
        let root = "ab".repeat(32);
        assert_eq!(
            parameters(&disk(), &appended()).expect("line"),
            format!("1 /dev/vda /dev/vda 4096 4096 100 101 sha256 {root} - 1 panic_on_corruption")
        );
        let salted = VerityDisk {
            salt: "00ff".to_owned(),
            ..disk()
        };
        let line = parameters(&salted, &appended()).expect("line");
        assert!(line.ends_with(" 00ff 1 panic_on_corruption"));
    }

    #[test]
    fn a_tree_on_its_own_device_begins_after_its_superblock() {
        let separate = RootDevices::Separate {
            data: "/dev/vda2".to_owned(),
            tree: "/dev/vdb1".to_owned(),
        };
        let line = parameters(&disk(), &separate).expect("line");
        let start = "1 /dev/vda2 /dev/vdb1 4096 4096 100 1 sha256 ";
        assert!(line.starts_with(start), "{line}");
    }

    #[test]
    fn the_table_buffer_has_the_layout_of_the_header() {
        let bytes = table(&disk(), &appended()).expect("table");
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("word"));
        let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("long"));
        assert_eq!(
            (word(0), word(16), word(20), word(28)),
            (4, 312, 1, READ_ONLY)
        );
        assert_eq!(&bytes[48..59], b"assay-root\0");
        assert_eq!((long(312), long(320)), (0, 800));
        assert_eq!(word(332) as usize, bytes.len() - 312);
        assert_eq!(&bytes[336..343], b"verity\0");
        assert_eq!(&bytes[352..354], b"1 ");
        assert_eq!(bytes.last(), Some(&0));
        assert_eq!(bytes.len() % 8, 0);
    }

    #[test]
    fn device_numbers_are_decoded() {
        let mut header = header("x", 0, 0).expect("header");
        // Major 254, minor 0x12345 as huge_encode_dev writes it.
        let dev: u64 = 0x45 | (254 << 8) | (0x12300 << 12);
        header[40..48].copy_from_slice(&dev.to_ne_bytes());
        assert_eq!(minor(&header), Some(0x12345));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(header("", 0, 0).is_none());
        assert!(header(&"x".repeat(128), 0, 0).is_none());
        let table = |data_blocks| {
            let disk = VerityDisk {
                data_blocks,
                ..disk()
            };
            table(&disk, &appended())
        };
        assert!(table(101).is_some());
        // The tree would be among the data.
        assert!(table(102).is_none());
    }
}
