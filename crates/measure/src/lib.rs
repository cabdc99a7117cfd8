//! Launch digests from bytes, with a trace of every region.
//!
//! A launch digest is what the secure processor reports about a guest before
//! its first instruction. This crate computes it in advance, from the same
//! bytes, following the same rules:
//!
//! - [`inputs`]: what of the files matters, small enough to keep in a manifest;
//! - [`snp`]: SEV-SNP, the digest of an attestation report;
//! - [`sev`]: SEV and SEV-ES, the digest inside their launch measurement;
//! - [`context`]: the running SEV-SNP digest, page by page;
//! - [`trace`]: what was measured, for people and for comparison.
//!
//! Everything is a pure function: no files, no clock, no printing. Whatever
//! could make a digest meaningless is an error, never a digest.

pub mod context;
pub mod inputs;
pub mod sev;
pub mod snp;
pub mod trace;

pub use inputs::{FirmwareInputs, MeasurementInputs};
pub use snp::{
    MeasureError, Measurement, VcpuProfile, measure_snp, measure_snp_launch, measure_vcpu_range,
};
pub use trace::{MeasuredRegion, RegionKind};
