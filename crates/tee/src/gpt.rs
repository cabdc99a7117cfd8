//! The GUID partition table (UEFI 2.10, §5.3) as far as a root is found by it.
//!
//! The table is the host's. It says where to look and is believed in nothing
//! else: what is found there must have the measured root hash. So its checksums
//! are not looked at, and of two tables only the first is read.

use crate::guid::Guid;

/// Sector with the table's header.
pub const HEADER_SECTOR: u64 = 1;

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes of an entry, at least.
const MIN_ENTRY_LEN: u32 = 128;
/// Bytes of all entries, at most: eight times what every table has.
const MAX_ARRAY_LEN: u32 = 128 * 1024;

/// Where the entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryArray {
    /// First sector.
    pub sector: u64,
    /// Number of bytes, at most 128 KiB.
    pub len: u32,
    entry_len: u32,
}

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Its type.
    pub kind: Guid,
    /// Its own identifier.
    pub id: Guid,
    /// First sector.
    pub first: u64,
    /// Number of sectors.
    pub sectors: u64,
}

/// Reads the header. `None` when it is none, or when nothing has such a table.
pub fn parse_header(sector: &[u8]) -> Option<EntryArray> {
    if !sector.starts_with(SIGNATURE) {
        return None;
    }
    let entry_len = word(sector, 84)?;
    let len = word(sector, 80)?.checked_mul(entry_len)?;
    let sensible = entry_len >= MIN_ENTRY_LEN && len <= MAX_ARRAY_LEN;
    sensible.then_some(EntryArray {
        sector: long(sector, 72)?,
        len,
        entry_len,
    })
}

impl EntryArray {
    /// The partitions in the array's bytes. Entries that end before they begin
    /// are left out.
    pub fn parse_partitions(&self, bytes: &[u8]) -> Vec<Partition> {
        let entries = bytes.chunks_exact(self.entry_len as usize);
        entries.filter_map(parse_entry).collect()
    }
}

fn parse_entry(entry: &[u8]) -> Option<Partition> {
    let (first, last) = (long(entry, 32)?, long(entry, 40)?);
    Some(Partition {
        kind: guid(entry, 0)?,
        id: guid(entry, 16)?,
        first,
        sectors: last.checked_sub(first)?.checked_add(1)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn guid(bytes: &[u8], at: usize) -> Option<Guid> {
    Some(Guid::from_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of 512-byte sectors that begins with a table of these partitions:
    /// type, identifier, first and last sector.
    fn disk(partitions: &[(Guid, Guid, u64, u64)]) -> Vec<u8> {
        let mut disk = vec![0; 512];
        disk.extend(SIGNATURE);
        disk.resize(512 + 72, 0);
        disk.extend(2_u64.to_le_bytes());
        disk.extend(128_u32.to_le_bytes());
        disk.extend(128_u32.to_le_bytes());
        disk.resize(1024, 0);
        for (kind, id, first, last) in partitions {
            disk.extend([*kind.as_bytes(), *id.as_bytes()].concat());
            disk.extend([first.to_le_bytes(), last.to_le_bytes()].concat());
            disk.extend([0; 128 - 48]);
        }
        disk.resize(1024 + 128 * 128, 0);
        disk
    }

    const KIND: Guid = Guid::new(1);
    const ID: Guid = Guid::new(2);

    #[test]
    fn partitions_are_where_their_entries_say() {
        let disk = disk(&[(KIND, ID, 2048, 4095), (KIND, KIND, 5, 5)]);
        let array = parse_header(&disk[512..1024]).expect("header");
        assert_eq!((array.sector, array.len), (2, 128 * 128));
        let found = array.parse_partitions(&disk[1024..]);
        let first = Partition {
            kind: KIND,
            id: ID,
            first: 2048,
            sectors: 2048,
        };
        assert_eq!(found[0], first);
        assert_eq!((found[1].first, found[1].sectors), (5, 1));
    }

    #[test]
    fn what_a_hostile_host_writes_gives_nothing() {
        let good = disk(&[]);
        let header = |at: usize, bytes: &[u8]| {
            let mut sector = good[512..1024].to_vec();
            sector[at..at + bytes.len()].copy_from_slice(bytes);
            parse_header(&sector)
        };
        assert!(header(0, b"E").is_some());
        for (at, bytes) in [
            (0, [0; 4]),
            (80, u32::MAX.to_le_bytes()),
            (80, 1025_u32.to_le_bytes()),
            (84, [0; 4]),
            (84, 127_u32.to_le_bytes()),
        ] {
            assert_eq!(header(at, &bytes), None, "{at} {bytes:?}");
        }
        for len in 0..88 {
            assert_eq!(parse_header(&good[512..512 + len]), None, "{len} bytes");
        }

        let array = parse_header(&good[512..1024]).expect("header");
        let backwards = disk(&[(KIND, ID, 9, 8), (KIND, ID, 0, u64::MAX)]);
        let found = array.parse_partitions(&backwards[1024..1024 + 256]);
        assert_eq!(found, []);
        assert_eq!(array.parse_partitions(&good[1024..1024 + 127]), []);
    }
}
