//! The part of PE/COFF (PE32+) that UKIs are made of: headers and sections.

use std::ops::Range;

use assay_tee::Sha256Digest;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// Length of a section header.
pub const SECTION_HEADER_LEN: usize = 40;
/// IMAGE_DLLCHARACTERISTICS_NX_COMPAT.
pub const NX_COMPAT: u16 = 0x100;
/// IMAGE_SCN_MEM_READ | IMAGE_SCN_CNT_INITIALIZED_DATA.
pub const READ_DATA: u32 = 0x4000_0040;
/// IMAGE_SCN_MEM_READ | IMAGE_SCN_CNT_CODE.
pub const READ_CODE: u32 = 0x4000_0020;

const PE_OFFSET: usize = 0x3c;
const PE32_PLUS: u16 = 0x20b;

/// Offsets of header fields from the start of the PE signature.
pub mod field {
    /// NumberOfSections, u16.
    pub const NUMBER_OF_SECTIONS: usize = 6;
    /// PointerToSymbolTable, u32.
    pub const POINTER_TO_SYMBOL_TABLE: usize = 12;
    /// SizeOfOptionalHeader, u16.
    pub const SIZE_OF_OPTIONAL_HEADER: usize = 20;
    /// Start of the optional header: Magic, u16.
    pub const OPTIONAL_HEADER: usize = 24;
    /// SizeOfInitializedData, u32.
    pub const SIZE_OF_INITIALIZED_DATA: usize = OPTIONAL_HEADER + 8;
    /// SectionAlignment, u32.
    pub const SECTION_ALIGNMENT: usize = OPTIONAL_HEADER + 32;
    /// FileAlignment, u32.
    pub const FILE_ALIGNMENT: usize = OPTIONAL_HEADER + 36;
    /// SizeOfImage, u32.
    pub const SIZE_OF_IMAGE: usize = OPTIONAL_HEADER + 56;
    /// SizeOfHeaders, u32.
    pub const SIZE_OF_HEADERS: usize = OPTIONAL_HEADER + 60;
    /// CheckSum, u32.
    pub const CHECKSUM: usize = OPTIONAL_HEADER + 64;
    /// DllCharacteristics, u16.
    pub const DLL_CHARACTERISTICS: usize = OPTIONAL_HEADER + 70;
    /// First data directory: address and size, u32 each.
    pub const DATA_DIRECTORIES: usize = OPTIONAL_HEADER + 112;
    /// NumberOfRvaAndSizes, u32: how many data directories there are.
    pub const NUMBER_OF_DIRECTORIES: usize = OPTIONAL_HEADER + 108;
    /// Data directory of the attribute certificate table: its offset in the file
    /// and its size.
    pub const CERTIFICATE_TABLE: usize = DATA_DIRECTORIES + 8 * 4;
}

/// Bytes are not a PE32+ image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a PE32+ image: {problem} at byte {offset:#x}")]
pub struct ParsePeError {
    problem: &'static str,
    offset: usize,
}

/// Headers of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeImage {
    /// Offset of the PE signature.
    pub pe_offset: usize,
    /// Offset of the section table.
    pub section_table: usize,
    /// SectionAlignment.
    pub section_alignment: u32,
    /// FileAlignment.
    pub file_alignment: u32,
    /// SizeOfHeaders.
    pub size_of_headers: u32,
    /// SizeOfInitializedData.
    pub size_of_initialized_data: u32,
    /// DllCharacteristics.
    pub dll_characteristics: u16,
    /// Whether there are COFF symbols.
    pub has_symbols: bool,
    /// Where the file has its signatures: the attribute certificate table.
    pub certificates: Option<Range<usize>>,
    /// The sections in the table's order.
    pub sections: Vec<PeSection>,
}

/// A section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeSection {
    /// Name without padding.
    pub name: String,
    /// VirtualSize.
    pub virtual_size: u32,
    /// VirtualAddress.
    pub virtual_address: u32,
    /// SizeOfRawData.
    pub raw_size: u32,
    /// PointerToRawData.
    pub raw_offset: u32,
}

impl PeSection {
    /// The section's content in `image`: VirtualSize bytes. `None` when the file
    /// does not have that many.
    pub fn content(&self, image: &Bytes) -> Option<Bytes> {
        if self.virtual_size > self.raw_size {
            return None;
        }
        let start = usize::try_from(self.raw_offset).ok()?;
        let end = start.checked_add(usize::try_from(self.virtual_size).ok()?)?;
        (end <= image.len()).then(|| image.slice(start..end))
    }
}

/// Little-endian numbers at offsets.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// As [`u16_at`].
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

