//! Vocabulary of confidential guests: digests, launch shapes, byte layouts of
//! the SEV-SNP ABI and of TD quotes, and the two documents that a guest is
//! configured by.
//!
//! Everything here is pure: values and bytes, no files, no clock, no network.
//! Parsers are total: any input gives a value or an error, never a panic.

pub mod canonical;
pub mod cpu;
pub mod digest;
mod ecdsa;
pub mod features;
pub mod gpt;
pub mod guest_config;
pub mod guest_event;
pub mod guest_message;
pub mod guid;
pub mod hashes_table;
pub mod id_block;
pub mod igvm;
pub mod instance;
pub mod ovmf;
pub mod page_info;
pub mod program;
pub mod report;
pub mod root_partition;
pub mod shape;
pub mod svsm;
pub mod tcb;
pub mod td_quote;
pub mod vmsa;

pub use digest::{LaunchDigest, Sha256Digest, Sha384Digest};
pub use guest_config::GuestConfig;
pub use instance::InstanceData;
pub use report::AttestationReport;
pub use shape::{BootMethod, GuestFeatures, GuestPolicy, LaunchShape, Tee, VcpuCount};
pub use tcb::{Product, TcbVersion};
