//! Where firmware that is loaded from an IGVM file looks for what the loader
//! tells it (edk2 `OvmfPkg/ResetVector/X64/IgvmMetadata.asm`).

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{FOUR_GIB, IGVM_METADATA_GUID, PAGE_SIZE_U32, ParseOvmfError, entry_data, parse_table};

const SIGNATURE: [u8; 4] = *b"IGVM";
const VERSION: u32 = 1;
/// Most entries that are accepted. Firmware has four.
const MAX_ENTRIES: u32 = 64;

/// A range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IgvmArea {
    /// Guest physical address, page-aligned.
    pub gpa: u32,
    /// Bytes, whole pages.
    pub size: u32,
}

/// What firmware expects of an IGVM file. Entries of unknown types are skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct IgvmAreas {
    /// The memory of the loader's parameters.
    pub parameters: Option<IgvmArea>,
    /// Offset of the memory map in [`IgvmAreas::parameters`].
    pub memory_map_offset: Option<u32>,
    /// Offset of the number of virtual CPUs in [`IgvmAreas::parameters`].
    pub vp_count_offset: Option<u32>,
    /// The page of the list of data that the file brings along, such as a
    /// kernel.
    pub hobs: Option<IgvmArea>,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    signature: [u8; 4],
    length: U32,
    version: U32,
    entries: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    base: U32,
    size: U32,
    kind: U32,
}

/// Why the IGVM metadata cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IgvmMetadataProblem {
    /// It lies outside the image.
    #[error("at {0:#x} bytes before the end do not fit into the image")]
    Offset(u32),
    /// It does not start with its signature.
    #[error("do not start with \"IGVM\"")]
    Signature,
    /// Another version.
    #[error("are of version {0}, and 1 is known")]
    Version(u32),
    /// There are more entries than it has room for, or than any firmware has.
    #[error("have {0} entries, which do not fit")]
    Entries(u32),
    /// An area is not made of whole pages below the firmware.
    #[error("have the area {gpa:#x} of {size:#x} bytes, which is no range of pages below 4 GiB")]
    Area {
        /// Guest physical address.
        gpa: u32,
        /// Size in bytes.
        size: u32,
    },
    /// A parameter lies outside the area of the parameters.
    #[error("have a parameter at offset {0:#x}, outside the parameter area")]
    Parameter(u32),
    /// Two entries say the same thing.
    #[error("have two entries of type {0:#x}")]
    Duplicate(u32),
}

/// What firmware expects of an IGVM file cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIgvmAreasError {
    /// The table that says where the metadata are does not add up.
    #[error("read the firmware's GUIDed table")]
    Table(#[source] ParseOvmfError),
    /// The metadata do not add up.
    #[error("firmware's IGVM metadata {problem}; use an unmodified OVMF image")]
    Metadata {
        /// What does not add up.
        problem: IgvmMetadataProblem,
    },
}

/// Reads what firmware expects of an IGVM file. `None` where it knows nothing of
/// such files.
///
/// # Errors
/// See [`ParseIgvmAreasError`].
pub fn parse_igvm_areas(firmware: &[u8]) -> Result<Option<IgvmAreas>, ParseIgvmAreasError> {
    let entries = parse_table(firmware).map_err(ParseIgvmAreasError::Table)?;
    let offset = entry_data::<U32>(&entries, IGVM_METADATA_GUID);
    let Some(offset) = offset.map_err(ParseIgvmAreasError::Table)? else {
        return Ok(None);
    };
    parse_metadata(firmware, offset.get())
        .map(Some)
        .map_err(|problem| ParseIgvmAreasError::Metadata { problem })
}

fn parse_metadata(firmware: &[u8], offset: u32) -> Result<IgvmAreas, IgvmMetadataProblem> {
    let outside = IgvmMetadataProblem::Offset(offset);
    let descriptor = usize::try_from(offset)
        .ok()
        .and_then(|offset| firmware.len().checked_sub(offset))
        .and_then(|start| firmware.get(start..))
        .ok_or(outside)?;
    let (header, _) = RawHeader::ref_from_prefix(descriptor).map_err(|_| outside)?;
    if header.signature != SIGNATURE {
        return Err(IgvmMetadataProblem::Signature);
    }
    if header.version.get() != VERSION {
        return Err(IgvmMetadataProblem::Version(header.version.get()));
    }
    let count = header.entries.get();
    let too_many = IgvmMetadataProblem::Entries(count);
    let body = usize::try_from(header.length.get())
        .ok()
        .and_then(|length| descriptor.get(size_of::<RawHeader>()..length))
        .filter(|_| count <= MAX_ENTRIES)
        .ok_or(too_many)?;
    let elements = usize::try_from(count).map_err(|_| too_many)?;
    let (entries, _) =
        <[RawEntry]>::ref_from_prefix_with_elems(body, elements).map_err(|_| too_many)?;

    let mut areas = IgvmAreas::default();
    for entry in entries {
        let (base, size, kind) = (entry.base.get(), entry.size.get(), entry.kind.get());
        let known = match kind {
            0x100 => areas.parameters.replace(area(base, size)?).is_some(),
            0x101 => areas.memory_map_offset.replace(base).is_some(),
            0x102 => areas.vp_count_offset.replace(base).is_some(),
            0x200 => areas.hobs.replace(area(base, size)?).is_some(),
            _ => false,
        };
        if known {
            return Err(IgvmMetadataProblem::Duplicate(kind));
        }
    }
    let room = areas.parameters.map_or(0, |area| area.size);
    let offsets = [areas.memory_map_offset, areas.vp_count_offset];
    match offsets.into_iter().flatten().find(|offset| *offset >= room) {
        Some(offset) => Err(IgvmMetadataProblem::Parameter(offset)),
        None => Ok(areas),
    }
}

