//! IGVM files: everything that a guest starts from in one file, for SEV-SNP and,
//! without protection, for a processor that has none.
//!
//! There are two forms. With [`IgvmKernel::Verified`] the file holds the
//! firmware and the hashes of a UKI, which the host hands over apart from it;
//! with [`IgvmKernel::Embedded`] it holds the UKI itself, and there is nothing
//! else to hand over.
//!
//! # Guarantees
//! Directives come in the order in which every loader measures the same:
//! parameters, pages by address, one save area for every virtual CPU. The same
//! specification gives the same bytes.

mod encode;
#[cfg(test)]
mod oracle_tests;

use std::collections::BTreeMap;

use assay_measure::igvm::{MeasureIgvmError, measure_igvm_pages};
use assay_measure::vcpus::NoResetAddressError;
use assay_tee::cpu::CpuSignature;
use assay_tee::hashes_table::{KernelHashes, TableCrossesPageError};
use assay_tee::igvm::{PageDataType, ParseIgvmError, parse_igvm};
use assay_tee::ovmf::igvm_areas::{IgvmAreas, ParseIgvmAreasError, parse_igvm_areas};
use assay_tee::ovmf::{OvmfMetadata, ParseOvmfError, SectionKind, parse_ovmf};
use assay_tee::page_info::{PAGE_SIZE, PAGE_SIZE_U64};
use assay_tee::vmsa::{Vcpu, Vmm, build_vmsa};
use assay_tee::{GuestFeatures, GuestPolicy, LaunchDigest, VcpuCount};
use bytes::Bytes;

use crate::kernel_loader::{ReadKernelLoaderError, read_kernel_loader};
use crate::rope::Rope;
pub(crate) use encode::IGVM_DATA_HOB;
use encode::{File, ParameterArea, SaveAreas, encode_file};

/// Where an embedded UKI is in the guest's memory.
pub const EMBEDDED_KERNEL_GPA: u64 = 512 << 20;
/// Memory that firmware needs above an embedded UKI. Before it knows of the UKI,
/// OVMF takes 64 MiB and its page tables from the top of this memory (edk2
/// `OvmfPkg/PlatformPei`): with 65 MiB a UKI is overwritten in part, with 75 it
/// boots. Twice as much is asked for, because the table's size follows the CPU.
const ROOM_ABOVE_KERNEL: u64 = 128 << 20;
/// QEMU puts no more memory than this below the addresses of devices (q35).
const MEMORY_BELOW_DEVICES: u64 = 2 << 30;

/// The bit that stands for SEV-SNP.
const SNP: u32 = 1;
/// The bit that stands for no protection.
const NATIVE: u32 = 2;

/// What an IGVM file is made of.
#[derive(Debug, Clone)]
pub struct IgvmSpec<'a> {
    /// OVMF.
    pub firmware: &'a Bytes,
    /// What it boots.
    pub kernel: IgvmKernel<'a>,
    /// Number of virtual CPUs.
    pub vcpus: VcpuCount,
    /// CPUID signature of the guest's CPU model.
    pub cpu_signature: CpuSignature,
    /// SEV_FEATURES.
    pub guest_features: GuestFeatures,
    /// The guest policy.
    pub policy: GuestPolicy,
}

/// What the firmware of an IGVM file boots.
#[derive(Debug, Clone)]
pub enum IgvmKernel<'a> {
    /// What the host hands over (QEMU's `-kernel`), if these are its hashes.
    Verified(KernelHashes),
    /// This UKI, in firmware that verifies kernel hashes: it starts it as it is.
    /// OVMF's generic build, which takes a command line that the host hands over
    /// beside the file, is refused.
    Embedded(&'a Bytes),
}

