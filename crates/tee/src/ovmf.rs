//! What OVMF says about itself to the VMM: the GUIDed table at its end, and the
//! SEV metadata that lists the pages to prepare before the guest starts (edk2
//! `OvmfPkg/ResetVector`, QEMU `hw/i386/pc_sysfw_ovmf.c`).
//!
//! Firmware is loaded so that it ends at 4 GiB. The table ends 32 bytes before
//! that and is read backwards: every entry is data, a 16-bit length of the whole
//! entry, a GUID. The last entry is the table's own footer.

pub mod igvm_areas;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::guid::Guid;
use crate::hashes_table::TABLE_SIZE;
use crate::page_info::{PAGE_SIZE, PAGE_SIZE_U32};

const FOOTER_GUID: Guid = Guid::new(0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d);
pub(crate) const SEV_METADATA_GUID: Guid = Guid::new(0xdc88_6566_984a_4798_a75e_5585_a7bf_67cc);
const SEV_SECRET_BLOCK_GUID: Guid = Guid::new(0x4c2e_b361_7d9b_4cc3_8081_127c_90d3_d294);
const TDX_METADATA_GUID: Guid = Guid::new(0xe47a_6535_984a_4798_865e_4685_a7bf_8ec2);
const IGVM_METADATA_GUID: Guid = Guid::new(0x784f_a70e_3176_4677_8a20_04b6_8699_e374);
const SEV_HASH_TABLE_RV_GUID: Guid = Guid::new(0x7255_371f_3a3b_4b04_927b_1da6_efa8_d454);
const SEV_ES_RESET_BLOCK_GUID: Guid = Guid::new(0x00f7_71de_1a7e_4fcb_890e_68c7_7e2f_b44e);

/// Bytes between the table and the end of the firmware: the reset vector.
const BYTES_AFTER_TABLE: usize = 32;
/// Length and GUID, which end every entry.
const ENTRY_TAIL: usize = 18;
/// Most sections that are accepted. Firmware has about seven.
const MAX_SECTIONS: usize = 64;
/// Most pages of sections that are accepted (256 MiB). Firmware has about 50;
/// the limit bounds the time of a measurement.
const MAX_SECTION_PAGES: u32 = 1 << 16;
pub(crate) const FOUR_GIB: u64 = 1 << 32;

/// What the VMM reads from an OVMF image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvmfMetadata {
    /// Guest physical address of the first byte of the image.
    pub base_gpa: u64,
    /// SEV metadata sections in file order, which is the order of measurement.
    /// Empty where the firmware has no SEV metadata and so cannot run SNP.
    pub sections: Vec<Section>,
    /// Where application processors start (SEV_ES_RESET_BLOCK). `None` where
    /// the firmware names no address or zero.
    pub reset_eip: Option<u32>,
    /// Where the firmware looks for the hashes table (SEV_HASH_TABLE_RV).
    /// `None` where it has no such area and so never verifies a kernel.
    pub hashes_table: Option<HashesTableArea>,
}

impl OvmfMetadata {
    /// The first section of `kind`.
    pub fn section(&self, kind: SectionKind) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }
}

/// The area that the firmware reserves for the hashes table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HashesTableArea {
    /// Guest physical address, never zero.
    pub gpa: u32,
    /// Size in bytes, at least [`TABLE_SIZE`].
    pub size: u32,
}

/// A range of guest memory that the VMM prepares before the guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Guest physical address, page-aligned.
    pub gpa: u32,
    /// Size in bytes, a multiple of the page size; may be zero.
    pub size: u32,
    /// What the range is for.
    pub kind: SectionKind,
}

/// Type of a section (edk2 `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum SectionKind {
    /// 1: memory that the firmware uses before it can validate pages.
    SecMem,
    /// 2: the secrets page.
    SnpSecrets,
    /// 3: the CPUID page.
    Cpuid,
    /// 4: the SVSM's calling area.
    SvsmCaa,
    /// 0x10: the page of the kernel hashes table.
    KernelHashes,
    /// Any other type. Which page type a VMM gives it depends on the VMM.
    Unknown(u32),
}