fn area(gpa: u32, size: u32) -> Result<IgvmArea, IgvmMetadataProblem> {
    let whole = gpa.is_multiple_of(PAGE_SIZE_U32) && size.is_multiple_of(PAGE_SIZE_U32);
    let fits = u64::from(gpa) + u64::from(size) <= FOUR_GIB;
    if size == 0 || !whole || !fits {
        return Err(IgvmMetadataProblem::Area { gpa, size });
    }
    Ok(IgvmArea { gpa, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guid::Guid;
    use crate::ovmf::tests::with_entry;

    const OFFSET: u32 = 0x400;

    fn firmware(signature: [u8; 4], version: u32, entries: &[[u32; 3]]) -> Vec<u8> {
        let count = u32::try_from(entries.len()).unwrap();
        let mut metadata = signature.to_vec();
        for field in [16 + 12 * count, version, count] {
            metadata.extend(field.to_le_bytes());
        }
        for field in entries.as_flattened() {
            metadata.extend(field.to_le_bytes());
        }
        with_entry(IGVM_METADATA_GUID, OFFSET, &metadata)
    }

    const GOOD: [[u32; 3]; 5] = [
        [0x81_2000, 0x1000, 0x100],
        [0, 0xc0, 0x101],
        [0xc0, 0x10, 0x102],
        [0x81_3000, 0x1000, 0x200],
        [1, 2, 0x999],
    ];

    #[test]
    fn areas_are_read() {
        let areas = parse_igvm_areas(&firmware(SIGNATURE, VERSION, &GOOD)).unwrap();
        let area = |gpa| Some(IgvmArea { gpa, size: 0x1000 });
        let expected = IgvmAreas {
            parameters: area(0x81_2000),
            memory_map_offset: Some(0),
            vp_count_offset: Some(0xc0),
            hobs: area(0x81_3000),
        };
        assert_eq!(areas, Some(expected));
        let without = with_entry(Guid::new(1), OFFSET, b"");
        assert_eq!(parse_igvm_areas(&without), Ok(None));
    }

    #[test]
    fn damaged_metadata_are_refused() {
        use IgvmMetadataProblem as Problem;

        let rows = [
            (firmware(*b"ASEV", 1, &GOOD), Problem::Signature),
            (firmware(SIGNATURE, 2, &GOOD), Problem::Version(2)),
            (
                firmware(SIGNATURE, 1, &[[0x1000, 0x1000, 0x999]; 65]),
                Problem::Entries(65),
            ),
            (
                firmware(SIGNATURE, 1, &[[0x1001, 0x1000, 0x100]]),
                Problem::Area {
                    gpa: 0x1001,
                    size: 0x1000,
                },
            ),
            (
                firmware(SIGNATURE, 1, &[[0x1000, 0, 0x200]]),
                Problem::Area {
                    gpa: 0x1000,
                    size: 0,
                },
            ),
            (
                firmware(SIGNATURE, 1, &[GOOD[3], GOOD[3]]),
                Problem::Duplicate(0x200),
            ),
            (
                firmware(SIGNATURE, 1, &[GOOD[0], [0x1000, 4, 0x102]]),
                Problem::Parameter(0x1000),
            ),
            (
                firmware(SIGNATURE, 1, &[[0, 0xc0, 0x101]]),
                Problem::Parameter(0),
            ),
            (
                with_entry(IGVM_METADATA_GUID, u32::MAX, b""),
                Problem::Offset(u32::MAX),
            ),
        ];
        for (firmware, problem) in rows {
            assert_eq!(
                parse_igvm_areas(&firmware),
                Err(ParseIgvmAreasError::Metadata { problem })
            );
        }
        assert!(matches!(
            parse_igvm_areas(&[0; 4096]),
            Err(ParseIgvmAreasError::Table(ParseOvmfError::NoFooter))
        ));
    }
}
