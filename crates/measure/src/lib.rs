//! Launch digests from bytes, with a trace of every region.
//!
//! A launch digest is what the secure processor reports about a guest before
//! its first instruction. This crate computes it in advance, from the same
//! bytes, following the same rules:
//!
//! - [`inputs`]: what of the files matters, small enough to keep in a manifest;
//! - [`snp`]: SEV-SNP, the digest of an attestation report;
//! - [`matrix`]: the same for many firmwares, CPU models and vCPU counts at once;
//! - [`mod@explain`]: which neighbouring launch has a digest that was not expected;
//! - [`svsm`]: SEV-SNP with a Coconut SVSM that is started without IGVM;
//! - [`sev`]: SEV and SEV-ES, the digest inside their launch measurement;
//! - [`igvm`]: all of them for guests that start from an IGVM file;
//! - [`vcpus`]: the save areas, the last pages of every launch;
//! - [`pages`]: the digests of pages, which it is made of;
//! - [`context`]: the running SEV-SNP digest, page by page;
//! - [`trace`]: what was measured, for people and for comparison.
//!
//! Everything is a pure function: no files, no clock, no printing. Whatever
//! could make a digest meaningless is an error, never a digest.

pub mod context;
pub mod explain;
pub mod igvm;
pub mod inputs;
pub mod matrix;
pub mod pages;
pub mod sev;
mod sha384;
pub mod snp;
pub mod svsm;
pub mod trace;
pub mod vcpus;

pub use explain::{Explanation, explain};
pub use inputs::{FirmwareInputs, FirmwareMeasurement, MeasurementInputs};
pub use snp::{
    MeasureError, Measurement, VcpuProfile, measure_snp, measure_snp_boot, measure_snp_launch,
    measure_vcpu_counts, measure_vcpu_range,
};
pub use trace::{MeasuredRegion, RegionKind};
