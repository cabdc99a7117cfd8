//! The GUID partition table, twice, and the protective MBR before it.

use assay_tee::guid::Guid;

use crate::rope::Rope;

use super::{ALIGNMENT, SECTOR};

/// Bytes of a sector, for buffers.
const SECTOR_LEN: usize = 512;
const ENTRY_COUNT: u32 = 128;
const ENTRY_LEN: u32 = 128;
/// Bytes of the array of entries.
const ARRAY_LEN: usize = (ENTRY_COUNT * ENTRY_LEN) as usize;
/// Sectors of the array of entries.
const ARRAY_SECTORS: u64 = 32;
const HEADER_LEN: u32 = 92;
const REVISION: u32 = 0x1_0000;
/// The first sector after the MBR, a header and an array.
const FIRST_USABLE: u64 = 2 + ARRAY_SECTORS;
/// MBR partition type of a disk that has a GPT.
const PROTECTIVE: u8 = 0xee;

/// A partition and what is on it.
#[derive(Debug, Clone)]
pub(super) struct Partition {
    /// Its type.
    pub(super) kind: Guid,
    /// Its own identifier.
    pub(super) id: Guid,
    /// Attributes.
    pub(super) flags: u64,
    /// Name, ASCII, at most 36 characters.
    pub(super) name: &'static str,
    /// Content.
    pub(super) content: Rope,
}

/// Writes a disk with these partitions, in order, each aligned.
pub(super) fn encode_table(disk: Guid, partitions: &[Partition]) -> Rope {
    let mut body = Rope::new();
    let mut array = Vec::new();
    let mut start = FIRST_USABLE.next_multiple_of(ALIGNMENT);
    for partition in partitions {
        let sectors = partition.content.len().div_ceil(SECTOR);
        array.extend(encode_entry(partition, start, start + sectors - 1));
        body.append(&partition.content);
        body.pad_to(SECTOR * ALIGNMENT);
        start += sectors.next_multiple_of(ALIGNMENT);
    }
    array.resize(ARRAY_LEN, 0);
    // The second table ends the disk.
    let total = (start + ARRAY_SECTORS + 1).next_multiple_of(ALIGNMENT);
    let last = total - 1;
    let header = |own, other, array_at| {
        encode_header(&Header {
            own,
            other,
            last_usable: last - ARRAY_SECTORS - 1,
            disk,
            array_at,
            array_crc: crc32fast::hash(&array),
        })
    };

    let mut out = Rope::from(protective_mbr(last));
    out.push(header(1, last, 2));
    out.push(array.clone());
    out.pad_to(SECTOR * ALIGNMENT);
    out.append(&body);
    let backup = (last - ARRAY_SECTORS) * SECTOR;
    out.push_zeros(backup - out.len());
    out.push(array.clone());
    out.push(header(last, 1, last - ARRAY_SECTORS));
    out
}

fn encode_entry(partition: &Partition, first: u64, last: u64) -> Vec<u8> {
    let mut entry = [*partition.kind.as_bytes(), *partition.id.as_bytes()].concat();
    for number in [first, last, partition.flags] {
        entry.extend(number.to_le_bytes());
    }
    entry.extend(partition.name.encode_utf16().flat_map(u16::to_le_bytes));
    entry.resize(ENTRY_LEN as usize, 0);
    entry
}

struct Header {
    own: u64,
    other: u64,
    last_usable: u64,
    disk: Guid,
    array_at: u64,
    array_crc: u32,
}

/// A header in its sector.
fn encode_header(header: &Header) -> Vec<u8> {
    let encode = |crc: u32| {
        let mut out = b"EFI PART".to_vec();
        for number in [REVISION, HEADER_LEN, crc, 0] {
            out.extend(number.to_le_bytes());
        }
        for number in [header.own, header.other, FIRST_USABLE, header.last_usable] {
            out.extend(number.to_le_bytes());
        }
        out.extend(header.disk.as_bytes());
        out.extend(header.array_at.to_le_bytes());
        for number in [ENTRY_COUNT, ENTRY_LEN, header.array_crc] {
            out.extend(number.to_le_bytes());
        }
        out
    };
    let mut sector = encode(crc32fast::hash(&encode(0)));
    sector.resize(SECTOR_LEN, 0);
    sector
}

/// One partition that covers the disk, for programs that know no GPT.
fn protective_mbr(last: u64) -> Vec<u8> {
    let mut sector = vec![0; 446];
    // Not bootable; from sector 0/0/2 to beyond what those numbers can say.
    sector.extend([0, 0, 2, 0, PROTECTIVE, 0xff, 0xff, 0xff]);
    sector.extend(1_u32.to_le_bytes());
    sector.extend(u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}
