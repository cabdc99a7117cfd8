//! The SEV-SNP launch digest of a guest that QEMU starts from OVMF, and of the
//! clouds that do the same with small differences.
//!
//! Order (QEMU `target/i386/sev.c`, Linux `arch/x86/kvm/svm/sev.c`): the
//! firmware's pages, its metadata sections in file order, then the save area of
//! every virtual CPU, the boot processor first.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use assay_tee::cpu::{CpuModel, CpuSignature, UnknownCpuModelError};
use assay_tee::hashes_table::{KernelHashes, TableCrossesPageError};
use assay_tee::ovmf::{ParseOvmfError, Section, SectionKind, validate_sections};
use assay_tee::page_info::{PAGE_SIZE, PageType};
use assay_tee::vmsa::Vmm;
use assay_tee::{BootMethod, GuestFeatures, LaunchDigest, LaunchShape, VcpuCount};
use serde::{Deserialize, Serialize};

use crate::context::{LaunchContext, UpdateError, Updating};
use crate::inputs::{FirmwareInputs, MeasurementInputs};
use crate::trace::{MeasuredRegion, RegionKind};
use crate::vcpus::{NoResetAddressError, SaveAreas, measure_counts};

/// A launch digest and how it came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measurement {
    /// The launch digest.
    pub digest: LaunchDigest,
    /// What was measured, in order.
    pub trace: Vec<MeasuredRegion>,
}

/// What a virtual CPU's initial state depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VcpuProfile {
    /// The VMM that starts the guest.
    pub vmm: Vmm,
    /// CPUID signature of the guest's CPU model. Ignored for VMMs that do not
    /// measure it.
    pub cpu_signature: CpuSignature,
    /// SEV_FEATURES.
    pub guest_features: GuestFeatures,
}

impl VcpuProfile {
    /// The profile of a shape under today's QEMU.
    ///
    /// # Errors
    /// When the shape's CPU model is none of QEMU's.
    pub fn from_shape(shape: &LaunchShape) -> Result<Self, UnknownCpuModelError> {
        Ok(Self {
            vmm: Vmm::Qemu,
            cpu_signature: CpuModel::by_name(&shape.cpu_model)?.signature(),
            guest_features: shape.guest_features,
        })
    }
}

/// There is no launch digest, because there would be no such launch or its
/// digest would not protect the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// The shape boots from an IGVM file, and the inputs say of none.
    #[error(
        "the shape boots from an IGVM file, and the inputs have none (igvmDigest): the firmware \
         takes no UKI from such a file, or there was none to measure; use boot DirectKernel, or \
         the inputs of an image whose firmware is edk2 of 2026-05 or later in the AmdSev build"
    )]
    NoIgvmFile,
    /// Nobody but QEMU starts such guests.
    #[error("a guest that boots from an IGVM file is started by QEMU, and not as {0:?} does it")]
    IgvmVmm(Vmm),
    /// The CPU model is none of QEMU's.
    #[error("look up the shape's CPU model")]
    CpuModel(#[source] UnknownCpuModelError),
    /// SEV_FEATURES lacks SNPActive (bit 0).
    #[error(
        "guest features {features:#x} lack bit 0 (SNPActive), which every SEV-SNP guest has; \
         use 0x1, or 0x21 for Linux 6.6 and 6.7"
    )]
    SnpNotActive {
        /// The features asked for.
        features: u64,
    },
    /// The firmware names no sections, so it cannot start an SNP guest.
    #[error("firmware has no SEV metadata sections; use an OVMF built for SEV-SNP")]
    NoSevMetadata,
    /// The sections contradict each other.
    #[error("check the firmware's SEV metadata sections")]
    Sections(#[source] ParseOvmfError),
    /// A section has a type that this version does not know.
    #[error(
        "firmware's SEV metadata section {index} has unknown type {kind:#x}: how a VMM measures it \
         is not known; use firmware with the section types 1 to 4 and 0x10"
    )]
    UnknownSection {
        /// Position in the file, from zero.
        index: usize,
        /// Type of the section.
        kind: u32,
    },
    /// A kernel is given, but no measured page takes its hashes.
    #[error(
        "a kernel is given, but the firmware has no KERNEL_HASHES section, so the kernel would \
         be unmeasured; use the AmdSev build of OVMF"
    )]
    NoKernelHashesSection,
    /// A kernel is given, but the firmware would never look at its hashes.
    #[error(
        "a kernel is given, but the firmware has no hashes table area (SEV_HASH_TABLE_RV), so it \
         would boot the kernel unverified; use the AmdSev build of OVMF"
    )]
    NoHashesTable,
    /// The hashes table does not fit into its page.
    #[error("encode the kernel hashes page")]
    HashesTable(#[source] TableCrossesPageError),
    /// More than one vCPU, but the firmware does not say where they start.
    #[error(transparent)]
    NoResetAddress(#[from] NoResetAddressError),
    /// A region cannot be measured as described.
    #[error("measure a region")]
    Update(#[source] UpdateError),
}

/// The launch digest of a guest under QEMU and KVM, by the shape's boot method.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure_snp(
    inputs: &MeasurementInputs,
    shape: &LaunchShape,
) -> Result<Measurement, MeasureError> {
    let profile = VcpuProfile::from_shape(shape).map_err(MeasureError::CpuModel)?;
    measure_snp_boot(inputs, shape.boot, &profile, shape.vcpus)
}

/// The launch digest of `vcpus` virtual CPUs of one profile that boot by one method.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure_snp_boot(
    inputs: &MeasurementInputs,
    boot: BootMethod,
    profile: &VcpuProfile,
    vcpus: VcpuCount,
) -> Result<Measurement, MeasureError> {
    let mut context = measure_boot(inputs, boot, profile)?;
    let add = add_save_area(inputs, profile, vcpus);
    for index in 0..vcpus.get() {
        add(&mut context, index)?;
    }
    let context = context.finish();
    Ok(Measurement {
        digest: context.digest(),
        trace: context.into_trace(),
    })
}

