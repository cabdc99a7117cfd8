//! The launch digests of guests that start from an IGVM file.
//!
//! The file says what is loaded, and in which order; the loader decides what
//! that means. [`IgvmLoader`] names the loaders whose digests differ, and says
//! which is right. [`qemu_refuses`] says what QEMU would not load at all.

mod plan;
mod vcpus;

use std::collections::BTreeSet;

use assay_tee::cpu::CpuSignature;
use assay_tee::igvm::layout::HeaderType;
use assay_tee::igvm::{
    Directive, IgvmFile, Initialization, OverlapError, ParameterKind, PlatformType,
};
use assay_tee::page_info::{PAGE_SIZE, PageType};
use assay_tee::vmsa::{DroppedRegisterError, KVM_VMSA_GPA};
use assay_tee::{GuestFeatures, LaunchDigest, Sha256Digest, VcpuCount};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use zerocopy::IntoBytes as _;

use crate::context::{LaunchContext, UpdateError, Updating};
use crate::pages::PageDigests;
use crate::sev::{Stream, StreamMeasurement};
use crate::sha384::{Page, sha384};
use crate::snp::Measurement;
use crate::trace::RegionKind;
use crate::vcpus::measure_counts;
use plan::{Pages, Step, plan};
pub use vcpus::IgvmSaveAreas;
use vcpus::SaveAreaDigests;

/// A page of zeros.
const ZEROS: &[u8] = &[0; PAGE_SIZE];

/// Which loader's rules an SEV-SNP guest is loaded by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IgvmLoader {
    /// QEMU 10.1 or later on KVM. Right for every guest that they start, but
    /// with an SVSM.
    ///
    /// Pages are collected in runs, so a parameter area enters the guest before
    /// the run that it follows in the file. Pages without content are normal
    /// pages of zeros. The save areas of all virtual CPUs come last, whatever
    /// the file's order, as KVM has them: with CR4.MCE, EFER.SVME, CR0.ET and
    /// bit 1 of RFLAGS set, CR0.CD and CR0.NW clear. A virtual CPU that the file
    /// has no state for starts in QEMU's reset state and is measured as well
    /// (QEMU `backends/igvm.c`, `target/i386/sev.c`; Linux
    /// `arch/x86/kvm/svm/{sev,svm}.c`).
    #[default]
    Qemu,
    /// Coconut's QEMU and KVM, which start an SVSM: as [`IgvmLoader::Qemu`], but
    /// the boot processor's save area alone is measured, because the SVSM
    /// starts the others. Right for Coconut SVSM (its issues 349 and 353).
    QemuSvsm,
    /// The file's order and the file's save areas, shared pages left out: the
    /// specification taken literally, as the `igvm` crate 0.5 measures. Right
    /// for loaders that follow the order, such as Hyper-V's; right for QEMU
    /// where a file's parameter areas come first, its save areas last, and
    /// their registers are as KVM would set them.
    FileOrder,
    /// As [`IgvmLoader::FileOrder`], but pages without content are zero pages of
    /// the processor. Right for Google's Vanadium, for which Coconut's
    /// igvmmeasure has `--native-zero`; wrong for QEMU, and against the
    /// specification.
    NativeZero,
    /// Coconut's igvmmeasure: as [`IgvmLoader::FileOrder`], but a parameter area
    /// counts as one page, shared pages are measured, and so are the save areas
    /// of all platforms. Wrong where a file has any of these, and then for every
    /// loader; it is there to compare with records.
    Igvmmeasure,
}

/// The state of virtual CPUs that a file has none for: QEMU's after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResetState {
    /// CPUID signature of the guest's CPU model.
    pub cpu_signature: CpuSignature,
    /// SEV_FEATURES, where the file has no virtual CPU at all. `None` stands for
    /// SNPActive alone; SEV-ES has none.
    pub guest_features: Option<GuestFeatures>,
}

