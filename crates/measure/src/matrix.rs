//! Launch digests of many shapes at once: every firmware with every vCPU
//! profile and every vCPU count.
//!
//! What differs in the vCPU count alone is measured once, so a matrix costs
//! about one hash of 112 bytes for each of its rows.

use std::collections::BTreeSet;

use assay_tee::{BootMethod, LaunchDigest, VcpuCount};

use crate::inputs::MeasurementInputs;
use crate::snp::{MeasureError, VcpuProfile, measure_vcpu_counts};

/// A digest of the matrix and where it lies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixRow {
    /// Index of the inputs.
    pub inputs: usize,
    /// Index of the profile.
    pub profile: usize,
    /// The number of virtual CPUs.
    pub vcpus: VcpuCount,
    /// The launch digest.
    pub digest: LaunchDigest,
}

/// A row has no launch digest, and so the matrix has none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("measure firmware {inputs} with vCPU profile {profile} (counted from zero)")]
pub struct MeasureMatrixError {
    /// Index of the inputs.
    pub inputs: usize,
    /// Index of the profile.
    pub profile: usize,
    /// Why.
    #[source]
    pub source: MeasureError,
}

/// The launch digests of every combination, in the order of `inputs`, then of
/// `profiles`, then by vCPU count.
///
/// # Errors
/// The first combination that cannot be measured.
pub fn measure_matrix(
    inputs: &[MeasurementInputs],
    boot: BootMethod,
    profiles: &[VcpuProfile],
    counts: &BTreeSet<VcpuCount>,
) -> Result<Vec<MatrixRow>, MeasureMatrixError> {
    let mut rows = Vec::with_capacity(inputs.len() * profiles.len() * counts.len());
    for (inputs_index, inputs) in inputs.iter().enumerate() {
        for (profile_index, profile) in profiles.iter().enumerate() {
            let digests = measure_vcpu_counts(inputs, boot, profile, counts).map_err(|source| {
                MeasureMatrixError {
                    inputs: inputs_index,
                    profile: profile_index,
                    source,
                }
            })?;
            rows.extend(digests.into_iter().map(|(vcpus, digest)| MatrixRow {
                inputs: inputs_index,
                profile: profile_index,
                vcpus,
                digest,
            }));
        }
    }
    Ok(rows)
}
