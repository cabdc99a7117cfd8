//! A real Kubernetes cluster on one machine, for tests and the demo.
//!
//! Built from the package registries that a developer's machine already uses
//! (Go modules, Debian packages, PyPI) and run from processes of this machine:
//! no image is pulled and nothing is installed outside a cache and a state
//! directory. Nothing that is shipped depends on this crate.

pub mod cache;
mod cluster;
pub mod command;
mod components;
pub mod layout;
pub mod machine;
pub mod packages;
mod pause;
pub mod pins;
mod pki;
mod probe;
pub mod process;
pub mod programs;
pub mod progress;

pub use cache::Cache;
pub use cluster::{Cluster, ComponentStatus, Kubeconfig, Status, connect};
