//! Reading the variable headers, one after another.

use std::collections::BTreeMap;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::layout::{self, HEADER_ALIGNMENT, HeaderType, VariableHeader};
use super::{
    Architecture, CorimData, Directive, FormatVersion, HeaderProblem, IgvmFile, Initialization,
    MAX_PARAMETER_BYTES, OptionalHeader, PageData, PageDataFlags, PageDataType, Parameter,
    ParameterArea, ParameterInsert, ParameterKind, ParseIgvmError, PlatformType, RequiredMemory,
    SupportedPlatform, VpContext, VpState,
};
use crate::page_info::{PAGE_SIZE, PAGE_SIZE_U64};
use crate::vmsa::Vmsa;

/// The part of the headers that the last one belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Platform,
    Initialization,
    Directive,
}

/// A parameter area before and after it is in the guest.
#[derive(Debug, Clone, Copy)]
struct Area {
    length: u64,
    inserted: bool,
}

/// What was read so far.
pub(super) struct Parser<'a> {
    file: &'a [u8],
    /// Offset of the first byte that no header has.
    headers_end: usize,
    architecture: Architecture,
    stage: Stage,
    areas: BTreeMap<u32, Area>,
    area_bytes: u64,
    platforms: Vec<SupportedPlatform>,
    initialization: Vec<Initialization<'a>>,
    directives: Vec<Directive<'a>>,
    optional: Vec<OptionalHeader<'a>>,
}

impl<'a> Parser<'a> {
    pub(super) const fn new(file: &'a [u8], headers_end: usize, version: FormatVersion) -> Self {
        Self {
            file,
            headers_end,
            architecture: version.architecture(),
            stage: Stage::Platform,
            areas: BTreeMap::new(),
            area_bytes: 0,
            platforms: Vec::new(),
            initialization: Vec::new(),
            directives: Vec::new(),
            optional: Vec::new(),
        }
    }