impl From<u32> for SectionKind {
    fn from(value: u32) -> Self {
        match value {
            1 => Self::SecMem,
            2 => Self::SnpSecrets,
            3 => Self::Cpuid,
            4 => Self::SvsmCaa,
            0x10 => Self::KernelHashes,
            other => Self::Unknown(other),
        }
    }
}

impl From<SectionKind> for u32 {
    fn from(kind: SectionKind) -> Self {
        match kind {
            SectionKind::SecMem => 1,
            SectionKind::SnpSecrets => 2,
            SectionKind::Cpuid => 3,
            SectionKind::SvsmCaa => 4,
            SectionKind::KernelHashes => 0x10,
            SectionKind::Unknown(other) => other,
        }
    }
}

/// Bytes are no OVMF image that a confidential guest can start from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseOvmfError {
    /// The length is zero, no multiple of 4096, or 4 GiB and more.
    #[error(
        "firmware of {len} bytes: its length must be a multiple of 4096 below 4 GiB; use the \
         complete OVMF image, not a part of it"
    )]
    Length {
        /// Length of the file.
        len: usize,
    },
    /// The table's footer is missing.
    #[error(
        "firmware has no GUIDed table 32 bytes before its end: it is no OVMF code image (a \
         variable store such as OVMF_VARS has none); use the image that holds the reset vector"
    )]
    NoFooter,
    /// The table does not add up.
    #[error("firmware's GUIDed table is damaged: {problem}; use an unmodified OVMF image")]
    Table {
        /// What does not add up.
        problem: TableProblem,
    },
    /// An entry of the table has too little data.
    #[error(
        "firmware's table entry {guid} has {got} bytes of data, needs {need}; use an unmodified \
         OVMF image"
    )]
    EntryData {
        /// The entry.
        guid: Guid,
        /// Bytes needed.
        need: usize,
        /// Bytes found.
        got: usize,
    },
    /// The SEV metadata do not add up.
    #[error("firmware's SEV metadata are damaged: {problem}; use an unmodified OVMF image")]
    SevMetadata {
        /// What does not add up.
        problem: SevMetadataProblem,
    },
    /// A section cannot be prepared as described.
    #[error(
        "firmware's SEV metadata section {index} at {gpa:#x} of {size:#x} bytes {problem}; use \
         firmware built for SEV-SNP"
    )]
    Section {
        /// Position in the file, from zero.
        index: usize,
        /// Guest physical address of the section.
        gpa: u32,
        /// Size of the section.
        size: u32,
        /// What is wrong with it.
        problem: SectionProblem,
    },
    /// The area for the hashes table cannot hold it, or is not measured.
    #[error(
        "firmware's hashes table area at {gpa:#x} of {size:#x} bytes {problem}; use the AmdSev \
         build of OVMF"
    )]
    HashesTableArea {
        /// Guest physical address of the area.
        gpa: u32,
        /// Size of the area.
        size: u32,
        /// What is wrong with it.
        problem: HashesTableAreaProblem,
    },
}

/// What is wrong with a GUIDed table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableProblem {
    /// The footer's length is shorter than itself or longer than the file.
    #[error("its length {0} is impossible")]
    Length(u16),
    /// An entry's length is shorter than itself or longer than what is left.
    #[error("entry {guid} has impossible length {length}")]
    EntryLength {
        /// The entry.
        guid: Guid,
        /// Its length field.
        length: u16,
    },
    /// Bytes are left that are too few for an entry.
    #[error("{0} bytes belong to no entry")]
    Rest(usize),
    /// Two entries claim the same meaning.
    #[error("entry {0} occurs twice")]
    Duplicate(Guid),
}

/// What is wrong with the SEV metadata descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SevMetadataProblem {
    /// The offset leaves the file.
    #[error("offset {0:#x} from the end lies outside the file")]
    Offset(u32),
    /// The signature is not `ASEV`.
    #[error("signature ASEV is missing")]
    Signature,
    /// The version is not 1.
    #[error("version {0} is unknown, expected 1")]
    Version(u32),
    /// The length does not fit the number of sections or leaves the file.
    #[error("length {length} does not fit {sections} sections")]
    Length {
        /// Length field.
        length: u32,
        /// Number of sections.
        sections: u32,
    },
    /// More sections than any firmware has.
    #[error("{0} sections are more than {MAX_SECTIONS}")]
    TooManySections(u32),
    /// The sections cover more memory than any firmware uses.
    #[error("sections cover more than {MAX_SECTION_PAGES} pages")]
    TooManyPages,
}

