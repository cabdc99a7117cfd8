//! IGVM files: one file that holds everything that a guest starts from, with
//! the order in which a loader puts it into the guest (IGVM specification,
//! crate `igvm_defs` 0.5, versions 1 and 2).
//!
//! A file is a fixed header, variable headers and data. The variable headers
//! are platforms, then initialization, then directives; each applies to the
//! platforms of its compatibility mask. A checksum covers the headers, not the
//! data.
//!
//! Parsing copies no data: what a header refers to is a slice of the file. It
//! refuses what loaders would take for different things; what a launch digest
//! of the file is, is not decided here.

mod error;
pub mod layout;
mod parse;

use zerocopy::FromBytes as _;

pub use error::{FixedHeaderProblem, HeaderProblem, ParseIgvmError};
use layout::{
    CcaPolicy, CcaVpContext, ErrorRange, FORMAT_VERSION_1, FORMAT_VERSION_2, FixedHeader,
    FixedHeaderExtension, GuestPolicy, HeaderType, LARGE_PAGE_SIZE, MAGIC, NativeVpContext,
    PageTableRelocation, RelocatableRegion, SnpIdBlock, VbsMeasurement, VbsRegister,
};

use crate::page_info::{PAGE_SIZE_U32, PAGE_SIZE_U64};
use crate::vmsa::Vmsa;

/// Most bytes of all parameter areas together (256 MiB). Files have a few
/// pages; the limit bounds the time of a measurement.
pub const MAX_PARAMETER_BYTES: u64 = 256 << 20;

/// A parsed IGVM file. What it refers to lies in the file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgvmFile<'a> {
    /// The format's version.
    pub version: FormatVersion,
    /// CRC-32 of the headers, which is right.
    pub checksum: u32,
    /// The platforms that the file can be loaded on, at least one, each type
    /// once.
    pub platforms: Vec<SupportedPlatform>,
    /// What the platforms are told before anything is loaded, in file order.
    pub initialization: Vec<Initialization<'a>>,
    /// What is loaded, in file order.
    pub directives: Vec<Directive<'a>>,
    /// Headers of unknown types that a loader may ignore, in file order.
    pub optional: Vec<OptionalHeader<'a>>,
}

/// Version of the format, and what only version 2 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatVersion {
    /// Version 1: x86-64 and pages of 4 KiB.
    V1,
    /// Version 2. Pages have 4 KiB here as well.
    V2 {
        /// The guest's architecture.
        architecture: Architecture,
    },
}

impl FormatVersion {
    /// The guest's architecture.
    pub const fn architecture(self) -> Architecture {
        match self {
            Self::V1 => Architecture::X64,
            Self::V2 { architecture } => architecture,
        }
    }
}

/// Architecture of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    X64,
    /// AArch64.
    Aarch64,
}

/// A platform that the file can be loaded on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SupportedPlatform {
    /// The one bit that stands for the platform in other headers.
    pub compatibility_mask: u32,
    /// Highest VTL that the guest uses.
    pub highest_vtl: u8,
    /// The platform.
    pub platform_type: PlatformType,
    /// Version of the platform: 1 for those that are known.
    pub platform_version: u16,
    /// Address above which memory is shared with the host, or zero.
    pub shared_gpa_boundary: u64,
}

/// A kind of isolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlatformType {
    /// 0: none.
    Native,
    /// 1: Hyper-V's VBS.
    VsmIsolation,
    /// 2: AMD SEV-SNP.
    SevSnp,
    /// 3: Intel TDX.
    Tdx,
    /// 4: AMD SEV.
    Sev,
    /// 5: AMD SEV-ES.
    SevEs,
    /// 6: Arm CCA.
    Cca,
    /// Any other.
    Unknown(u8),
}

impl From<u8> for PlatformType {
    fn from(value: u8) -> Self {
        match value {
            0 => Self::Native,
            1 => Self::VsmIsolation,
            2 => Self::SevSnp,
            3 => Self::Tdx,
            4 => Self::Sev,
            5 => Self::SevEs,
            6 => Self::Cca,
            other => Self::Unknown(other),
        }
    }
}

impl From<PlatformType> for u8 {
    fn from(platform: PlatformType) -> Self {
        match platform {
            PlatformType::Native => 0,
            PlatformType::VsmIsolation => 1,
            PlatformType::SevSnp => 2,
            PlatformType::Tdx => 3,
            PlatformType::Sev => 4,
            PlatformType::SevEs => 5,
            PlatformType::Cca => 6,
            PlatformType::Unknown(other) => other,
        }
    }
}

