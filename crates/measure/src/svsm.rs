//! The launch digest of a guest that Coconut's QEMU starts with an SVSM, without
//! IGVM. An SVSM in an IGVM file is measured from that file.
//!
//! Order (Coconut's QEMU of January 2024, `target/i386/sev.c`): the firmware's
//! pages, the SVSM's pages directly below the flash, the SVSM's own sections,
//! then one save area for each virtual CPU. The firmware's sections are left to
//! the SVSM, which prepares them after the launch; so a kernel cannot be
//! measured in this way.

use std::collections::BTreeSet;

use assay_tee::cpu::CpuSignature;
use assay_tee::ovmf::{ParseOvmfError, Section, parse_ovmf};
use assay_tee::page_info::PAGE_SIZE_U64;
use assay_tee::svsm::{ParseSvsmError, parse_svsm};
use assay_tee::vmsa::{KVM_VMSA_GPA, SvsmFpu, Vmm, build_svsm_vmsa};
use assay_tee::{LaunchDigest, VcpuCount};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes as _;

use crate::context::{LaunchContext, UpdateError, Updating};
use crate::sha384::sha384;
use crate::snp::{MeasureError, Measurement, update_sections};
use crate::trace::RegionKind;
use crate::vcpus::measure_counts;

/// Everything that the launch digest depends on besides virtual CPUs: what
/// stands for the files, years later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SvsmInputs {
    /// Guest physical address of the firmware's code, which ends at 4 GiB.
    pub firmware_base_gpa: u64,
    /// The running launch digest after the firmware's pages.
    pub firmware_digest: LaunchDigest,
    /// Guest physical address of the SVSM.
    pub svsm_base_gpa: u64,
    /// Length of the SVSM in bytes.
    pub svsm_length: u64,
    /// The running launch digest after the SVSM's pages.
    pub svsm_digest: LaunchDigest,
    /// Where every virtual CPU starts.
    pub entry: u32,
    /// The SVSM's SEV metadata sections in file order.
    pub sections: Vec<Section>,
}

/// What a virtual CPU's initial state depends on besides the SVSM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SvsmProfile {
    /// CPUID signature of the guest's CPU model.
    pub cpu_signature: CpuSignature,
    /// The FPU state, which depends on the host's kernel.
    pub fpu: SvsmFpu,
}