/// There is no IGVM file that would boot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeIgvmError {
    /// The firmware is no OVMF image.
    #[error("read the firmware")]
    Firmware(#[source] ParseOvmfError),
    /// What the firmware expects of an IGVM file cannot be told.
    #[error("read what the firmware expects of IGVM files")]
    Areas(#[source] ParseIgvmAreasError),
    /// The firmware cannot start an SNP guest.
    #[error("the firmware has no SEV metadata sections; use an OVMF built for SEV-SNP")]
    NoSevMetadata,
    /// A section has a type that this version does not know.
    #[error(
        "the firmware's section {index} has unknown type {kind:#x}: what an IGVM file must put \
         there is not known; use firmware with the section types 1 to 4 and 0x10"
    )]
    UnknownSection {
        /// Position among the sections, from zero.
        index: usize,
        /// Type of the section.
        kind: u32,
    },
    /// The firmware would boot what the host hands over without a look.
    #[error(
        "the firmware verifies no kernel hashes; use the AmdSev build of OVMF, or put the UKI \
         into the file"
    )]
    NoHashesTable,
    /// The hashes table does not fit into its page.
    #[error("encode the kernel hashes page")]
    HashesTable(#[source] TableCrossesPageError),
    /// The firmware does not look for a kernel in IGVM files.
    #[error(
        "the firmware names no area for data of an IGVM file, so it would not find the UKI; use \
         edk2 of 2026-05 or later, or hand the UKI over apart from the file"
    )]
    NoHobArea,
    /// What the firmware does with a kernel cannot be told.
    #[error("read what the firmware does with a kernel")]
    KernelLoader(#[source] ReadKernelLoaderError),
    /// The firmware would start the UKI with what the host hands over beside the file.
    #[error(
        "the firmware takes a UKI from an IGVM file, but starts it with a command line that the \
         host hands over beside the file, which no launch digest shows; use the AmdSev build of \
         OVMF"
    )]
    UnverifyingFirmware,
    /// The firmware has the areas of IGVM files, and no code for a kernel in one.
    #[error(
        "the firmware reads no kernel from an IGVM file, so it would not find the UKI; use edk2 of \
         2026-05 or later, or hand the UKI over apart from the file"
    )]
    NoHobReader,
    /// The embedded UKI would reach into the addresses of devices.
    #[error(
        "the UKI of {len} bytes does not fit into the guest's memory below {MEMORY_BELOW_DEVICES:#x}; \
         hand it over apart from the file"
    )]
    KernelTooLarge {
        /// Length of the UKI.
        len: u64,
    },
    /// More than one vCPU, but the firmware does not say where they start.
    #[error(transparent)]
    NoResetAddress(#[from] NoResetAddressError),
    /// Two parts want the same page.
    #[error("the page at {gpa:#x} is needed for two things; use an unmodified OVMF image")]
    Overlap {
        /// Guest physical address.
        gpa: u64,
    },
    /// A file has at most 4 GiB.
    #[error("the IGVM file would be larger than 4 GiB")]
    TooLarge,
}

impl IgvmKernel<'_> {
    /// Bytes of memory that a guest needs so that the firmware finds room beside
    /// what the file puts there. With less, QEMU refuses the file or the
    /// firmware stops without a word.
    pub fn min_memory(&self) -> u64 {
        match self {
            Self::Verified(_) => 0,
            Self::Embedded(uki) => min_memory(uki.len() as u64),
        }
    }
}

/// Bytes of memory that a guest needs whose IGVM file holds a UKI of `uki_len`
/// bytes; see [`IgvmKernel::min_memory`].
pub const fn min_memory(uki_len: u64) -> u64 {
    let pages = uki_len.div_ceil(PAGE_SIZE_U64);
    EMBEDDED_KERNEL_GPA
        .saturating_add(pages.saturating_mul(PAGE_SIZE_U64))
        .saturating_add(ROOM_ABOVE_KERNEL)
}