impl std::fmt::Display for PlatformType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::VsmIsolation => "VBS",
            Self::SevSnp => "SEV-SNP",
            Self::Tdx => "TDX",
            Self::Sev => "SEV",
            Self::SevEs => "SEV-ES",
            Self::Cca => "CCA",
            Self::Unknown(value) => return write!(f, "platform type {value:#x}"),
        })
    }
}

/// What platforms are told before anything is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialization<'a> {
    /// The guest policy of SEV-SNP or TDX.
    GuestPolicy(&'a GuestPolicy),
    /// The policy of an Arm CCA realm.
    CcaPolicy(&'a CcaPolicy),
    /// A range that the loader may move.
    RelocatableRegion(&'a RelocatableRegion),
    /// Page tables that the loader corrects when it moves regions.
    PageTableRelocation(&'a PageTableRelocation),
    /// A CoRIM document.
    CorimDocument(CorimData<'a>),
    /// The signature of a CoRIM document.
    CorimSignature(CorimData<'a>),
    /// A version for people to read.
    VersionString(&'a str),
}

impl Initialization<'_> {
    /// The header's type.
    pub const fn header_type(&self) -> HeaderType {
        match self {
            Self::GuestPolicy(_) => HeaderType::GUEST_POLICY,
            Self::CcaPolicy(_) => HeaderType::CCA_POLICY,
            Self::RelocatableRegion(_) => HeaderType::RELOCATABLE_REGION,
            Self::PageTableRelocation(_) => HeaderType::PAGE_TABLE_RELOCATION_REGION,
            Self::CorimDocument(_) => HeaderType::CORIM_DOCUMENT,
            Self::CorimSignature(_) => HeaderType::CORIM_SIGNATURE,
            Self::VersionString(_) => HeaderType::VERSION_STRING,
        }
    }

    /// The platforms that the header is for. `None` where it is for the file.
    pub const fn compatibility_mask(&self) -> Option<u32> {
        Some(match self {
            Self::GuestPolicy(policy) => policy.compatibility_mask.get(),
            Self::CcaPolicy(policy) => policy.compatibility_mask.get(),
            Self::RelocatableRegion(region) => region.compatibility_mask.get(),
            Self::PageTableRelocation(region) => region.compatibility_mask.get(),
            Self::CorimDocument(data) | Self::CorimSignature(data) => data.compatibility_mask,
            Self::VersionString(_) => return None,
        })
    }
}

/// A CoRIM document or its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CorimData<'a> {
    /// Platforms that it is for.
    pub compatibility_mask: u32,
    /// CBOR.
    pub data: &'a [u8],
}

/// What a loader does, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directive<'a> {
    /// Prepares memory for parameters.
    ParameterArea(ParameterArea<'a>),
    /// Writes something of the loader's own into a parameter area.
    Parameter(Parameter),
    /// Puts a parameter area into the guest.
    ParameterInsert(ParameterInsert),
    /// Puts a page into the guest.
    PageData(PageData<'a>),
    /// Sets a virtual CPU's initial state.
    VpContext(VpContext<'a>),
    /// Fails where there is no such memory.
    RequiredMemory(RequiredMemory),
    /// Shares memory for the guest's error reports.
    ErrorRange(&'a ErrorRange),
    /// Gives the processor an ID block.
    SnpIdBlock(&'a SnpIdBlock),
    /// Gives Hyper-V a signed measurement.
    VbsMeasurement(&'a VbsMeasurement),
}

impl Directive<'_> {
    /// The header's type.
    pub const fn header_type(&self) -> HeaderType {
        match self {
            Self::ParameterArea(_) => HeaderType::PARAMETER_AREA,
            Self::Parameter(parameter) => parameter.kind.header_type(),
            Self::ParameterInsert(_) => HeaderType::PARAMETER_INSERT,
            Self::PageData(_) => HeaderType::PAGE_DATA,
            Self::VpContext(_) => HeaderType::VP_CONTEXT,
            Self::RequiredMemory(_) => HeaderType::REQUIRED_MEMORY,
            Self::ErrorRange(_) => HeaderType::ERROR_RANGE,
            Self::SnpIdBlock(_) => HeaderType::SNP_ID_BLOCK,
            Self::VbsMeasurement(_) => HeaderType::VBS_MEASUREMENT,
        }
    }

    /// The platforms that the directive is for. `None` where it is for all.
    pub const fn compatibility_mask(&self) -> Option<u32> {
        Some(match self {
            Self::ParameterArea(_) | Self::Parameter(_) => return None,
            Self::ParameterInsert(insert) => insert.compatibility_mask,
            Self::PageData(page) => page.compatibility_mask,
            Self::VpContext(context) => context.compatibility_mask,
            Self::RequiredMemory(memory) => memory.compatibility_mask,
            Self::ErrorRange(range) => range.compatibility_mask.get(),
            Self::SnpIdBlock(block) => block.compatibility_mask.get(),
            Self::VbsMeasurement(measurement) => measurement.compatibility_mask.get(),
        })
    }
}

/// Memory that parameters are written to before it enters the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterArea<'a> {
    /// The area's number, which no other area of the file has.
    pub index: u32,
    /// Bytes, whole pages.
    pub number_of_bytes: u64,
    /// The first content. `None` stands for zeros. QEMU ignores it.
    pub initial_data: Option<&'a [u8]>,
}

/// Where the loader writes something of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// What it writes.
    pub kind: ParameterKind,
    /// The area's number.
    pub area: u32,
    /// Offset in the area, where there is room for it.
    pub byte_offset: u32,
}

/// Puts a parameter area into the guest, as unmeasured pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterInsert {
    /// Guest physical address, page-aligned.
    pub gpa: u64,
    /// Platforms that it is for.
    pub compatibility_mask: u32,
    /// The area's number.
    pub area: u32,
    /// Bytes of the area, whole pages.
    pub number_of_bytes: u64,
}

/// What a loader writes into a parameter area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterKind {
    /// The number of virtual CPUs.
    VpCount,
    /// Whether memory is shared at first.
    EnvironmentInfo,
    /// The ACPI table SRAT.
    Srat,
    /// The ACPI table MADT.
    Madt,
    /// The ACPI table SLIT.
    Slit,
    /// The ACPI table PPTT.
    Pptt,
    /// The guest's MMIO ranges.
    MmioRanges,
    /// The guest's memory.
    MemoryMap,
    /// A command line and its NUL.
    CommandLine,
    /// A flattened device tree.
    DeviceTree,
}

impl ParameterKind {
    /// The type of the header that asks for it.
    pub const fn header_type(self) -> HeaderType {
        match self {
            Self::VpCount => HeaderType::VP_COUNT_PARAMETER,
            Self::EnvironmentInfo => HeaderType::ENVIRONMENT_INFO_PARAMETER,
            Self::Srat => HeaderType::SRAT,
            Self::Madt => HeaderType::MADT,
            Self::Slit => HeaderType::SLIT,
            Self::Pptt => HeaderType::PPTT,
            Self::MmioRanges => HeaderType::MMIO_RANGES,
            Self::MemoryMap => HeaderType::MEMORY_MAP,
            Self::CommandLine => HeaderType::COMMAND_LINE,
            Self::DeviceTree => HeaderType::DEVICE_TREE,
        }
    }

    /// Fewest bytes that the loader writes.
    const fn min_length(self) -> u64 {
        match self {
            Self::VpCount | Self::EnvironmentInfo => 4,
            Self::MmioRanges => 32,
            Self::MemoryMap => 24,
            Self::CommandLine => 1,
            // The header of an ACPI table.
            Self::Srat | Self::Madt | Self::Slit | Self::Pptt => 36,
            // The header of a device tree.
            Self::DeviceTree => 40,
        }
    }
}

/// A page of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageData<'a> {
    /// Guest physical address, aligned to the page.
    pub gpa: u64,
    /// Platforms that it is for.
    pub compatibility_mask: u32,
    /// How it is loaded.
    pub flags: PageDataFlags,
    /// What it is.
    pub data_type: PageDataType,
    /// The whole page. `None` stands for zeros.
    pub contents: Option<&'a [u8]>,
}

impl PageData<'_> {
    /// Bytes of the page: 4 KiB or 2 MiB.
    pub const fn length(&self) -> u64 {
        self.flags.page_length()
    }
}

/// How a page is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageDataFlags {
    /// The page has 2 MiB.
    pub is_2mb_page: bool,
    /// The content is not measured.
    pub unmeasured: bool,
    /// The page is visible to the host.
    pub shared: bool,
}

impl PageDataFlags {
    /// Bytes of the page.
    pub const fn page_length(self) -> u64 {
        if self.is_2mb_page {
            LARGE_PAGE_SIZE
        } else {
            PAGE_SIZE_U64
        }
    }

    /// The flags of [`layout::PageData`]. `None` where reserved bits are set.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        let flags = Self {
            is_2mb_page: bits & layout::PAGE_DATA_IS_2MB_PAGE != 0,
            unmeasured: bits & layout::PAGE_DATA_UNMEASURED != 0,
            shared: bits & layout::PAGE_DATA_SHARED != 0,
        };
        if flags.bits() == bits {
            Some(flags)
        } else {
            None
        }
    }

    /// The bits in [`layout::PageData`].
    pub const fn bits(self) -> u32 {
        let mut bits = 0;
        if self.is_2mb_page {
            bits |= layout::PAGE_DATA_IS_2MB_PAGE;
        }
        if self.unmeasured {
            bits |= layout::PAGE_DATA_UNMEASURED;
        }
        if self.shared {
            bits |= layout::PAGE_DATA_SHARED;
        }
        bits
    }
}

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum PageDataType {
    /// A page of code or data.
    Normal = 0,
    /// The secrets page of SEV-SNP.
    Secrets = 1,
    /// The CPUID page of SEV-SNP.
    CpuidData = 2,
    /// The page of CPUID leaf 0xd of SEV-SNP.
    CpuidXf = 3,
}