/// What is wrong with a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SectionProblem {
    /// Address or size is no multiple of 4096.
    #[error("is not page-aligned")]
    Misaligned,
    /// It reaches into the firmware or beyond 4 GiB.
    #[error("reaches into the firmware itself")]
    ReachesFirmware,
    /// It shares memory with an earlier section.
    #[error("overlaps section {0}")]
    Overlaps(usize),
    /// Secrets, CPUID and kernel hashes take exactly one page.
    #[error("must be exactly one page")]
    NotOnePage,
    /// Secrets, CPUID and kernel hashes occur once.
    #[error("has the same type as section {0}")]
    Duplicate(usize),
}

/// What is wrong with the area for the hashes table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashesTableAreaProblem {
    /// The table does not fit.
    #[error("is smaller than the table of {TABLE_SIZE} bytes")]
    TooSmall,
    /// The table would cross a page's end.
    #[error("crosses the end of a page")]
    CrossesPage,
    /// The section that is measured is another page, so the firmware would
    /// trust hashes that no launch digest covers.
    #[error("lies outside the KERNEL_HASHES section at {0:#x}, so the hashes would be unmeasured")]
    Unmeasured(u32),
}

/// Reads what the VMM needs from an OVMF image.
///
/// Sections of zero length are kept: firmware that serves several TEEs has them
/// for areas it does not use. They must be memory or calling-area sections.
///
/// # Errors
/// See [`ParseOvmfError`]. A missing entry is no error here: whether it is
/// needed depends on the launch.
pub fn parse_ovmf(firmware: &[u8]) -> Result<OvmfMetadata, ParseOvmfError> {
    let length_error = ParseOvmfError::Length {
        len: firmware.len(),
    };
    let len = u64::try_from(firmware.len()).map_err(|_| length_error.clone())?;
    if firmware.is_empty() || !firmware.len().is_multiple_of(PAGE_SIZE) || len >= FOUR_GIB {
        return Err(length_error);
    }
    let base_gpa = FOUR_GIB - len;

    let entries = parse_table(firmware)?;
    let metadata_offset: Option<U32> = entry_data(&entries, SEV_METADATA_GUID)?;
    let sections = match metadata_offset {
        Some(offset) => parse_sections(firmware, offset.get(), base_gpa)?,
        None => Vec::new(),
    };
    let reset_eip: Option<U32> = entry_data(&entries, SEV_ES_RESET_BLOCK_GUID)?;
    let area: Option<RawHashesTableArea> = entry_data(&entries, SEV_HASH_TABLE_RV_GUID)?;

    let metadata = OvmfMetadata {
        base_gpa,
        sections,
        reset_eip: reset_eip.map(U32::get).filter(|&eip| eip != 0),
        hashes_table: area
            .map(|area| HashesTableArea {
                gpa: area.gpa.get(),
                size: area.size.get(),
            })
            .filter(|area| area.gpa != 0),
    };
    check_hashes_table_area(&metadata)?;
    Ok(metadata)
}

/// The name that edk2 gives to an entry of the table.
pub fn entry_name(guid: Guid) -> Option<&'static str> {
    [
        (SEV_METADATA_GUID, "SEV_METADATA"),
        (SEV_HASH_TABLE_RV_GUID, "SEV_HASH_TABLE_RV"),
        (SEV_ES_RESET_BLOCK_GUID, "SEV_ES_RESET_BLOCK"),
        (SEV_SECRET_BLOCK_GUID, "SEV_SECRET_BLOCK"),
        (TDX_METADATA_GUID, "TDX_METADATA"),
        (IGVM_METADATA_GUID, "IGVM_METADATA"),
    ]
    .into_iter()
    .find_map(|(known, name)| (known == guid).then_some(name))
}

