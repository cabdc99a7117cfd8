//! The launch digests of SEV and SEV-ES: one SHA-256 over firmware, hashes table
//! and save areas, without addresses (SEV API, LAUNCH_UPDATE_DATA and
//! LAUNCH_UPDATE_VMSA). The launch measurement that a guest owner receives is an
//! HMAC over this digest.

use std::collections::BTreeSet;

use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{ParseOvmfError, parse_ovmf};
use assay_tee::vmsa::Vmsa;
use assay_tee::{Sha256Digest, VcpuCount};
use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes as _;

use crate::snp::VcpuProfile;
use crate::trace::{RegionKind, StreamedRegion};
use crate::vcpus::{NoResetAddressError, SaveAreas, measure_counts};

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
    #[error(transparent)]
    NoResetAddress(#[from] NoResetAddressError),
}

/// A launch digest of SEV or SEV-ES and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamMeasurement {
    /// The launch digest.
    pub digest: Sha256Digest,
    /// What was measured, in order.
    pub trace: Vec<StreamedRegion>,
}

/// The launch digest of an SEV guest: virtual CPUs are not measured.
///
/// # Errors
/// See [`MeasureSevError`].
pub fn measure_sev(
    firmware: &[u8],
    kernel_hashes: Option<&KernelHashes>,
) -> Result<StreamMeasurement, MeasureSevError> {
    let (stream, _) = measure_memory(firmware, kernel_hashes)?;
    Ok(stream.finish())
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
) -> Result<StreamMeasurement, MeasureSevError> {
    let (mut stream, reset_eip) = measure_memory(firmware, kernel_hashes)?;
    let areas = SaveAreas::sev_es(profile, reset_eip);
    for index in 0..vcpus.get() {
        stream.push_vmsa(index, save_area(&areas, index, vcpus)?);
    }
    Ok(stream.finish())
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
    let (stream, reset_eip) = measure_memory(firmware, kernel_hashes)?;
    let areas = SaveAreas::sev_es(profile, reset_eip);
    measure_counts(
        stream.digest,
        counts,
        |digest, index| {
            digest.update(save_area(&areas, index, most)?.as_bytes());
            Ok(())
        },
        |digest| Sha256Digest::new(digest.clone().finalize().into()),
    )
}

/// The save area of the virtual CPU of an index, of `vcpus` in all.
fn save_area(areas: &SaveAreas, index: u32, vcpus: VcpuCount) -> Result<&Vmsa, MeasureSevError> {
    areas
        .get(index)
        .ok_or_else(|| NoResetAddressError { vcpus: vcpus.get() }.into())
}

/// Measures firmware and hashes table; also returns where application
/// processors start.
fn measure_memory(
    firmware: &[u8],
    kernel_hashes: Option<&KernelHashes>,
) -> Result<(Stream, Option<u32>), MeasureSevError> {
    let metadata = parse_ovmf(firmware).map_err(MeasureSevError::Firmware)?;
    let mut stream = Stream::default();
    stream.push(RegionKind::Firmware, metadata.base_gpa, [firmware]);
    if let Some(hashes) = kernel_hashes {
        let table = metadata
            .hashes_table
            .ok_or(MeasureSevError::NoHashesTable)?;
        let bytes = hashes.encode_table();
        stream.push(
            RegionKind::KernelHashes,
            table.gpa.into(),
            [bytes.as_slice()],
        );
    }
    Ok((stream, metadata.reset_eip))
}

/// The bytes that are measured, and what they are.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) digest: Sha256,
    trace: Vec<StreamedRegion>,
}

impl Stream {
    /// Measures a region that lies in the guest's memory.
    pub(crate) fn push<'a>(
        &mut self,
        kind: RegionKind,
        gpa: u64,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) {
        self.add(kind, None, Some(gpa), pieces);
    }

    /// Measures the save area of a virtual CPU.
    pub(crate) fn push_vmsa(&mut self, index: u32, vmsa: &Vmsa) {
        self.add(RegionKind::Vmsa, Some(index), None, [vmsa.as_bytes()]);
    }

    fn add<'a>(
        &mut self,
        kind: RegionKind,
        vcpu: Option<u32>,
        gpa: Option<u64>,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) {
        let mut contents = Sha256::new();
        let mut length = 0;
        for piece in pieces {
            self.digest.update(piece);
            contents.update(piece);
            length += piece.len() as u64;
        }
        self.trace.push(StreamedRegion {
            kind,
            vcpu,
            gpa,
            length,
            contents: Sha256Digest::new(contents.finalize().into()),
            digest_after: Sha256Digest::new(self.digest.clone().finalize().into()),
        });
    }

    pub(crate) fn finish(self) -> StreamMeasurement {
        StreamMeasurement {
            digest: Sha256Digest::new(self.digest.finalize().into()),
            trace: self.trace,
        }
    }
}