impl PageDataType {
    /// The type of a number. `None` where there is none: a loader would not
    /// know what to measure.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Normal,
            1 => Self::Secrets,
            2 => Self::CpuidData,
            3 => Self::CpuidXf,
            _ => return None,
        })
    }
}

/// The initial state of a virtual CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VpContext<'a> {
    /// Address of the save area for SEV-ES and SEV-SNP, page-aligned.
    pub gpa: u64,
    /// Platforms that it is for, all of which have it in the same form.
    pub compatibility_mask: u32,
    /// Index of the virtual CPU.
    pub vp_index: u16,
    /// The state.
    pub state: VpState<'a>,
}

/// A virtual CPU's state in the form of its platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VpState<'a> {
    /// SEV-ES and SEV-SNP: a save area.
    Vmsa(&'a Vmsa),
    /// Native and SEV: registers that are not measured.
    Native(&'a NativeVpContext),
    /// VBS: registers of one VTL or more.
    Vbs(&'a [VbsRegister]),
    /// CCA: the registers of a realm's first CPU.
    Cca(&'a CcaVpContext),
}

/// Memory that the guest cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequiredMemory {
    /// Guest physical address, page-aligned.
    pub gpa: u64,
    /// Platforms that it is for.
    pub compatibility_mask: u32,
    /// Bytes, whole pages.
    pub number_of_bytes: u32,
    /// Whether VTL2 must be able to protect it.
    pub vtl2_protectable: bool,
}

/// A header of unknown type that a loader may ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionalHeader<'a> {
    /// The header's type.
    pub header_type: HeaderType,
    /// The header's content.
    pub data: &'a [u8],
}

/// Two headers fill the same memory of the same platform, so that the guest
/// would depend on which of them a loader lets win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the page data or parameter areas at {first:#x} and {second:#x} overlap; an IGVM file must \
     fill every page of a platform once"
)]
pub struct OverlapError {
    /// Guest physical address of the lower range.
    pub first: u64,
    /// Guest physical address of the higher range.
    pub second: u64,
}

