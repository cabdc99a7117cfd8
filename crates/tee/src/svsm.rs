//! What a Coconut SVSM binary says about itself to a VMM that starts it without
//! IGVM (`-machine svsm=`, Coconut's QEMU until 2024): the same GUIDed table as
//! OVMF's, with its entry point and the pages that it wants prepared.
//!
//! The binary lies directly below the firmware's flash; its own memory starts
//! at address zero.

use zerocopy::little_endian::U32;

use crate::guid::Guid;
use crate::ovmf::{
    FOUR_GIB, ParseOvmfError, SEV_METADATA_GUID, Section, entry_data, parse_sections, parse_table,
};
use crate::page_info::{PAGE_SIZE, PAGE_SIZE_U64};

const SVSM_INFO_GUID: Guid = Guid::new(0xa789_a612_0597_4c4b_a49f_cbb1_fe9d_1ddd);

/// What the VMM reads from an SVSM binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvsmMetadata {
    /// Guest physical address of the first byte of the binary.
    pub base_gpa: u64,
    /// Guest physical address at which every virtual CPU starts.
    pub entry: u32,
    /// SEV metadata sections in file order, which is the order of measurement.
    pub sections: Vec<Section>,
}

/// Bytes are no SVSM binary that a VMM starts without IGVM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSvsmError {
    /// The length is zero or no multiple of 4096.
    #[error(
        "SVSM binary of {len} bytes: its length must be a multiple of 4096; use svsm.bin as built, \
         not the ELF file"
    )]
    Length {
        /// Length of the file.
        len: usize,
    },
    /// The binary would have to end at an address that is no page's.
    #[error(
        "the SVSM would end at {end_gpa:#x}, which is no page boundary below 4 GiB; the variable \
         store's size must be a multiple of 4096"
    )]
    End {
        /// Guest physical address after the last byte.
        end_gpa: u64,
    },
    /// The binary is larger than the memory below the firmware's flash.
    #[error("SVSM binary of {len} bytes does not fit below {end_gpa:#x}; use a smaller one")]
    DoesNotFit {
        /// Length of the file.
        len: usize,
        /// Guest physical address after the last byte.
        end_gpa: u64,
    },
    /// The table's footer is missing.
    #[error(
        "SVSM binary has no GUIDed table 32 bytes before its end; use svsm.bin of a Coconut SVSM \
         from before IGVM, or measure the IGVM file of a newer one"
    )]
    NoTable,
    /// Table or sections do not add up.
    #[error("read the SVSM binary's metadata")]
    Metadata(#[source] ParseOvmfError),
    /// The entry point is missing.
    #[error(
        "SVSM binary names no entry point (SVSM_INFO); an OVMF image is given with --ovmf, not as \
         the SVSM"
    )]
    NoEntry,
    /// The entry point lies behind the end of the binary.
    #[error("SVSM binary's entry point {offset:#x} lies outside its {len} bytes")]
    EntryOutside {
        /// Offset of the entry point.
        offset: u32,
        /// Length of the file.
        len: usize,
    },
}

