//! Vocabulary of confidential guests: digests, launch shapes, byte layouts of
//! the SEV-SNP ABI, and the two documents that a guest is configured by.
//!
//! Everything here is pure: values and bytes, no files, no clock, no network.
//! Parsers are total: any input gives a value or an error, never a panic.

pub mod canonical;
pub mod digest;
pub mod guest_config;
pub mod guest_event;
pub mod instance;
pub mod shape;

pub use digest::{LaunchDigest, Sha256Digest};
pub use guest_config::GuestConfig;
pub use instance::InstanceData;
pub use shape::{BootMethod, GuestFeatures, GuestPolicy, LaunchShape, Tee, VcpuCount};
