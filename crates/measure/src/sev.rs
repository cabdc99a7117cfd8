//! The launch digests of SEV and SEV-ES: one SHA-256 over firmware, hashes table
//! and save areas, without addresses (SEV API, LAUNCH_UPDATE_DATA and
//! LAUNCH_UPDATE_VMSA). The launch measurement that a guest owner receives is an
//! HMAC over this digest.

use std::collections::BTreeSet;

use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{ParseOvmfError, parse_ovmf};
use assay_tee::{Sha256Digest, VcpuCount};
use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes as _;

use crate::snp::VcpuProfile;
use crate::vcpus::{SaveAreas, measure_counts};

/// There is no SEV or SEV-ES launch digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureSevError {
    /// The firmware's metadata cannot be read.
    #[error("read the firmware's metadata")]
    Firmware(#[source] ParseOvmfError),
    /// A kernel is given, but the firmware would never look at its hashes.
    #[error(
        "a kernel is given, but the firmware has no hashes table area (SEV_HASH_TABLE_RV), so it \
         would boot the kernel unverified; use the AmdSev build of OVMF"
    )]
    NoHashesTable,
    /// More than one vCPU, but the firmware does not say where they start.
    #[error(
        "{vcpus} vCPUs are asked for, but the firmware names no address for application \
         processors (SEV_ES_RESET_BLOCK); use one vCPU or an OVMF built for SEV-ES"
    )]
    NoResetAddress {
        /// The vCPU count asked for.
        vcpus: u32,
    },
}

/// The launch digest of an SEV guest: virtual CPUs are not measured.
///
/// # Errors
/// See [`MeasureSevError`].
pub fn measure_sev(
    firmware: &[u8],
    kernel_hashes: Option<&KernelHashes>,
) -> Result<Sha256Digest, MeasureSevError> {
    let (digest, _) = measure_memory(firmware, kernel_hashes)?;
    Ok(Sha256Digest::new(digest.finalize().into()))
}

/// The launch digest of an SEV-ES guest. SEV_FEATURES are zero in SEV-ES, so
/// those of `profile` are not used.
///
/// # Errors
/// See [`MeasureSevError`].
pub fn measure_sev_es(
    firmware: &[u8],
    kernel_hashes: Option<&KernelHashes>,
    profile: &VcpuProfile,
    vcpus: VcpuCount,
) -> Result<Sha256Digest, MeasureSevError> {
    let (mut digest, reset_eip) = measure_memory(firmware, kernel_hashes)?;
    let add = add_save_area(profile, reset_eip, vcpus);
    for index in 0..vcpus.get() {
        add(&mut digest, index)?;
    }
    Ok(Sha256Digest::new(digest.finalize().into()))
}

/// The launch digests of all `counts` of virtual CPUs of an SEV-ES guest,
/// ascending; see [`measure_sev_es`].
///
/// # Errors
/// See [`MeasureSevError`].
pub fn measure_sev_es_counts(
    firmware: &[u8],
    kernel_hashes: Option<&KernelHashes>,
    profile: &VcpuProfile,
    counts: &BTreeSet<VcpuCount>,
) -> Result<Vec<(VcpuCount, Sha256Digest)>, MeasureSevError> {
    let Some(&most) = counts.last() else {
        return Ok(Vec::new());
    };
    let (digest, reset_eip) = measure_memory(firmware, kernel_hashes)?;
    let add = add_save_area(profile, reset_eip, most);
    measure_counts(digest, counts, add, |digest| {
        Sha256Digest::new(digest.clone().finalize().into())
    })
}

/// Measures the save area of the virtual CPU of an index, of `vcpus` in all.
fn add_save_area(
    profile: &VcpuProfile,
    reset_eip: Option<u32>,
    vcpus: VcpuCount,
) -> impl Fn(&mut Sha256, u32) -> Result<(), MeasureSevError> {
    let areas = SaveAreas::sev_es(profile, reset_eip);
    move |digest, index| {
        let area = areas
            .get(index)
            .ok_or(MeasureSevError::NoResetAddress { vcpus: vcpus.get() })?;
        digest.update(area.as_bytes());
        Ok(())
    }
}

/// Measures firmware and hashes table; also returns where application
/// processors start.
fn measure_memory(
    firmware: &[u8],
    kernel_hashes: Option<&KernelHashes>,
) -> Result<(Sha256, Option<u32>), MeasureSevError> {
    let metadata = parse_ovmf(firmware).map_err(MeasureSevError::Firmware)?;
    let mut digest = Sha256::new_with_prefix(firmware);
    if let Some(hashes) = kernel_hashes {
        if metadata.hashes_table.is_none() {
            return Err(MeasureSevError::NoHashesTable);
        }
        digest.update(hashes.encode_table());
    }
    Ok((digest, metadata.reset_eip))
}