impl<'a> IgvmFile<'a> {
    /// The platform of a type.
    pub fn platform(&self, platform_type: PlatformType) -> Option<&SupportedPlatform> {
        self.platforms
            .iter()
            .find(|platform| platform.platform_type == platform_type)
    }

    /// The directives for a platform's mask, in file order.
    pub fn directives_for(&self, mask: u32) -> impl Iterator<Item = &Directive<'a>> {
        self.directives
            .iter()
            .filter(move |directive| directive.compatibility_mask().is_none_or(|m| m & mask != 0))
    }

    /// Checks that no two pages or parameter areas of a platform share memory.
    ///
    /// # Errors
    /// The lowest overlap.
    pub fn check_overlaps(&self, mask: u32) -> Result<(), OverlapError> {
        let range = |directive: &Directive<'_>| match directive {
            Directive::PageData(page) => Some((page.gpa, page.length())),
            Directive::ParameterInsert(insert) => Some((insert.gpa, insert.number_of_bytes)),
            _ => None,
        };
        let mut ranges: Vec<_> = self.directives_for(mask).filter_map(range).collect();
        ranges.retain(|&(_, length)| length != 0);
        ranges.sort_unstable();
        for (&(first, length), &(second, _)) in ranges.iter().zip(ranges.iter().skip(1)) {
            if first.saturating_add(length) > second {
                return Err(OverlapError { first, second });
            }
        }
        Ok(())
    }
}

