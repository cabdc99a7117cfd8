//! `guest.json`: the measured configuration inside the initramfs.
//!
//! The builder writes it, the guest agent obeys it. It is part of the UKI and
//! so of the launch digest: nothing in it can be changed by a host.

use serde::{Deserialize, Serialize};

use crate::Sha256Digest;

/// Where the document lies in the initramfs.
pub const GUEST_CONFIG_PATH: &str = "/etc/assay/guest.json";

/// Where the workload's files lie in the initramfs of [`RootFs::Initramfs`].
pub const INITRAMFS_ROOT: &str = "/rootfs";
/// Names of signals that a guest can ask its process to stop with; each may have
/// `SIG` before it.
pub const STOP_SIGNALS: [&str; 14] = [
    "HUP", "INT", "QUIT", "ABRT", "KILL", "USR1", "USR2", "PIPE", "ALRM", "TERM", "CONT", "STOP",
    "WINCH", "PWR",
];

/// Whether a guest can send a signal: by its name, or by its number on Linux.
pub fn is_stop_signal(name: &str) -> bool {
    match name.parse::<u8>() {
        Ok(number) => (1..=31).contains(&number),
        Err(_) => STOP_SIGNALS.contains(&name.strip_prefix("SIG").unwrap_or(name)),
    }
}

/// The measured configuration of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestConfig {
    /// Version of this document: [`GuestConfig::VERSION`].
    pub version: u32,
    /// The kernel command line that `/proc/cmdline` must equal, without the
    /// final newline. Anything else was added by a host.
    pub cmdline: String,
    /// Kernel modules to load before anything else, in this order, as paths in
    /// the initramfs.
    pub modules: Vec<String>,
    /// The root file system.
    pub root: RootFs,
    /// What the workload may do with its file system.
    pub hardening: GuestHardening,
    /// The workload.
    pub process: Process,
}

impl GuestConfig {
    /// The version that this crate reads and writes.
    pub const VERSION: u32 = 1;
}

/// Where the workload's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum RootFs {
    /// An erofs image on a read-only virtio disk, its dm-verity hash tree
    /// appended; or both on partitions of their own, which are known from the root
    /// hash ([`crate::root_partition`]). A tmpfs overlay takes writes.
    DmVerity {
        /// Serial of the virtio disk (at most 20 bytes).
        serial: String,
        /// Size of data and hash blocks in bytes.
        block_size: u32,
        /// Number of data blocks.
        data_blocks: u64,
        /// First block of the hash tree, counted from the start of the disk in
        /// hash blocks.
        hash_start_block: u64,
        /// Root hash of the tree (SHA-256).
        root_hash: Sha256Digest,
        /// Salt as lower-case hex; may be empty.
        salt: String,
    },
    /// The directory [`INITRAMFS_ROOT`] of the initramfs, and no disk. It is
    /// measured with the UKI. A tmpfs overlay takes writes.
    Initramfs,
}

/// What the workload may do with its file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestHardening {
    /// Whether nothing but [`GuestHardening::writable`] takes writes.
    pub read_only_root: bool,
    /// Whether nothing in [`GuestHardening::writable`] can be run.
    pub no_exec: bool,
    /// Absolute directories that take writes in any case, sorted.
    pub writable: Vec<String>,
}

/// The workload's process, from the OCI image's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Entrypoint and command, joined; never empty.
    pub args: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Numeric user, resolved by the builder.
    pub uid: u32,
    /// Numeric group, resolved by the builder.
    pub gid: u32,
    /// Supplementary groups, resolved by the builder.
    pub additional_gids: Vec<u32>,
    /// Signal that asks the workload to stop, such as `SIGTERM`.
    pub stop_signal: String,
}