/// Reads what the VMM needs from an SVSM binary that ends at `end_gpa`.
///
/// # Errors
/// See [`ParseSvsmError`].
pub fn parse_svsm(svsm: &[u8], end_gpa: u64) -> Result<SvsmMetadata, ParseSvsmError> {
    let len = svsm.len();
    if svsm.is_empty() || !len.is_multiple_of(PAGE_SIZE) {
        return Err(ParseSvsmError::Length { len });
    }
    if !end_gpa.is_multiple_of(PAGE_SIZE_U64) || end_gpa > FOUR_GIB {
        return Err(ParseSvsmError::End { end_gpa });
    }
    let base_gpa = u64::try_from(len)
        .ok()
        .and_then(|len| end_gpa.checked_sub(len))
        .ok_or(ParseSvsmError::DoesNotFit { len, end_gpa })?;
    let entries = parse_table(svsm).map_err(|error| match error {
        ParseOvmfError::NoFooter => ParseSvsmError::NoTable,
        other => ParseSvsmError::Metadata(other),
    })?;
    let info: Option<U32> =
        entry_data(&entries, SVSM_INFO_GUID).map_err(ParseSvsmError::Metadata)?;
    let offset = info.ok_or(ParseSvsmError::NoEntry)?.get();
    let metadata_offset: Option<U32> =
        entry_data(&entries, SEV_METADATA_GUID).map_err(ParseSvsmError::Metadata)?;
    let sections = match metadata_offset {
        Some(offset) => {
            parse_sections(svsm, offset.get(), base_gpa).map_err(ParseSvsmError::Metadata)?
        }
        None => Vec::new(),
    };
    let outside = ParseSvsmError::EntryOutside { offset, len };
    let inside = usize::try_from(offset).is_ok_and(|offset| offset < len);
    let entry = u32::try_from(base_gpa + u64::from(offset)).map_err(|_| outside.clone())?;
    if !inside {
        return Err(outside);
    }
    Ok(SvsmMetadata {
        base_gpa,
        entry,
        sections,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ovmf::{SectionKind, SectionProblem};

    /// A binary of two pages with one section and this table.
    fn binary(info: Option<u32>, section: [u32; 3]) -> Vec<u8> {
        const METADATA_OFFSET: usize = 0x800;
        let mut table = Vec::new();
        let mut entry = |guid: Guid, data: u32| {
            table.extend(data.to_le_bytes());
            table.extend(22_u16.to_le_bytes());
            table.extend(guid.as_bytes());
        };
        entry(SEV_METADATA_GUID, u32::try_from(METADATA_OFFSET).unwrap());
        if let Some(offset) = info {
            entry(SVSM_INFO_GUID, offset);
        }
        let footer = Guid::new(0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d);
        let length = u16::try_from(table.len() + 18).unwrap();
        table.extend(length.to_le_bytes());
        table.extend(footer.as_bytes());
        let mut metadata = b"ASEV".to_vec();
        metadata.extend([28, 1, 1].map(u32::to_le_bytes).as_flattened());
        metadata.extend(section.map(u32::to_le_bytes).as_flattened());
        let mut binary = vec![0x90; 0x2000];
        let at = binary.len() - METADATA_OFFSET;
        binary[at..at + metadata.len()].copy_from_slice(&metadata);
        let at = binary.len() - 32 - table.len();
        binary[at..at + table.len()].copy_from_slice(&table);
        binary
    }

    const END: u64 = 0xffc0_0000;
    const SECTION: [u32; 3] = [0, 0x9000, 1];

    #[test]
    fn a_binary_lies_below_the_flash() {
        let parsed = parse_svsm(&binary(Some(0x10), SECTION), END).unwrap();
        assert_eq!((parsed.base_gpa, parsed.entry), (0xffbf_e000, 0xffbf_e010));
        assert_eq!(parsed.sections.len(), 1);
        assert_eq!(parsed.sections[0].kind, SectionKind::SecMem);
    }

    #[test]
    fn binaries_that_no_vmm_would_start_are_refused() {
        let good = binary(Some(0), SECTION);
        let error = |bytes: &[u8], end| parse_svsm(bytes, end).unwrap_err();
        assert_eq!(error(&[], END), ParseSvsmError::Length { len: 0 });
        assert_eq!(
            error(&good[1..], END),
            ParseSvsmError::Length { len: 0x1fff }
        );
        let end_gpa = END + 1;
        assert_eq!(error(&good, end_gpa), ParseSvsmError::End { end_gpa });
        let end_gpa = FOUR_GIB + 0x1000;
        assert_eq!(error(&good, end_gpa), ParseSvsmError::End { end_gpa });
        assert_eq!(
            error(&good, 0x1000),
            ParseSvsmError::DoesNotFit {
                len: 0x2000,
                end_gpa: 0x1000
            }
        );
        assert_eq!(error(&[0; 4096], END), ParseSvsmError::NoTable);
        assert_eq!(error(&binary(None, SECTION), END), ParseSvsmError::NoEntry);
        assert_eq!(
            error(&binary(Some(0x2000), SECTION), END),
            ParseSvsmError::EntryOutside {
                offset: 0x2000,
                len: 0x2000
            }
        );
        assert!(matches!(
            error(&binary(Some(0), [0xffbf_e000, 0x1000, 1]), END),
            ParseSvsmError::Metadata(ParseOvmfError::Section {
                problem: SectionProblem::ReachesFirmware,
                ..
            })
        ));
    }
}