/// The launch digest of `vcpus` virtual CPUs of one profile that boot by
/// [`BootMethod::DirectKernel`].
///
/// # Errors
/// See [`MeasureError`].
pub fn measure_snp_launch(
    inputs: &MeasurementInputs,
    profile: &VcpuProfile,
    vcpus: VcpuCount,
) -> Result<Measurement, MeasureError> {
    measure_snp_boot(inputs, BootMethod::DirectKernel, profile, vcpus)
}

/// The launch digests of every count in `range`, ascending.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure_vcpu_range(
    inputs: &MeasurementInputs,
    boot: BootMethod,
    profile: &VcpuProfile,
    range: RangeInclusive<VcpuCount>,
) -> Result<Vec<(VcpuCount, LaunchDigest)>, MeasureError> {
    let counts = (range.start().get()..=range.end().get())
        .filter_map(|count| VcpuCount::try_from(count).ok())
        .collect();
    measure_vcpu_counts(inputs, boot, profile, &counts)
}

/// The launch digests of all `counts`, ascending. A further vCPU only extends
/// the digest, so this takes no longer than the largest count alone.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure_vcpu_counts(
    inputs: &MeasurementInputs,
    boot: BootMethod,
    profile: &VcpuProfile,
    counts: &BTreeSet<VcpuCount>,
) -> Result<Vec<(VcpuCount, LaunchDigest)>, MeasureError> {
    let Some(&most) = counts.last() else {
        return Ok(Vec::new());
    };
    let context = measure_boot(inputs, boot, profile)?;
    let add = add_save_area(inputs, profile, most);
    measure_counts(context, counts, add, |context| {
        context.branch().finish().digest()
    })
}

/// Measures the save area of the virtual CPU of an index, of `vcpus` in all.
fn add_save_area(
    inputs: &MeasurementInputs,
    profile: &VcpuProfile,
    vcpus: VcpuCount,
) -> impl Fn(&mut LaunchContext<Updating>, u32) -> Result<(), MeasureError> {
    let areas = SaveAreas::snp(profile, inputs.firmware.reset_eip).digests();
    let gpa = profile.vmm.vmsa_gpa();
    move |context, index| {
        let contents = areas
            .get(index)
            .ok_or(NoResetAddressError { vcpus: vcpus.get() })?;
        context
            .update_vmsa(index, gpa, contents)
            .map_err(MeasureError::Update)
    }
}

/// Measures all that does not depend on the vCPU count.
fn measure_boot(
    inputs: &MeasurementInputs,
    boot: BootMethod,
    profile: &VcpuProfile,
) -> Result<LaunchContext<Updating>, MeasureError> {
    match boot {
        BootMethod::DirectKernel => {
            measure_memory(&inputs.firmware, inputs.kernel_hashes.as_ref(), profile)
        }
        BootMethod::Igvm => measure_igvm_memory(inputs.igvm_digest, profile),
    }
}