/// There is no launch digest of an IGVM file, because there would be no such
/// launch, or loaders disagree about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureIgvmError {
    /// The file is for other platforms.
    #[error("the IGVM file is not for {wanted}, but for {platforms}; measure it for one of these")]
    NoPlatform {
        /// The platform asked for.
        wanted: PlatformType,
        /// The file's platforms.
        platforms: String,
    },
    /// Pages share memory.
    #[error("check the memory of the IGVM file")]
    Overlap(#[source] OverlapError),
    /// Loaders disagree about pages of 2 MiB.
    #[error(
        "the page at {gpa:#x} has 2 MiB, which loaders take for different things; build the IGVM \
         file with pages of 4 KiB"
    )]
    LargePage {
        /// Guest physical address.
        gpa: u64,
    },
    /// QEMU would load a shared page as a private one.
    #[error(
        "the page at {gpa:#x} is shared with the host, which QEMU does not know; build the IGVM \
         file without shared pages, or measure it for another loader"
    )]
    SharedPage {
        /// Guest physical address.
        gpa: u64,
    },
    /// SEV and SEV-ES have no such pages.
    #[error(
        "the page at {gpa:#x} is for SEV-SNP alone, and QEMU refuses it on {platform}; build the \
         IGVM file with a compatibility mask without {platform} for it"
    )]
    SnpPage {
        /// Guest physical address.
        gpa: u64,
        /// The platform.
        platform: PlatformType,
    },
    /// QEMU does not know the header, and the digest would depend on it.
    #[error(
        "the IGVM file has a header {0}, and where QEMU loaded such a file, its digest could be \
         another one; build the file without it"
    )]
    Header(HeaderType),
    /// QEMU measures all save areas at one address.
    #[error(
        "the save area of virtual CPU {vcpu} is at {gpa:#x}, and QEMU refuses all but \
         0xfffffffff000, where KVM has it; build the IGVM file for QEMU"
    )]
    VmsaGpa {
        /// Index of the virtual CPU.
        vcpu: u16,
        /// Guest physical address in the file.
        gpa: u64,
    },
    /// The state would not reach KVM.
    #[error("check the save area of virtual CPU {vcpu}")]
    Register {
        /// Index of the virtual CPU.
        vcpu: u16,
        /// Which register.
        #[source]
        source: DroppedRegisterError,
    },
    /// SEV_FEATURES do not suit the platform.
    #[error(
        "the save area of virtual CPU {vcpu} has SEV_FEATURES {features:#x}: SEV-SNP needs bit 0 \
         (SNPActive), SEV-ES has none, and all virtual CPUs have the same; build the IGVM file for \
         the platform"
    )]
    Features {
        /// Index of the virtual CPU.
        vcpu: u16,
        /// The features.
        features: u64,
    },
    /// Two save areas for one virtual CPU.
    #[error(
        "the IGVM file sets the state of virtual CPU {vcpu} twice; remove one of the two contexts"
    )]
    DuplicateVcpu {
        /// Index of the virtual CPU.
        vcpu: u16,
    },
    /// SEV has no measured state.
    #[error(
        "the IGVM file sets the state of virtual CPU {vcpu} for SEV, where QEMU refuses it; leave \
         it out, or measure the file for SEV-ES"
    )]
    StateOnSev {
        /// Index of the virtual CPU.
        vcpu: u16,
    },
    /// A virtual CPU starts in a state that the file does not hold.
    #[error(
        "the IGVM file has no state for virtual CPU {vcpu}, which QEMU starts in its reset state, \
         and that holds the CPU model; name the CPU model, or build the file for as many virtual \
         CPUs"
    )]
    NoState {
        /// Index of the virtual CPU.
        vcpu: u32,
    },
    /// A CPU model that changes nothing.
    #[error(
        "the IGVM file has the state of every virtual CPU that is asked for, so the CPU model is \
         no part of the digest; leave it out"
    )]
    ResetStateUnused,
    /// SEV_FEATURES that change nothing.
    #[error(
        "the IGVM file has SEV_FEATURES in its virtual CPUs' state, so others cannot be asked for; \
         leave them out"
    )]
    FeaturesUnused,
    /// The SVSM starts on the boot processor.
    #[error(
        "the IGVM file has no state for the boot processor, where an SVSM starts; use the file of \
         an SVSM, or the rules of plain QEMU"
    )]
    NoBootProcessor,
    /// Pages cannot be measured.
    #[error("measure the pages of the IGVM file")]
    Update(#[source] UpdateError),
}

/// A launch of an SEV-SNP guest from an IGVM file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IgvmLaunch {
    /// [`IgvmLoader::Qemu`].
    Qemu {
        /// The number of virtual CPUs.
        vcpus: VcpuCount,
        /// The state of those that the file has none for.
        reset: Option<ResetState>,
    },
    /// [`IgvmLoader::QemuSvsm`].
    QemuSvsm,
    /// [`IgvmLoader::FileOrder`].
    FileOrder,
    /// [`IgvmLoader::NativeZero`].
    NativeZero,
    /// [`IgvmLoader::Igvmmeasure`].
    Igvmmeasure,
}

impl IgvmLaunch {
    /// Whose rules the guest is loaded by.
    pub const fn loader(&self) -> IgvmLoader {
        match self {
            Self::Qemu { .. } => IgvmLoader::Qemu,
            Self::QemuSvsm => IgvmLoader::QemuSvsm,
            Self::FileOrder => IgvmLoader::FileOrder,
            Self::NativeZero => IgvmLoader::NativeZero,
            Self::Igvmmeasure => IgvmLoader::Igvmmeasure,
        }
    }
}

