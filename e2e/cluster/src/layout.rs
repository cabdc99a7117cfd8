//! Addresses and paths of the cluster. One cluster per machine and user: the
//! addresses are fixed, so that its registry has one name for the host, for
//! containerd and for pods, and image references can be written down.

use crate::cache::xdg_directory;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The bridge that pods are attached to.
pub const BRIDGE: &str = "cni0";
/// The host's address on the bridge. API server, registry and DNS listen on
/// it: reachable by host and pods, by nobody beyond the machine.
pub const HOST_ADDRESS: &str = "10.244.0.1";
/// Addresses of pods.
pub const POD_CIDR: &str = "10.244.0.0/24";
/// Addresses of Services.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The API server's own Service, by convention the first address.
pub const API_SERVICE_ADDRESS: &str = "10.96.0.1";
/// Where the API server listens.
pub const API_PORT: u16 = 6443;
/// Where the registry listens.
pub const REGISTRY_PORT: u16 = 5000;
/// The node's name.
pub const NODE: &str = "assay";
/// Parent of all pods' control groups.
pub const CGROUP: &str = "assay";
/// The sandbox image. It is imported, never pulled.
pub const PAUSE_IMAGE: &str = "localhost/pause:1";

/// Where the cluster keeps its files: everything is below one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The user's state directory, by the XDG base directory specification.
    pub fn open() -> Result<Self> {
        let base = xdg_directory("XDG_STATE_HOME", ".local/state")?;
        Ok(Self::at(base.join("assay/cluster")))
    }

    /// A directory of the caller's choice.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory that holds everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a file below the directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The same as text, for configuration files.
    pub fn text(&self, relative: &str) -> String {
        self.path(relative).display().to_string()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// A component's log.
    pub fn log(&self, component: &str) -> PathBuf {
        self.path(&format!("logs/{component}.log"))
    }

    /// A component's record: see [`crate::process::Record`].
    pub fn record(&self, component: &str) -> PathBuf {
        self.path(&format!("run/{component}.json"))
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.path("containerd/containerd.sock")
    }
}