/// Measures firmware and sections: all that does not depend on the vCPU count.
pub(crate) fn measure_memory(
    firmware: &FirmwareInputs,
    kernel_hashes: Option<&KernelHashes>,
    profile: &VcpuProfile,
) -> Result<LaunchContext<Updating>, MeasureError> {
    check_features(profile)?;
    if firmware.sections.is_empty() {
        return Err(MeasureError::NoSevMetadata);
    }
    let hashes_page = match kernel_hashes {
        None => None,
        Some(_) if !has_kernel_hashes_section(&firmware.sections) => {
            return Err(MeasureError::NoKernelHashesSection);
        }
        Some(hashes) => {
            let gpa = firmware
                .hashes_table_gpa
                .ok_or(MeasureError::NoHashesTable)?;
            Some(hashes.encode_page(gpa).map_err(MeasureError::HashesTable)?)
        }
    };

    let length = (1_u64 << 32).saturating_sub(firmware.base_gpa);
    let mut context = LaunchContext::after_firmware(firmware.digest, firmware.base_gpa, length);
    update_sections(
        &mut context,
        &firmware.sections,
        firmware.base_gpa,
        hashes_page.as_ref(),
        profile.vmm,
    )?;
    Ok(context)
}

/// All that is measured of a self-contained IGVM file before its save areas, from
/// [`MeasurementInputs::igvm_digest`].
pub(crate) fn measure_igvm_memory(
    digest: Option<LaunchDigest>,
    profile: &VcpuProfile,
) -> Result<LaunchContext<Updating>, MeasureError> {
    check_features(profile)?;
    if profile.vmm != Vmm::Qemu {
        return Err(MeasureError::IgvmVmm(profile.vmm));
    }
    let digest = digest.ok_or(MeasureError::NoIgvmFile)?;
    let mut context = LaunchContext::new();
    context.resume(RegionKind::IgvmPages, digest, 0, 0);
    Ok(context)
}

fn check_features(profile: &VcpuProfile) -> Result<(), MeasureError> {
    let features = profile.guest_features.0;
    if features & GuestFeatures::SNP_ACTIVE == 0 {
        return Err(MeasureError::SnpNotActive { features });
    }
    Ok(())
}

/// Measures the SEV metadata sections below an image at `base_gpa`.
/// `hashes_page` is what the KERNEL_HASHES section holds.
pub(crate) fn update_sections(
    context: &mut LaunchContext<Updating>,
    sections: &[Section],
    base_gpa: u64,
    hashes_page: Option<&[u8; PAGE_SIZE]>,
    vmm: Vmm,
) -> Result<(), MeasureError> {
    validate_sections(sections, base_gpa).map_err(MeasureError::Sections)?;
    for (index, section) in in_order_of_measurement(sections, vmm) {
        let (gpa, size) = (u64::from(section.gpa), u64::from(section.size));
        let (kind, page_type) = match section.kind {
            SectionKind::SecMem if matches!(vmm, Vmm::Gce | Vmm::GceGenoa) => {
                (RegionKind::SecMem, PageType::Unmeasured)
            }
            SectionKind::SecMem => (RegionKind::SecMem, PageType::Zero),
            SectionKind::SnpSecrets => (RegionKind::Secrets, PageType::Secrets),
            SectionKind::Cpuid => (RegionKind::Cpuid, PageType::Cpuid),
            SectionKind::SvsmCaa => (RegionKind::SvsmCaa, PageType::Zero),
            // Without a kernel QEMU leaves the page to the processor's zeros.
            SectionKind::KernelHashes => match hashes_page {
                None => (RegionKind::KernelHashes, PageType::Zero),
                Some(page) => {
                    context
                        .update_normal(RegionKind::KernelHashes, gpa, page)
                        .map_err(MeasureError::Update)?;
                    continue;
                }
            },
            SectionKind::Unknown(kind) => {
                return Err(MeasureError::UnknownSection { index, kind });
            }
        };
        context
            .update_without_contents(kind, page_type, gpa, size)
            .map_err(MeasureError::Update)?;
    }
    Ok(())
}

fn has_kernel_hashes_section(sections: &[Section]) -> bool {
    sections
        .iter()
        .any(|section| section.kind == SectionKind::KernelHashes)
}

/// Sections with their position in the file. EC2 measures the CPUID page after
/// all others, everybody else in file order.
fn in_order_of_measurement(sections: &[Section], vmm: Vmm) -> Vec<(usize, &Section)> {
    let mut ordered: Vec<_> = sections.iter().enumerate().collect();
    if matches!(vmm, Vmm::Ec2 | Vmm::Ec2BeforeRdx) {
        ordered.sort_by_key(|(_, section)| section.kind == SectionKind::Cpuid);
    }
    ordered
}