impl PeImage {
    /// Parses the headers of `image`.
    pub fn parse(image: &[u8]) -> Result<Self, ParsePeError> {
        let error = |problem, offset| ParsePeError { problem, offset };
        if !image.starts_with(b"MZ") {
            return Err(error("no MZ signature", 0));
        }
        let truncated = |offset| move || error("truncated headers", offset);
        let pe_offset = u32_at(image, PE_OFFSET).ok_or_else(truncated(PE_OFFSET))?;
        let pe_offset = usize::try_from(pe_offset).map_err(|_| truncated(PE_OFFSET)())?;
        let headers = image.get(pe_offset..).ok_or_else(truncated(image.len()))?;
        if !headers.starts_with(b"PE\0\0") {
            return Err(error("no PE signature", pe_offset));
        }
        let short = |offset| u16_at(headers, offset).ok_or_else(truncated(pe_offset + offset));
        let long = |offset| u32_at(headers, offset).ok_or_else(truncated(pe_offset + offset));
        if short(field::OPTIONAL_HEADER)? != PE32_PLUS {
            let offset = pe_offset + field::OPTIONAL_HEADER;
            return Err(error("an optional header that is not PE32+", offset));
        }
        let section_alignment = long(field::SECTION_ALIGNMENT)?;
        let file_alignment = long(field::FILE_ALIGNMENT)?;
        if !section_alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
            let offset = pe_offset + field::SECTION_ALIGNMENT;
            return Err(error("an alignment that is no power of two", offset));
        }
        let optional_len = usize::from(short(field::SIZE_OF_OPTIONAL_HEADER)?);
        let table = field::OPTIONAL_HEADER + optional_len;
        let section = |index: usize| {
            let start = table + index * SECTION_HEADER_LEN;
            let header = headers.get(start..start + SECTION_HEADER_LEN)?;
            let name = header.get(..8)?;
            let name_len = name
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(name.len());
            Some(PeSection {
                name: String::from_utf8_lossy(name.get(..name_len)?).into_owned(),
                virtual_size: u32_at(header, 8)?,
                virtual_address: u32_at(header, 12)?,
                raw_size: u32_at(header, 16)?,
                raw_offset: u32_at(header, 20)?,
            })
        };
        let count = usize::from(short(field::NUMBER_OF_SECTIONS)?);
        let sections = (0..count)
            .map(section)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(truncated(pe_offset + table))?;
        let security = field::CERTIFICATE_TABLE;
        let certificates = if security + 8 <= table && long(security)? != 0 {
            let beyond = truncated(pe_offset + security);
            let offset = |number| usize::try_from(number).map_err(|_| beyond());
            let start = offset(long(security)?)?;
            let end = start.checked_add(offset(long(security + 4)?)?);
            Some(start..end.ok_or_else(beyond)?)
        } else {
            None
        };
        Ok(Self {
            pe_offset,
            section_table: pe_offset + table,
            section_alignment,
            file_alignment,
            size_of_headers: long(field::SIZE_OF_HEADERS)?,
            size_of_initialized_data: long(field::SIZE_OF_INITIALIZED_DATA)?,
            dll_characteristics: short(field::DLL_CHARACTERISTICS)?,
            has_symbols: long(field::POINTER_TO_SYMBOL_TABLE)? != 0,
            certificates,
            sections,
        })
    }

    /// The first section of that name.
    pub fn section(&self, name: &str) -> Option<&PeSection> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// SHA-256 of `image`, whose headers these are, as signatures and firmware
    /// take it: all but the checksum, the entry of the certificate table and
    /// the table itself (Microsoft, *Windows Authenticode Portable Executable
    /// Signature Format*, "Calculating the PE Image Hash").
    pub fn authenticode_digest(&self, image: &[u8]) -> Result<Sha256Digest, ParsePeError> {
        let outside = || ParsePeError {
            problem: "a part that lies outside the file",
            offset: image.len(),
        };
        let offset = |number: u32| usize::try_from(number).map_err(|_| outside());
        let checksum = self.pe_offset + field::CHECKSUM;
        let security = self.pe_offset + field::CERTIFICATE_TABLE;
        let headers = offset(self.size_of_headers)?;
        let mut parts: Vec<Range<usize>> = Vec::new();
        if security + 8 <= self.section_table {
            parts.extend([0..checksum, checksum + 4..security, security + 8..headers]);
        } else {
            parts.extend([0..checksum, checksum + 4..headers]);
        }
        let mut sections: Vec<_> = self.sections.iter().filter(|s| s.raw_size > 0).collect();
        sections.sort_by_key(|section| section.raw_offset);
        let mut hashed = headers;
        for section in sections {
            let (start, len) = (offset(section.raw_offset)?, offset(section.raw_size)?);
            parts.push(start..start.checked_add(len).ok_or_else(outside)?);
            hashed = hashed.checked_add(len).ok_or_else(outside)?;
        }
        // What follows the sections, but for the certificates at the very end.
        let certificates = self.certificates.as_ref().map_or(0, Range::len);
        let end = image.len().checked_sub(certificates).ok_or_else(outside)?;
        if end > hashed {
            parts.push(hashed..end);
        }
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(image.get(part).ok_or_else(outside)?);
        }
        Ok(Sha256Digest::new(digest.finalize().into()))
    }
}