/// An entry of the table: GUID and data.
pub type TableEntry<'a> = (Guid, &'a [u8]);

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHashesTableArea {
    gpa: U32,
    size: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSevMetadata {
    signature: [u8; 4],
    length: U32,
    version: U32,
    sections: U32,
}

const _: () = assert!(size_of::<RawSevMetadata>() == 16);

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSection {
    gpa: U32,
    size: U32,
    kind: U32,
}

const _: () = assert!(size_of::<RawSection>() == 12);

/// Splits the entry that ends `bytes` off: what is before it, its GUID, its
/// length field.
fn split_tail(bytes: &[u8]) -> Option<(&[u8], Guid, u16)> {
    let (rest, guid) = bytes.split_last_chunk::<16>()?;
    let (rest, length) = rest.split_last_chunk::<2>()?;
    Some((rest, Guid::from_bytes(*guid), u16::from_le_bytes(*length)))
}

/// The entries of the GUIDed table as they are, last one first. Their data are
/// not read.
///
/// # Errors
/// When there is no table or it does not add up.
pub fn parse_table(firmware: &[u8]) -> Result<Vec<TableEntry<'_>>, ParseOvmfError> {
    let table_error = |problem| ParseOvmfError::Table { problem };
    let (before_footer, guid, table_length) = firmware
        .len()
        .checked_sub(BYTES_AFTER_TABLE)
        .and_then(|end| firmware.get(..end))
        .and_then(split_tail)
        .ok_or(ParseOvmfError::NoFooter)?;
    if guid != FOOTER_GUID {
        return Err(ParseOvmfError::NoFooter);
    }
    let mut rest = usize::from(table_length)
        .checked_sub(ENTRY_TAIL)
        .and_then(|entries| before_footer.len().checked_sub(entries))
        .and_then(|start| before_footer.get(start..))
        .ok_or_else(|| table_error(TableProblem::Length(table_length)))?;

    let mut entries: Vec<TableEntry<'_>> = Vec::new();
    while !rest.is_empty() {
        let (before, guid, length) =
            split_tail(rest).ok_or_else(|| table_error(TableProblem::Rest(rest.len())))?;
        let start = usize::from(length)
            .checked_sub(ENTRY_TAIL)
            .and_then(|data| before.len().checked_sub(data))
            .ok_or_else(|| table_error(TableProblem::EntryLength { guid, length }))?;
        let (earlier, data) = before.split_at(start);
        entries.push((guid, data));
        rest = earlier;
    }
    Ok(entries)
}