/// The launch digest of an SEV-SNP guest.
///
/// # Errors
/// See [`MeasureIgvmError`].
pub fn measure_igvm_snp(
    file: &IgvmFile<'_>,
    launch: &IgvmLaunch,
) -> Result<Measurement, MeasureIgvmError> {
    let mut context = measure_steps(file, launch.loader())?;
    match launch {
        IgvmLaunch::Qemu { vcpus, reset } => {
            let areas = IgvmSaveAreas::new(file, PlatformType::SevSnp, reset.as_ref(), *vcpus)?;
            let areas = areas.digests();
            for index in 0..vcpus.get() {
                add_save_area(&mut context, &areas, index)?;
            }
        }
        IgvmLaunch::QemuSvsm => {
            let area = IgvmSaveAreas::boot_processor(file)?;
            let contents = sha384(area.as_bytes());
            context
                .update_vmsa(0, KVM_VMSA_GPA, contents)
                .map_err(MeasureIgvmError::Update)?;
        }
        IgvmLaunch::FileOrder | IgvmLaunch::NativeZero | IgvmLaunch::Igvmmeasure => {}
    }
    let finished = context.finish();
    Ok(Measurement {
        digest: finished.digest(),
        trace: finished.into_trace(),
    })
}

/// The running launch digest after a file's pages, as QEMU loads them: everything
/// but the save areas that come last. See
/// [`crate::MeasurementInputs::igvm_digest`].
///
/// # Errors
/// See [`MeasureIgvmError`].
pub fn measure_igvm_pages(file: &IgvmFile<'_>) -> Result<LaunchDigest, MeasureIgvmError> {
    Ok(measure_steps(file, IgvmLoader::Qemu)?.finish().digest())
}

/// The launch digests of all `counts` of virtual CPUs of an SEV-SNP guest that
/// QEMU starts ([`IgvmLoader::Qemu`]), ascending.
///
/// # Errors
/// See [`MeasureIgvmError`].
pub fn measure_igvm_snp_counts(
    file: &IgvmFile<'_>,
    reset: Option<&ResetState>,
    counts: &BTreeSet<VcpuCount>,
) -> Result<Vec<(VcpuCount, LaunchDigest)>, MeasureIgvmError> {
    let Some(&most) = counts.last() else {
        return Ok(Vec::new());
    };
    let context = measure_steps(file, IgvmLoader::Qemu)?.branch();
    let areas = IgvmSaveAreas::new(file, PlatformType::SevSnp, reset, most)?.digests();
    measure_counts(
        context,
        counts,
        |context, index| add_save_area(context, &areas, index),
        |context| context.branch().finish().digest(),
    )
}

/// The launch digest of an SEV guest that QEMU starts: its measured pages as one
/// stream of bytes, pages without content as zeros.
///
/// # Errors
/// See [`MeasureIgvmError`].
pub fn measure_igvm_sev(file: &IgvmFile<'_>) -> Result<StreamMeasurement, MeasureIgvmError> {
    Ok(stream_steps(file, PlatformType::Sev)?.finish())
}

/// The launch digest of an SEV-ES guest that QEMU starts: the pages as for
/// [`measure_igvm_sev`], then the save areas as KVM has them.
///
/// # Errors
/// See [`MeasureIgvmError`].
pub fn measure_igvm_sev_es(
    file: &IgvmFile<'_>,
    reset: Option<&ResetState>,
    vcpus: VcpuCount,
) -> Result<StreamMeasurement, MeasureIgvmError> {
    let mut stream = stream_steps(file, PlatformType::SevEs)?;
    let areas = IgvmSaveAreas::new(file, PlatformType::SevEs, reset, vcpus)?;
    for index in 0..vcpus.get() {
        stream.push_vmsa(index, areas.require(index)?);
    }
    Ok(stream.finish())
}

/// The launch digests of all `counts` of virtual CPUs of an SEV-ES guest that
/// QEMU starts, ascending; see [`measure_igvm_sev_es`].
///
/// # Errors
/// See [`MeasureIgvmError`].
pub fn measure_igvm_sev_es_counts(
    file: &IgvmFile<'_>,
    reset: Option<&ResetState>,
    counts: &BTreeSet<VcpuCount>,
) -> Result<Vec<(VcpuCount, Sha256Digest)>, MeasureIgvmError> {
    let Some(&most) = counts.last() else {
        return Ok(Vec::new());
    };
    let stream = stream_steps(file, PlatformType::SevEs)?;
    let areas = IgvmSaveAreas::new(file, PlatformType::SevEs, reset, most)?;
    measure_counts(
        stream.digest,
        counts,
        |digest, index| {
            digest.update(areas.require(index)?.as_bytes());
            Ok(())
        },
        |digest| Sha256Digest::new(digest.clone().finalize().into()),
    )
}