    pub(super) fn finish(
        self,
        version: FormatVersion,
        checksum: u32,
    ) -> Result<IgvmFile<'a>, ParseIgvmError> {
        if self.platforms.is_empty() {
            return Err(ParseIgvmError::NoPlatform);
        }
        Ok(IgvmFile {
            version,
            checksum,
            platforms: self.platforms,
            initialization: self.initialization,
            directives: self.directives,
            optional: self.optional,
        })
    }

    /// Reads all of `headers`, which start at offset `start` of the file.
    pub(super) fn parse_headers(
        &mut self,
        start: usize,
        headers: &'a [u8],
    ) -> Result<(), ParseIgvmError> {
        let mut rest = headers;
        let mut index = 0;
        while !rest.is_empty() {
            let offset = start.saturating_add(headers.len().saturating_sub(rest.len()));
            let truncated = ParseIgvmError::Truncated { index, offset };
            let Ok((header, after)) = VariableHeader::ref_from_prefix(rest) else {
                return Err(truncated);
            };
            let header_type = HeaderType(header.header_type.get());
            let split = usize::try_from(header.length.get())
                .ok()
                .and_then(|length| {
                    let padded = length.checked_next_multiple_of(HEADER_ALIGNMENT)?;
                    let (body, next) = after.split_at_checked(padded)?;
                    let (data, padding) = body.split_at_checked(length)?;
                    Some((data, padding, next))
                });
            let Some((data, padding, next)) = split else {
                return Err(truncated);
            };
            let parsed = if padding.iter().all(|byte| *byte == 0) {
                self.parse_header(header_type, data)
            } else {
                Err(HeaderProblem::Padding)
            };
            parsed.map_err(|problem| ParseIgvmError::Header {
                index,
                offset,
                header_type,
                problem,
            })?;
            rest = next;
            index = index.saturating_add(1);
        }
        Ok(())
    }

    fn parse_header(
        &mut self,
        header_type: HeaderType,
        data: &'a [u8],
    ) -> Result<(), HeaderProblem> {
        if header_type.is_optional() {
            if header_type.required().name().is_some() {
                return Err(HeaderProblem::OptionalKnown);
            }
            self.optional.push(OptionalHeader { header_type, data });
            return Ok(());
        }
        let stage = if HeaderType::PLATFORM_RANGE.contains(&header_type.0) {
            Stage::Platform
        } else if HeaderType::INITIALIZATION_RANGE.contains(&header_type.0) {
            Stage::Initialization
        } else {
            Stage::Directive
        };
        if header_type.name().is_none() {
            return Err(HeaderProblem::Unknown);
        }
        if stage < self.stage {
            return Err(HeaderProblem::Order);
        }
        self.stage = stage;
        match stage {
            Stage::Platform => {
                let platform = self.parse_platform(data)?;
                self.platforms.push(platform);
            }
            Stage::Initialization => {
                let header = self.parse_initialization(header_type, data)?;
                if let Some(mask) = header.compatibility_mask() {
                    self.check_mask(mask)?;
                }
                self.initialization.push(header);
            }
            Stage::Directive => {
                let directive = self.parse_directive(header_type, data)?;
                if let Some(mask) = directive.compatibility_mask() {
                    self.check_mask(mask)?;
                }
                self.directives.push(directive);
            }
        }
        Ok(())
    }

    fn parse_platform(&self, data: &'a [u8]) -> Result<SupportedPlatform, HeaderProblem> {
        let raw: &layout::SupportedPlatform = whole(data)?;
        let mask = raw.compatibility_mask.get();
        if mask.count_ones() != 1 || self.platform_masks() & mask != 0 {
            return Err(HeaderProblem::PlatformMask(mask));
        }
        let platform_type = PlatformType::from(raw.platform_type);
        if self
            .platforms
            .iter()
            .any(|platform| platform.platform_type == platform_type)
        {
            return Err(HeaderProblem::DuplicatePlatform(platform_type));
        }
        let known = !matches!(platform_type, PlatformType::Unknown(_));
        let version = raw.platform_version.get();
        if known && version != layout::PLATFORM_VERSION {
            return Err(HeaderProblem::PlatformVersion(version));
        }
        let elsewhere = match platform_type {
            PlatformType::VsmIsolation | PlatformType::Unknown(_) => false,
            PlatformType::Cca => self.architecture != Architecture::Aarch64,
            _ => self.architecture != Architecture::X64,
        };
        if elsewhere {
            return Err(HeaderProblem::PlatformArchitecture(platform_type));
        }
        Ok(SupportedPlatform {
            compatibility_mask: mask,
            highest_vtl: raw.highest_vtl,
            platform_type,
            platform_version: version,
            shared_gpa_boundary: raw.shared_gpa_boundary.get(),
        })
    }

    fn parse_initialization(
        &self,
        header_type: HeaderType,
        data: &'a [u8],
    ) -> Result<Initialization<'a>, HeaderProblem> {
        Ok(match header_type {
            HeaderType::GUEST_POLICY => {
                let policy: &layout::GuestPolicy = whole(data)?;
                zero("reserved", policy.reserved.get())?;
                Initialization::GuestPolicy(policy)
            }
            HeaderType::CCA_POLICY => {
                let policy: &layout::CcaPolicy = whole(data)?;
                zero("reserved", policy.reserved.get())?;
                if policy.reserved2 != [0; 6] {
                    return Err(HeaderProblem::Reserved("reserved2"));
                }
                Initialization::CcaPolicy(policy)
            }
            HeaderType::RELOCATABLE_REGION => {
                let region: &layout::RelocatableRegion = whole(data)?;
                let (gpa, size) = (region.relocation_region_gpa, region.relocation_region_size);
                aligned("relocation_region_size", size.get())?;
                aligned("relocation_alignment", region.relocation_alignment.get())?;
                in_address_space(gpa.get(), size.get())?;
                Initialization::RelocatableRegion(region)
            }
            HeaderType::PAGE_TABLE_RELOCATION_REGION => {
                let region: &layout::PageTableRelocation = whole(data)?;
                zero("reserved", region.reserved)?;
                aligned("gpa", region.gpa.get())?;
                aligned("size", region.size.get())?;
                in_address_space(region.gpa.get(), region.size.get())?;
                Initialization::PageTableRelocation(region)
            }
            HeaderType::CORIM_DOCUMENT => Initialization::CorimDocument(self.parse_corim(data)?),
            HeaderType::CORIM_SIGNATURE => Initialization::CorimSignature(self.parse_corim(data)?),
            HeaderType::VERSION_STRING => {
                let repeated = |header: &Initialization<'_>| {
                    matches!(header, Initialization::VersionString(_))
                };
                if self.initialization.iter().any(repeated) {
                    return Err(HeaderProblem::Duplicate);
                }
                let text = std::str::from_utf8(data).map_err(|_| HeaderProblem::Utf8)?;
                Initialization::VersionString(text)
            }
            _ => return Err(HeaderProblem::Unknown),
        })
    }

    fn parse_corim(&self, data: &'a [u8]) -> Result<CorimData<'a>, HeaderProblem> {
        let raw: &layout::CorimData = whole(data)?;
        zero("reserved", raw.reserved.get())?;
        Ok(CorimData {
            compatibility_mask: raw.compatibility_mask.get(),
            data: self.file_data(raw.file_offset, raw.size_bytes.get().into())?,
        })
    }

    fn parse_directive(
        &mut self,
        header_type: HeaderType,
        data: &'a [u8],
    ) -> Result<Directive<'a>, HeaderProblem> {
        Ok(match header_type {
            HeaderType::PARAMETER_AREA => Directive::ParameterArea(self.parse_area(data)?),
            HeaderType::PAGE_DATA => Directive::PageData(self.parse_page_data(data)?),
            HeaderType::PARAMETER_INSERT => {
                let raw: &layout::ParameterInsert = whole(data)?;
                aligned("gpa", raw.gpa.get())?;
                let index = raw.parameter_area_index.get();
                let area = self.area(index)?;
                area.inserted = true;
                let number_of_bytes = area.length;
                in_address_space(raw.gpa.get(), number_of_bytes)?;
                Directive::ParameterInsert(ParameterInsert {
                    gpa: raw.gpa.get(),
                    compatibility_mask: raw.compatibility_mask.get(),
                    area: index,
                    number_of_bytes,
                })
            }
            HeaderType::VP_CONTEXT => Directive::VpContext(self.parse_vp_context(data)?),
            HeaderType::REQUIRED_MEMORY => {
                let raw: &layout::RequiredMemory = whole(data)?;
                let flags = raw.flags.get();
                zero("reserved", raw.reserved.get())?;
                zero("flags", flags & !layout::REQUIRED_MEMORY_VTL2_PROTECTABLE)?;
                aligned("gpa", raw.gpa.get())?;
                aligned("number_of_bytes", raw.number_of_bytes.get())?;
                in_address_space(raw.gpa.get(), raw.number_of_bytes.get().into())?;
                Directive::RequiredMemory(RequiredMemory {
                    gpa: raw.gpa.get(),
                    compatibility_mask: raw.compatibility_mask.get(),
                    number_of_bytes: raw.number_of_bytes.get(),
                    vtl2_protectable: flags & layout::REQUIRED_MEMORY_VTL2_PROTECTABLE != 0,
                })
            }
            HeaderType::SNP_ID_BLOCK => {
                let block: &layout::SnpIdBlock = whole(data)?;
                if block.reserved != [0; 3] {
                    return Err(HeaderProblem::Reserved("reserved"));
                }
                Directive::SnpIdBlock(block)
            }
            HeaderType::ERROR_RANGE => {
                let range: &layout::ErrorRange = whole(data)?;
                aligned("gpa", range.gpa.get())?;
                aligned("size_bytes", range.size_bytes.get())?;
                in_address_space(range.gpa.get(), range.size_bytes.get().into())?;
                Directive::ErrorRange(range)
            }
            HeaderType::VBS_MEASUREMENT => Directive::VbsMeasurement(whole(data)?),
            other => {
                let kind = parameter_kind(other).ok_or(HeaderProblem::Unknown)?;
                Directive::Parameter(self.parse_parameter(kind, data)?)
            }
        })
    }

    fn parse_area(&mut self, data: &'a [u8]) -> Result<ParameterArea<'a>, HeaderProblem> {
        let raw: &layout::ParameterArea = whole(data)?;
        let (index, length) = (raw.parameter_area_index.get(), raw.number_of_bytes.get());
        aligned("number_of_bytes", length)?;
        self.area_bytes = self
            .area_bytes
            .checked_add(length)
            .filter(|bytes| *bytes <= MAX_PARAMETER_BYTES)
            .ok_or(HeaderProblem::AreasTooLarge)?;
        let area = Area {
            length,
            inserted: false,
        };
        if self.areas.insert(index, area).is_some() {
            return Err(HeaderProblem::DuplicateArea(index));
        }
        Ok(ParameterArea {
            index,
            number_of_bytes: length,
            initial_data: self.optional_file_data(raw.file_offset, length)?,
        })
    }

    fn parse_parameter(
        &mut self,
        kind: ParameterKind,
        data: &'a [u8],
    ) -> Result<Parameter, HeaderProblem> {
        let raw: &layout::Parameter = whole(data)?;
        let (index, offset) = (raw.parameter_area_index.get(), raw.byte_offset.get());
        let area = self.area(index)?.length;
        let length = kind.min_length();
        if u64::from(offset).saturating_add(length) > area {
            return Err(HeaderProblem::OutsideArea {
                length,
                offset,
                area,
            });
        }
        Ok(Parameter {
            kind,
            area: index,
            byte_offset: offset,
        })
    }

    fn parse_page_data(&self, data: &'a [u8]) -> Result<PageData<'a>, HeaderProblem> {
        let raw: &layout::PageData = whole(data)?;
        zero("reserved", raw.reserved.get())?;
        let flags =
            PageDataFlags::from_bits(raw.flags.get()).ok_or(HeaderProblem::Reserved("flags"))?;
        let number = raw.data_type.get();
        let data_type = PageDataType::from_number(number).ok_or(HeaderProblem::Value {
            field: "data_type",
            value: number.into(),
        })?;
        let (gpa, length) = (raw.gpa.get(), flags.page_length());
        if !gpa.is_multiple_of(length) {
            return Err(HeaderProblem::Misaligned {
                field: "gpa",
                value: gpa,
            });
        }
        in_address_space(gpa, length)?;
        Ok(PageData {
            gpa,
            compatibility_mask: raw.compatibility_mask.get(),
            flags,
            data_type,
            contents: self.optional_file_data(raw.file_offset, length)?,
        })
    }

    fn parse_vp_context(&self, data: &'a [u8]) -> Result<VpContext<'a>, HeaderProblem> {
        let raw: &layout::VpContext = whole(data)?;
        zero("reserved", raw.reserved.get())?;
        aligned("gpa", raw.gpa.get())?;
        let mask = raw.compatibility_mask.get();
        self.check_mask(mask)?;
        let mut forms = self
            .platforms
            .iter()
            .filter(|platform| platform.compatibility_mask & mask != 0)
            .map(|platform| StateForm::of(platform.platform_type));
        let form = forms.next().flatten().ok_or(HeaderProblem::NoCommonState)?;
        if forms.any(|other| other != Some(form)) {
            return Err(HeaderProblem::NoCommonState);
        }
        Ok(VpContext {
            gpa: raw.gpa.get(),
            compatibility_mask: mask,
            vp_index: raw.vp_index.get(),
            state: self.parse_state(form, raw.file_offset)?,
        })
    }

    fn parse_state(&self, form: StateForm, offset: U32) -> Result<VpState<'a>, HeaderProblem> {
        let page = || self.file_data(offset, PAGE_SIZE_U64);
        Ok(match form {
            StateForm::Vmsa => VpState::Vmsa(whole::<Vmsa>(page()?)?),
            StateForm::Native => VpState::Native(padded(page()?)?),
            StateForm::Cca => VpState::Cca(padded(page()?)?),
            StateForm::Vbs => {
                let count_length = size_of::<U32>() as u64;
                let count: &U32 = whole(self.file_data(offset, count_length)?)?;
                let registers = size_of::<layout::VbsRegister>() as u64;
                let length = u64::from(count.get())
                    .saturating_mul(registers)
                    .saturating_add(count_length);
                let state = self.file_data(offset, length)?;
                let registers = state
                    .get(size_of::<U32>()..)
                    .and_then(|registers| <[layout::VbsRegister]>::ref_from_bytes(registers).ok());
                VpState::Vbs(registers.unwrap_or_default())
            }
        })
    }

    fn area(&mut self, index: u32) -> Result<&mut Area, HeaderProblem> {
        self.areas
            .get_mut(&index)
            .filter(|area| !area.inserted)
            .ok_or(HeaderProblem::NoArea(index))
    }

    fn platform_masks(&self) -> u32 {
        self.platforms
            .iter()
            .fold(0, |masks, platform| masks | platform.compatibility_mask)
    }

    fn check_mask(&self, mask: u32) -> Result<(), HeaderProblem> {
        let platforms = self.platform_masks();
        if mask == 0 || mask & !platforms != 0 {
            return Err(HeaderProblem::Mask { mask, platforms });
        }
        Ok(())
    }

    fn file_data(&self, offset: U32, length: u64) -> Result<&'a [u8], HeaderProblem> {
        let offset = offset.get();
        let start = usize::try_from(offset)
            .ok()
            .filter(|start| *start >= self.headers_end);
        let end = start.and_then(|start| start.checked_add(usize::try_from(length).ok()?));
        start
            .zip(end)
            .and_then(|(start, end)| self.file.get(start..end))
            .ok_or(HeaderProblem::FileData { offset, length })
    }

    /// As [`Self::file_data`]; an offset of zero stands for none.
    fn optional_file_data(
        &self,
        offset: U32,
        length: u64,
    ) -> Result<Option<&'a [u8]>, HeaderProblem> {
        if offset.get() == 0 {
            return Ok(None);
        }
        self.file_data(offset, length).map(Some)
    }
}