/// The data of the entry `guid` as a `T`, which it must at least contain.
pub(crate) fn entry_data<T: FromBytes>(
    entries: &[TableEntry<'_>],
    guid: Guid,
) -> Result<Option<T>, ParseOvmfError> {
    let mut found = entries.iter().filter(|(entry, _)| *entry == guid);
    let Some((_, data)) = found.next() else {
        return Ok(None);
    };
    if found.next().is_some() {
        return Err(ParseOvmfError::Table {
            problem: TableProblem::Duplicate(guid),
        });
    }
    let (value, _) = T::read_from_prefix(data).map_err(|_| ParseOvmfError::EntryData {
        guid,
        need: size_of::<T>(),
        got: data.len(),
    })?;
    Ok(Some(value))
}

pub(crate) fn parse_sections(
    firmware: &[u8],
    offset_from_end: u32,
    base_gpa: u64,
) -> Result<Vec<Section>, ParseOvmfError> {
    let error = |problem| ParseOvmfError::SevMetadata { problem };
    let descriptor = usize::try_from(offset_from_end)
        .ok()
        .and_then(|offset| firmware.len().checked_sub(offset))
        .and_then(|start| firmware.get(start..))
        .ok_or_else(|| error(SevMetadataProblem::Offset(offset_from_end)))?;
    let (header, _) = RawSevMetadata::ref_from_prefix(descriptor)
        .map_err(|_| error(SevMetadataProblem::Offset(offset_from_end)))?;
    if header.signature != *b"ASEV" {
        return Err(error(SevMetadataProblem::Signature));
    }
    if header.version.get() != 1 {
        return Err(error(SevMetadataProblem::Version(header.version.get())));
    }
    let count = header.sections.get();
    let count_usize = usize::try_from(count).unwrap_or(usize::MAX);
    if count_usize > MAX_SECTIONS {
        return Err(error(SevMetadataProblem::TooManySections(count)));
    }
    let length = header.length.get();
    let length_error = || {
        error(SevMetadataProblem::Length {
            length,
            sections: count,
        })
    };
    let body = usize::try_from(length)
        .ok()
        .and_then(|length| descriptor.get(size_of::<RawSevMetadata>()..length))
        .ok_or_else(length_error)?;
    let (raw_sections, _) = <[RawSection]>::ref_from_prefix_with_elems(body, count_usize)
        .map_err(|_| length_error())?;

    let sections: Vec<Section> = raw_sections
        .iter()
        .map(|raw| Section {
            gpa: raw.gpa.get(),
            size: raw.size.get(),
            kind: SectionKind::from(raw.kind.get()),
        })
        .collect();
    validate_sections(&sections, base_gpa)?;
    Ok(sections)
}

/// Checks that a VMM could prepare `sections` below firmware at `base_gpa`:
/// aligned, apart from each other, single where only one makes sense, and not
/// more memory than any firmware uses. [`parse_ovmf`] has done so.
///
/// # Errors
/// [`ParseOvmfError::Section`] and [`ParseOvmfError::SevMetadata`].
pub fn validate_sections(sections: &[Section], base_gpa: u64) -> Result<(), ParseOvmfError> {
    let error = |problem| ParseOvmfError::SevMetadata { problem };
    if sections.len() > MAX_SECTIONS {
        let count = u32::try_from(sections.len()).unwrap_or(u32::MAX);
        return Err(error(SevMetadataProblem::TooManySections(count)));
    }
    let mut pages: u32 = 0;
    for (index, section) in sections.iter().enumerate() {
        check_section(section, sections.get(..index).unwrap_or_default(), base_gpa).map_err(
            |problem| ParseOvmfError::Section {
                index,
                gpa: section.gpa,
                size: section.size,
                problem,
            },
        )?;
        pages = pages.saturating_add(section.size / PAGE_SIZE_U32);
    }
    if pages > MAX_SECTION_PAGES {
        return Err(error(SevMetadataProblem::TooManyPages));
    }
    Ok(())
}

fn check_section(
    section: &Section,
    earlier: &[Section],
    base_gpa: u64,
) -> Result<(), SectionProblem> {
    if !section.gpa.is_multiple_of(PAGE_SIZE_U32) || !section.size.is_multiple_of(PAGE_SIZE_U32) {
        return Err(SectionProblem::Misaligned);
    }
    let end = |section: &Section| u64::from(section.gpa) + u64::from(section.size);
    if end(section) > base_gpa {
        return Err(SectionProblem::ReachesFirmware);
    }
    let single = matches!(
        section.kind,
        SectionKind::SnpSecrets | SectionKind::Cpuid | SectionKind::KernelHashes
    );
    if single && section.size != PAGE_SIZE_U32 {
        return Err(SectionProblem::NotOnePage);
    }
    for (index, other) in earlier.iter().enumerate() {
        if single && other.kind == section.kind {
            return Err(SectionProblem::Duplicate(index));
        }
        let disjoint = end(section) <= u64::from(other.gpa)
            || end(other) <= u64::from(section.gpa)
            || section.size == 0
            || other.size == 0;
        if !disjoint {
            return Err(SectionProblem::Overlaps(index));
        }
    }
    Ok(())
}

fn check_hashes_table_area(metadata: &OvmfMetadata) -> Result<(), ParseOvmfError> {
    let Some(HashesTableArea { gpa, size }) = metadata.hashes_table else {
        return Ok(());
    };
    let error = |problem| Err(ParseOvmfError::HashesTableArea { gpa, size, problem });
    let table_size = TABLE_SIZE as u64;
    if u64::from(size) < table_size {
        return error(HashesTableAreaProblem::TooSmall);
    }
    if u64::from(gpa % PAGE_SIZE_U32) + table_size > u64::from(PAGE_SIZE_U32) {
        return error(HashesTableAreaProblem::CrossesPage);
    }
    match metadata.section(SectionKind::KernelHashes) {
        Some(section) if section.gpa != gpa - gpa % PAGE_SIZE_U32 => {
            error(HashesTableAreaProblem::Unmeasured(section.gpa))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