/// Reads an IGVM file.
///
/// # Errors
/// See [`ParseIgvmError`].
pub fn parse_igvm(file: &[u8]) -> Result<IgvmFile<'_>, ParseIgvmError> {
    let fixed =
        parse_fixed_header(file).map_err(|problem| ParseIgvmError::FixedHeader { problem })?;
    if fixed.computed_checksum != fixed.stored_checksum {
        return Err(ParseIgvmError::Checksum {
            stored: fixed.stored_checksum,
            computed: fixed.computed_checksum,
        });
    }
    let mut parser = parse::Parser::new(file, fixed.headers_end, fixed.version);
    parser.parse_headers(fixed.headers_start, fixed.headers)?;
    parser.finish(fixed.version, fixed.stored_checksum)
}

/// What the fixed header says.
struct Fixed<'a> {
    version: FormatVersion,
    headers_start: usize,
    headers_end: usize,
    headers: &'a [u8],
    stored_checksum: u32,
    computed_checksum: u32,
}

fn parse_fixed_header(file: &[u8]) -> Result<Fixed<'_>, FixedHeaderProblem> {
    let (header, rest) = FixedHeader::ref_from_prefix(file)
        .map_err(|_| FixedHeaderProblem::Truncated(file.len()))?;
    if header.magic != MAGIC {
        return Err(FixedHeaderProblem::Magic);
    }
    let mut fixed_length = size_of::<FixedHeader>();
    let version = match header.format_version.get() {
        FORMAT_VERSION_1 => FormatVersion::V1,
        FORMAT_VERSION_2 => {
            let (extension, _) = FixedHeaderExtension::ref_from_prefix(rest)
                .map_err(|_| FixedHeaderProblem::Truncated(file.len()))?;
            fixed_length += size_of::<FixedHeaderExtension>();
            let architecture = match extension.architecture.get() {
                0 => Architecture::X64,
                1 => Architecture::Aarch64,
                other => return Err(FixedHeaderProblem::Architecture(other)),
            };
            if extension.page_size.get() != PAGE_SIZE_U32 {
                return Err(FixedHeaderProblem::PageSize(extension.page_size.get()));
            }
            FormatVersion::V2 { architecture }
        }
        other => return Err(FixedHeaderProblem::Version(other)),
    };
    let total = header.total_file_size.get();
    if usize::try_from(total) != Ok(file.len()) {
        return Err(FixedHeaderProblem::TotalSize {
            total,
            len: file.len(),
        });
    }
    let (offset, size) = (
        header.variable_header_offset.get(),
        header.variable_header_size.get(),
    );
    let headers_error = FixedHeaderProblem::VariableHeaders { offset, size };
    let headers_start = usize::try_from(offset)
        .ok()
        .filter(|start| *start >= fixed_length && start.is_multiple_of(layout::HEADER_ALIGNMENT))
        .ok_or(headers_error)?;
    let headers_end = usize::try_from(size)
        .ok()
        .and_then(|size| headers_start.checked_add(size))
        .ok_or(headers_error)?;
    let headers = file.get(headers_start..headers_end).ok_or(headers_error)?;

    let checksum_at = size_of::<FixedHeader>() - size_of::<u32>();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(file.get(..checksum_at).unwrap_or_default());
    hasher.update(&[0; size_of::<u32>()]);
    hasher.update(
        file.get(size_of::<FixedHeader>()..fixed_length)
            .unwrap_or_default(),
    );
    hasher.update(headers);
    Ok(Fixed {
        version,
        headers_start,
        headers_end,
        headers,
        stored_checksum: header.checksum.get(),
        computed_checksum: hasher.finalize(),
    })
}

#[cfg(test)]
mod tests;