/// The launch digest that the file's ID block demands on SEV-SNP: the processor
/// starts no guest with another one. `None` where the file has no ID block.
pub fn id_block_digest(file: &IgvmFile<'_>) -> Option<LaunchDigest> {
    let mask = file.platform(PlatformType::SevSnp)?.compatibility_mask;
    file.directives_for(mask)
        .find_map(|directive| match directive {
            Directive::SnpIdBlock(block) => Some(LaunchDigest::new(block.ld)),
            _ => None,
        })
}

/// The headers for which QEMU (11.0) refuses to load the file, each type once.
/// It may be that Coconut's QEMU knows them.
pub fn qemu_refuses(file: &IgvmFile<'_>) -> BTreeSet<HeaderType> {
    let initialization = file
        .initialization
        .iter()
        .filter(|header| !matches!(header, Initialization::GuestPolicy(_)))
        .map(Initialization::header_type);
    let directives = file
        .directives
        .iter()
        .filter(|directive| match directive {
            Directive::Parameter(parameter) => !matches!(
                parameter.kind,
                ParameterKind::VpCount
                    | ParameterKind::EnvironmentInfo
                    | ParameterKind::MemoryMap
                    | ParameterKind::Madt
            ),
            Directive::ErrorRange(_) | Directive::VbsMeasurement(_) => true,
            Directive::ParameterArea(_)
            | Directive::ParameterInsert(_)
            | Directive::PageData(_)
            | Directive::VpContext(_)
            | Directive::RequiredMemory(_)
            | Directive::SnpIdBlock(_) => false,
        })
        .map(Directive::header_type);
    let optional = file.optional.iter().map(|header| header.header_type);
    initialization.chain(directives).chain(optional).collect()
}

/// Measures everything but the save areas that come after all pages.
fn measure_steps(
    file: &IgvmFile<'_>,
    loader: IgvmLoader,
) -> Result<LaunchContext<Updating>, MeasureIgvmError> {
    let mut context = LaunchContext::new();
    for step in plan(file, PlatformType::SevSnp, loader)? {
        let updated = match step {
            Step::Pages(pages) => measure_pages(&mut context, &pages, loader),
            Step::Area { gpa, length } => context.update_without_contents(
                RegionKind::IgvmParameters,
                PageType::Unmeasured,
                gpa,
                length,
            ),
            Step::SaveArea { vcpu, gpa, vmsa } => {
                context.update_vmsa(vcpu.into(), gpa, sha384(vmsa.as_bytes()))
            }
        };
        updated.map_err(MeasureIgvmError::Update)?;
    }
    Ok(context)
}

fn measure_pages(
    context: &mut LaunchContext<Updating>,
    pages: &Pages<'_>,
    loader: IgvmLoader,
) -> Result<(), UpdateError> {
    let (kind, page_type) = match pages.page_type {
        PageType::Secrets => (RegionKind::Secrets, PageType::Secrets),
        PageType::Cpuid => (RegionKind::Cpuid, PageType::Cpuid),
        PageType::Normal if pages.empty && loader == IgvmLoader::NativeZero => {
            (RegionKind::IgvmPages, PageType::Zero)
        }
        other => (RegionKind::IgvmPages, other),
    };
    if page_type == PageType::Normal {
        let contents = pages.contents.iter().map(|page| page.unwrap_or(ZEROS));
        let contents: Result<Vec<&Page>, _> = contents.map(TryFrom::try_from).collect();
        let (gpa, length) = (pages.gpa, pages.length());
        let contents = contents.map_err(|_| UpdateError::Length { gpa, length })?;
        return context.update_hashed(kind, gpa, &PageDigests::of(contents));
    }
    context.update_without_contents(kind, page_type, pages.gpa, pages.length())
}

fn add_save_area(
    context: &mut LaunchContext<Updating>,
    areas: &SaveAreaDigests,
    vcpu: u32,
) -> Result<(), MeasureIgvmError> {
    context
        .update_vmsa(
            vcpu,
            KVM_VMSA_GPA,
            areas.get(vcpu).ok_or(MeasureIgvmError::NoState { vcpu })?,
        )
        .map_err(MeasureIgvmError::Update)
}

/// Measures the pages for SEV and SEV-ES.
fn stream_steps(file: &IgvmFile<'_>, platform: PlatformType) -> Result<Stream, MeasureIgvmError> {
    let mut stream = Stream::default();
    for step in plan(file, platform, IgvmLoader::Qemu)? {
        let Step::Pages(pages) = step else {
            continue;
        };
        match pages.page_type {
            PageType::Normal => {
                let contents = pages.contents.iter().map(|page| page.unwrap_or(ZEROS));
                stream.push(RegionKind::IgvmPages, pages.gpa, contents);
            }
            PageType::Unmeasured => {}
            _ => {
                return Err(MeasureIgvmError::SnpPage {
                    gpa: pages.gpa,
                    platform,
                });
            }
        }
    }
    Ok(stream)
}