/// A self-contained IGVM file cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureSelfContainedError {
    /// There is no such file.
    #[error("make an IGVM file of firmware and UKI")]
    Encode(#[source] EncodeIgvmError),
    /// The written file cannot be read back.
    #[error("read the written IGVM file back")]
    Parse(#[source] ParseIgvmError),
    /// The written file cannot be measured.
    #[error("measure the written IGVM file")]
    Measure(#[source] MeasureIgvmError),
}

/// What the launch digests of the self-contained IGVM files of a firmware and a
/// UKI depend on, whatever the number of virtual CPUs and their model: the running
/// digest after the pages that [`encode_igvm`] writes. It is
/// [`assay_measure::MeasurementInputs::igvm_digest`].
///
/// # Errors
/// See [`MeasureSelfContainedError`].
pub fn measure_self_contained(
    firmware: &Bytes,
    uki: &Bytes,
) -> Result<LaunchDigest, MeasureSelfContainedError> {
    // One virtual CPU of any model: the pages before its save area are the same
    // for all.
    let spec = IgvmSpec {
        firmware,
        kernel: IgvmKernel::Embedded(uki),
        vcpus: VcpuCount::ONE,
        cpu_signature: CpuSignature(0),
        guest_features: GuestFeatures::default(),
        policy: GuestPolicy::default(),
    };
    let file = encode_igvm(&spec).map_err(MeasureSelfContainedError::Encode)?;
    let file = file.to_bytes();
    let file = parse_igvm(&file).map_err(MeasureSelfContainedError::Parse)?;
    measure_igvm_pages(&file).map_err(MeasureSelfContainedError::Measure)
}

/// Writes an IGVM file.
///
/// # Errors
/// See [`EncodeIgvmError`].
pub fn encode_igvm(spec: &IgvmSpec<'_>) -> Result<Rope, EncodeIgvmError> {
    let file = file_of(spec)?;
    check_kernel_loader(spec)?;
    encode_file(&file)
}

/// The metadata of OVMF's builds is the same; what they do with a kernel is not.
fn check_kernel_loader(spec: &IgvmSpec<'_>) -> Result<(), EncodeIgvmError> {
    let loader = read_kernel_loader(spec.firmware).map_err(EncodeIgvmError::KernelLoader)?;
    match spec.kernel {
        IgvmKernel::Verified(_) if !loader.verifies_hashes => Err(EncodeIgvmError::NoHashesTable),
        IgvmKernel::Embedded(_) if !loader.reads_igvm => Err(EncodeIgvmError::NoHobReader),
        IgvmKernel::Embedded(_) if !loader.verifies_hashes => {
            Err(EncodeIgvmError::UnverifyingFirmware)
        }
        IgvmKernel::Verified(_) | IgvmKernel::Embedded(_) => Ok(()),
    }
}

fn file_of(spec: &IgvmSpec<'_>) -> Result<File, EncodeIgvmError> {
    let ovmf = parse_ovmf(spec.firmware).map_err(EncodeIgvmError::Firmware)?;
    let areas = parse_igvm_areas(spec.firmware)
        .map_err(EncodeIgvmError::Areas)?
        .unwrap_or_default();
    if ovmf.sections.is_empty() {
        return Err(EncodeIgvmError::NoSevMetadata);
    }
    let mut pages = Pages::default();
    if let Some(area) = areas.parameters {
        // Loaders fill it: no page of the file may be there.
        pages.reserve(u64::from(area.gpa), u64::from(area.size));
    }
    add_kernel(&mut pages, spec, &ovmf, &areas)?;
    pages.add_content(ovmf.base_gpa, spec.firmware, SNP | NATIVE)?;
    add_sections(&mut pages, &ovmf)?;
    Ok(File {
        policy: spec.policy,
        parameters: areas.parameters.map(|area| ParameterArea {
            gpa: u64::from(area.gpa),
            size: u64::from(area.size),
            memory_map_offset: areas.memory_map_offset,
            vp_count_offset: areas.vp_count_offset,
        }),
        pages: pages.used,
        save_areas: save_areas(spec, &ovmf)?,
    })
}

/// A page of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Page {
    platforms: u32,
    data_type: PageDataType,
    /// The whole page, or what there is of it. `None` stands for zeros.
    content: Option<Bytes>,
}

/// The guest's memory by page.
#[derive(Debug, Default)]
struct Pages {
    used: BTreeMap<u64, Page>,
    reserved: Vec<std::ops::Range<u64>>,
}

impl Pages {
    fn reserve(&mut self, gpa: u64, size: u64) {
        self.reserved.push(gpa..gpa.saturating_add(size));
    }

    fn is_free(&self, gpa: u64) -> bool {
        !self.used.contains_key(&gpa) && !self.reserved.iter().any(|range| range.contains(&gpa))
    }

    fn add(&mut self, gpa: u64, page: Page) -> Result<(), EncodeIgvmError> {
        if !self.is_free(gpa) {
            return Err(EncodeIgvmError::Overlap { gpa });
        }
        self.used.insert(gpa, page);
        Ok(())
    }

    fn add_content(
        &mut self,
        base: u64,
        content: &Bytes,
        platforms: u32,
    ) -> Result<(), EncodeIgvmError> {
        let starts = (0..content.len()).step_by(PAGE_SIZE);
        for (gpa, start) in (base..).step_by(PAGE_SIZE).zip(starts) {
            let bytes = content.slice(start..content.len().min(start + PAGE_SIZE));
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            let page = Page {
                platforms,
                data_type: PageDataType::Normal,
                content: (!is_zero).then_some(bytes),
            };
            self.add(gpa, page)?;
        }
        Ok(())
    }
}

/// The hashes of the kernel, or the kernel and where it is.
fn add_kernel(
    pages: &mut Pages,
    spec: &IgvmSpec<'_>,
    ovmf: &OvmfMetadata,
    areas: &IgvmAreas,
) -> Result<(), EncodeIgvmError> {
    let hobs = match &spec.kernel {
        IgvmKernel::Verified(hashes) => {
            let table = ovmf.hashes_table.ok_or(EncodeIgvmError::NoHashesTable)?;
            let section = ovmf
                .section(SectionKind::KernelHashes)
                .ok_or(EncodeIgvmError::NoHashesTable)?;
            let page = hashes
                .encode_page(table.gpa)
                .map_err(EncodeIgvmError::HashesTable)?;
            let page = Bytes::copy_from_slice(&page);
            pages.add_content(u64::from(section.gpa), &page, SNP | NATIVE)?;
            encode::hob_list(&[])
        }
        IgvmKernel::Embedded(uki) => {
            let len = uki.len() as u64;
            let too_large = EncodeIgvmError::KernelTooLarge { len };
            if spec.kernel.min_memory() > MEMORY_BELOW_DEVICES {
                return Err(too_large);
            }
            if areas.hobs.is_none() {
                return Err(EncodeIgvmError::NoHobArea);
            }
            pages.add_content(EMBEDDED_KERNEL_GPA, uki, SNP | NATIVE)?;
            encode::hob_list(&[(EMBEDDED_KERNEL_GPA, len)])
        }
    };
    match areas.hobs {
        // Without an end of the list, firmware would read what is there.
        Some(area) => pages.add_content(u64::from(area.gpa), &hobs, SNP | NATIVE),
        None => Ok(()),
    }
}

/// What QEMU does on its own for firmware that is not in an IGVM file.
fn add_sections(pages: &mut Pages, ovmf: &OvmfMetadata) -> Result<(), EncodeIgvmError> {
    for (index, section) in ovmf.sections.iter().enumerate() {
        let data_type = match section.kind {
            SectionKind::SecMem | SectionKind::SvsmCaa | SectionKind::KernelHashes => {
                PageDataType::Normal
            }
            SectionKind::SnpSecrets => PageDataType::Secrets,
            SectionKind::Cpuid => PageDataType::CpuidData,
            SectionKind::Unknown(kind) => {
                return Err(EncodeIgvmError::UnknownSection { index, kind });
            }
        };
        let start = u64::from(section.gpa);
        for gpa in (start..start + u64::from(section.size)).step_by(PAGE_SIZE) {
            // Areas of the firmware lie within its memory.
            if data_type == PageDataType::Normal && !pages.is_free(gpa) {
                continue;
            }
            let page = Page {
                platforms: SNP,
                data_type,
                content: None,
            };
            pages.add(gpa, page)?;
        }
    }
    Ok(())
}

/// The save area of every virtual CPU, as KVM has them in the end, so that no
/// loader has to change one.
fn save_areas(spec: &IgvmSpec<'_>, ovmf: &OvmfMetadata) -> Result<SaveAreas, EncodeIgvmError> {
    let build = |vcpu| build_vmsa(Vmm::Qemu, vcpu, spec.cpu_signature, spec.guest_features);
    let vcpus = spec.vcpus.get();
    let application = match ovmf.reset_eip {
        _ if vcpus == 1 => None,
        Some(reset_eip) => Some(build(Vcpu::Application { reset_eip })),
        None => return Err(NoResetAddressError { vcpus }.into()),
    };
    Ok(SaveAreas {
        boot: build(Vcpu::Boot),
        application,
        vcpus: spec.vcpus,
    })
}