/// Firmware and SVSM cannot be started together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvsmInputsError {
    /// The firmware's metadata cannot be read.
    #[error("read the firmware's metadata")]
    Firmware(#[source] ParseOvmfError),
    /// The variable store has no size that a flash can have.
    #[error(
        "a variable store of {size} bytes is not possible; its size must be a multiple of 4096, \
         above zero and below {room:#x}"
    )]
    VarsSize {
        /// The size given.
        size: u64,
        /// Bytes below the firmware's code.
        room: u64,
    },
    /// The SVSM's metadata cannot be read.
    #[error("read the SVSM's metadata")]
    Svsm(#[source] ParseSvsmError),
    /// The pages cannot be measured.
    #[error("measure the pages of firmware and SVSM")]
    Update(#[source] UpdateError),
}

/// There is no launch digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureSvsmError {
    /// The SVSM names no sections, so the processor's secrets would have no
    /// place.
    #[error("the SVSM has no SEV metadata sections; use a Coconut SVSM from before IGVM")]
    NoSections,
    /// The SVSM's sections cannot be measured.
    #[error("measure the SVSM's sections")]
    Sections(#[source] MeasureError),
    /// A save area cannot be measured.
    #[error("measure a save area")]
    Update(#[source] UpdateError),
}

impl SvsmInputs {
    /// Measures the pages of firmware code and SVSM, with a variable store of
    /// `vars_size` bytes between them, and reads the SVSM's metadata.
    ///
    /// # Errors
    /// See [`SvsmInputsError`].
    pub fn from_bytes(
        firmware: &[u8],
        vars_size: u64,
        svsm: &[u8],
    ) -> Result<Self, SvsmInputsError> {
        let firmware_base_gpa = parse_ovmf(firmware)
            .map_err(SvsmInputsError::Firmware)?
            .base_gpa;
        let vars_size_error = SvsmInputsError::VarsSize {
            size: vars_size,
            room: firmware_base_gpa,
        };
        if vars_size == 0 || !vars_size.is_multiple_of(PAGE_SIZE_U64) {
            return Err(vars_size_error);
        }
        let end_gpa = firmware_base_gpa
            .checked_sub(vars_size)
            .filter(|&end| end > 0)
            .ok_or(vars_size_error)?;
        let metadata = parse_svsm(svsm, end_gpa).map_err(SvsmInputsError::Svsm)?;

        let mut context = LaunchContext::new();
        context
            .update_normal(RegionKind::Firmware, firmware_base_gpa, firmware)
            .map_err(SvsmInputsError::Update)?;
        let firmware_digest = context.branch().finish().digest();
        context
            .update_normal(RegionKind::Svsm, metadata.base_gpa, svsm)
            .map_err(SvsmInputsError::Update)?;
        Ok(Self {
            firmware_base_gpa,
            firmware_digest,
            svsm_base_gpa: metadata.base_gpa,
            svsm_length: end_gpa - metadata.base_gpa,
            svsm_digest: context.branch().finish().digest(),
            entry: metadata.entry,
            sections: metadata.sections,
        })
    }
}

/// The launch digest of `vcpus` virtual CPUs of one profile.
///
/// # Errors
/// See [`MeasureSvsmError`].
pub fn measure_svsm(
    inputs: &SvsmInputs,
    profile: &SvsmProfile,
    vcpus: VcpuCount,
) -> Result<Measurement, MeasureSvsmError> {
    let mut context = measure_memory(inputs)?;
    let add = add_save_area(inputs, profile);
    for index in 0..vcpus.get() {
        add(&mut context, index)?;
    }
    let context = context.finish();
    Ok(Measurement {
        digest: context.digest(),
        trace: context.into_trace(),
    })
}

/// The launch digests of all `counts` of virtual CPUs, ascending.
///
/// # Errors
/// See [`MeasureSvsmError`].
pub fn measure_svsm_counts(
    inputs: &SvsmInputs,
    profile: &SvsmProfile,
    counts: &BTreeSet<VcpuCount>,
) -> Result<Vec<(VcpuCount, LaunchDigest)>, MeasureSvsmError> {
    let context = measure_memory(inputs)?;
    let add = add_save_area(inputs, profile);
    measure_counts(context, counts, add, |context| {
        context.branch().finish().digest()
    })
}

fn measure_memory(inputs: &SvsmInputs) -> Result<LaunchContext<Updating>, MeasureSvsmError> {
    if inputs.sections.is_empty() {
        return Err(MeasureSvsmError::NoSections);
    }
    let mut context = LaunchContext::after_firmware(
        inputs.firmware_digest,
        inputs.firmware_base_gpa,
        (1_u64 << 32).saturating_sub(inputs.firmware_base_gpa),
    );
    context.resume(
        RegionKind::Svsm,
        inputs.svsm_digest,
        inputs.svsm_base_gpa,
        inputs.svsm_length,
    );
    update_sections(
        &mut context,
        &inputs.sections,
        inputs.svsm_base_gpa,
        None,
        Vmm::Qemu,
    )
    .map_err(MeasureSvsmError::Sections)?;
    Ok(context)
}

/// Measures the save area of the virtual CPU of an index.
fn add_save_area(
    inputs: &SvsmInputs,
    profile: &SvsmProfile,
) -> impl Fn(&mut LaunchContext<Updating>, u32) -> Result<(), MeasureSvsmError> {
    let vmsa = build_svsm_vmsa(profile.fpu, inputs.entry, profile.cpu_signature);
    let contents = sha384(vmsa.as_bytes());
    move |context, index| {
        context
            .update_vmsa(index, KVM_VMSA_GPA, contents)
            .map_err(MeasureSvsmError::Update)
    }
}