/// The form of a virtual CPU's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StateForm {
    Vmsa,
    Native,
    Vbs,
    Cca,
}

impl StateForm {
    const fn of(platform: PlatformType) -> Option<Self> {
        Some(match platform {
            PlatformType::SevSnp | PlatformType::SevEs => Self::Vmsa,
            PlatformType::Native | PlatformType::Sev => Self::Native,
            PlatformType::VsmIsolation => Self::Vbs,
            PlatformType::Cca => Self::Cca,
            PlatformType::Tdx | PlatformType::Unknown(_) => return None,
        })
    }
}

fn parameter_kind(header_type: HeaderType) -> Option<ParameterKind> {
    const KINDS: [ParameterKind; 10] = [
        ParameterKind::VpCount,
        ParameterKind::EnvironmentInfo,
        ParameterKind::Srat,
        ParameterKind::Madt,
        ParameterKind::Slit,
        ParameterKind::Pptt,
        ParameterKind::MmioRanges,
        ParameterKind::MemoryMap,
        ParameterKind::CommandLine,
        ParameterKind::DeviceTree,
    ];
    KINDS
        .into_iter()
        .find(|kind| kind.header_type() == header_type)
}

/// All of `data` as a `T`.
fn whole<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    data: &[u8],
) -> Result<&T, HeaderProblem> {
    T::ref_from_bytes(data).map_err(|_| HeaderProblem::Length {
        got: data.len(),
        need: size_of::<T>(),
    })
}

/// A `T` at the start of a page that is zero after it.
fn padded<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    page: &[u8],
) -> Result<&T, HeaderProblem> {
    let (value, tail) = T::ref_from_prefix(page).map_err(|_| HeaderProblem::Length {
        got: page.len(),
        need: PAGE_SIZE,
    })?;
    if tail.iter().any(|byte| *byte != 0) {
        return Err(HeaderProblem::StateTail);
    }
    Ok(value)
}

fn zero(field: &'static str, value: impl Into<u64>) -> Result<(), HeaderProblem> {
    if value.into() == 0 {
        Ok(())
    } else {
        Err(HeaderProblem::Reserved(field))
    }
}

fn aligned(field: &'static str, value: impl Into<u64>) -> Result<(), HeaderProblem> {
    let value = value.into();
    if value.is_multiple_of(PAGE_SIZE_U64) {
        Ok(())
    } else {
        Err(HeaderProblem::Misaligned { field, value })
    }
}

fn in_address_space(gpa: u64, length: u64) -> Result<(), HeaderProblem> {
    if gpa.checked_add(length).is_some() {
        Ok(())
    } else {
        Err(HeaderProblem::WrapsAround)
    }
}
