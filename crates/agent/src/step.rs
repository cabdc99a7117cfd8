//! The steps that a plan is made of.
//!
//! Steps are data: plans are compared in tests, and the plan of the workload's
//! own process crosses a pipe as JSON.

use std::net::Ipv4Addr;

use assay_tee::Sha256Digest;
use serde::{Deserialize, Serialize};

/// One thing to do. The executor does it or fails; it never decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "step",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Step {
    /// Creates a directory and its missing parents.
    MakeDirectory {
        /// Absolute path.
        path: String,
        /// Permission bits of the last directory, whether it existed or not.
        mode: u32,
    },
    /// Creates a character device that everybody may read and write.
    MakeDevice {
        /// Absolute path.
        path: String,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Creates a symbolic link.
    MakeSymlink {
        /// Absolute path of the link.
        path: String,
        /// What the link says.
        target: String,
    },
    /// Puts a world-readable file in the place of whatever has this name.
    WriteFile {
        /// Absolute path.
        path: String,
        /// The whole content.
        content: String,
    },
    /// Writes a kernel setting.
    SetKernel {
        /// Path below `/proc/sys`.
        path: String,
        /// The value.
        value: String,
    },
    /// Loads a kernel module. One that is loaded already, or whose hardware is
    /// absent, is fine: what needs it fails by itself.
    LoadModule {
        /// Absolute path of the module file.
        path: String,
    },
    /// Mounts a file system on a directory, which is created when missing.
    Mount(Mount),
    /// Shows a directory a second time, read-only and without devices.
    ShowReadOnly {
        /// Absolute path of the directory.
        from: String,
        /// Absolute path of where it is shown, created when missing.
        to: String,
    },
    /// Keeps a directory writable once the root is not: it becomes a mount of its
    /// own, without set-id programs and devices. Made when missing.
    KeepWritable {
        /// Absolute path.
        path: String,
        /// Whether programs in it cannot be run.
        no_exec: bool,
    },
    /// Makes the root read-only, but no other mount.
    SealRoot,
    /// Makes an existing file or directory read-only in place. Absent is fine.
    Protect {
        /// Absolute path.
        path: String,
    },
    /// Covers an existing file or directory with nothing. Absent is fine.
    Hide {
        /// Absolute path.
        path: String,
    },
    /// Brings the loopback interface up.
    StartLoopback,
    /// Configures the only network interface of the guest.
    ConfigureInterface {
        /// Address of the interface.
        address: Ipv4Addr,
        /// Prefix length of its network.
        prefix: u8,
        /// Default gateway.
        gateway: Ipv4Addr,
    },
    /// Sets the host name.
    SetHostname {
        /// The name.
        name: String,
    },
    /// Opens a verity disk as a device mapper device.
    OpenVerity(VerityDisk),
    /// Leaves the initramfs behind: `path` becomes `/`.
    EnterRoot {
        /// The mounted root file system.
        path: String,
        /// Mounts of the old root to forget.
        detach: Vec<String>,
        /// Mounts to carry over.
        carry: Vec<Carry>,
    },
    /// Gives up every privilege that the workload must not have.
    DropPrivileges {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Supplementary groups.
        additional_gids: Vec<u32>,
    },
    /// Becomes the workload. The last step of a plan.
    Exec {
        /// Program and arguments.
        args: Vec<String>,
        /// Environment as `NAME=value`.
        env: Vec<String>,
        /// Working directory.
        cwd: String,
    },
}

/// A file system to mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Device or label.
    pub source: String,
    /// Absolute path of the mount point.
    pub target: String,
    /// File system type.
    pub kind: String,
    /// Flags.
    pub options: Vec<MountOption>,
    /// Options of the file system itself.
    pub data: String,
    /// Whether a kernel without this file system is an error.
    pub required: bool,
}

/// A flag of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MountOption {
    /// No writes.
    ReadOnly,
    /// Set-user-id bits have no effect.
    NoSuid,
    /// Device nodes cannot be opened.
    NoDev,
    /// Programs cannot be run.
    NoExec,
}

/// A mount that moves along into the new root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Carry {
    /// Mount point in the old root.
    pub from: String,
    /// Mount point in the new root.
    pub to: String,
}

/// A disk whose content dm-verity checks (Linux, dm-verity target version 1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerityDisk {
    /// Name of the device below `/dev/mapper`.
    pub name: String,
    /// Serial of the virtio disk. Without it the root is two partitions, which are
    /// known from the root hash.
    pub serial: String,
    /// Size of data and hash blocks in bytes.
    pub block_size: u32,
    /// Number of data blocks.
    pub data_blocks: u64,
    /// First block of the hash tree, in blocks from the start of the data: on a
    /// device of its own the tree begins as many blocks after the data's end.
    pub hash_start_block: u64,
    /// Root hash of the tree.
    pub root_hash: Sha256Digest,
    /// Salt as lower-case hex; may be empty.
    pub salt: String,
}
