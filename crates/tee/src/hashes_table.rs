//! The SEV hashes table: SHA-256 of command line, initrd and kernel, placed by
//! QEMU (`kernel-hashes=on`) in a measured page and verified by the firmware
//! before it boots what fw_cfg offers (QEMU `target/i386/sev.c`, edk2
//! `OvmfPkg/AmdSev/BlobVerifierLibSevHashes`).

use std::mem::{offset_of, size_of};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Sha256Digest;
use crate::guid::Guid;
use crate::page_info::{PAGE_SIZE, PAGE_SIZE_U32};

/// Bytes of the table with the padding that QEMU adds to reach a multiple of 16.
pub const TABLE_SIZE: usize = 176;

const TABLE_GUID: Guid = Guid::new(0x9438_d606_4f22_4cc9_b479_a793_d411_fd21);
const CMDLINE_GUID: Guid = Guid::new(0x97d0_2dd8_bd20_4c94_aa78_e771_4d36_ab2a);
const INITRD_GUID: Guid = Guid::new(0x44ba_f731_3a2f_4bd7_9af1_41e2_9169_781d);
const KERNEL_GUID: Guid = Guid::new(0x4de7_9437_abd2_427f_b835_d5b1_72d2_045b);

/// What names the table's entries: kernel, initrd, command line. Firmware that verifies
/// a kernel looks for them.
pub const ENTRY_GUIDS: [Guid; 3] = [KERNEL_GUID, INITRD_GUID, CMDLINE_GUID];

/// Length field of the table: header and entries without the padding.
const TABLE_LENGTH: u16 = 168;
/// Length field of an entry.
const ENTRY_LENGTH: u16 = 50;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    guid: [u8; 16],
    length: U16,
    hash: [u8; 32],
}

const _: () = assert!(size_of::<Entry>() == ENTRY_LENGTH as usize);
const _: () = assert!(offset_of!(Entry, hash) == 18);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Table {
    guid: [u8; 16],
    length: U16,
    cmdline: Entry,
    initrd: Entry,
    kernel: Entry,
    padding: [u8; 8],
}

const _: () = assert!(size_of::<Table>() == TABLE_SIZE);
const _: () = assert!(offset_of!(Table, cmdline) == 18);
const _: () = assert!(offset_of!(Table, initrd) == 68);
const _: () = assert!(offset_of!(Table, kernel) == 118);
const _: () = assert!(offset_of!(Table, padding) == TABLE_LENGTH as usize);

impl Table {
    fn into_bytes(self) -> [u8; TABLE_SIZE] {
        zerocopy::transmute!(self)
    }
}

/// The three hashes that the firmware verifies a direct boot against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KernelHashes {
    /// SHA-256 of the command line and its terminating NUL.
    pub cmdline: Sha256Digest,
    /// SHA-256 of the initrd; of nothing where there is none.
    pub initrd: Sha256Digest,
    /// SHA-256 of the kernel file (here: the UKI).
    pub kernel: Sha256Digest,
}

impl KernelHashes {
    /// Hashes what QEMU is given as `-kernel`, `-initrd` and `-append`. The
    /// command line is taken as it is, without its NUL; no `-append` is the
    /// empty string.
    pub fn from_bytes(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Self {
        Self::from_digests(
            Sha256Digest::of(kernel),
            initrd.map(Sha256Digest::of),
            cmdline,
        )
    }

    /// As [`KernelHashes::from_bytes`], for files whose digests are known.
    pub fn from_digests(kernel: Sha256Digest, initrd: Option<Sha256Digest>, cmdline: &str) -> Self {
        Self {
            cmdline: cmdline_digest(cmdline),
            initrd: initrd.unwrap_or_else(|| Sha256Digest::of(b"")),
            kernel,
        }
    }

    /// The table with its padding, as SEV and SEV-ES measure it.
    pub fn encode_table(&self) -> [u8; TABLE_SIZE] {
        let entry = |guid: Guid, hash: &Sha256Digest| Entry {
            guid: *guid.as_bytes(),
            length: U16::new(ENTRY_LENGTH),
            hash: *hash.as_bytes(),
        };
        Table {
            guid: *TABLE_GUID.as_bytes(),
            length: U16::new(TABLE_LENGTH),
            cmdline: entry(CMDLINE_GUID, &self.cmdline),
            initrd: entry(INITRD_GUID, &self.initrd),
            kernel: entry(KERNEL_GUID, &self.kernel),
            padding: [0; 8],
        }
        .into_bytes()
    }

    /// The page of zeros with the table at the page offset of `table_gpa`, as
    /// SEV-SNP measures it.
    ///
    /// # Errors
    /// When the table would cross the page's end.
    pub fn encode_page(&self, table_gpa: u32) -> Result<[u8; PAGE_SIZE], TableCrossesPageError> {
        let error = TableCrossesPageError { table_gpa };
        let offset = usize::try_from(table_gpa % PAGE_SIZE_U32).map_err(|_| error)?;
        let mut page = [0; PAGE_SIZE];
        page.get_mut(offset..offset + TABLE_SIZE)
            .ok_or(error)?
            .copy_from_slice(&self.encode_table());
        Ok(page)
    }

    /// Reads a table back from guest memory or a page that starts with it.
    ///
    /// # Errors
    /// When `bytes` does not start with a table in QEMU's form: the three
    /// entries in QEMU's order and zero padding.
    pub fn parse_table(bytes: &[u8]) -> Result<Self, ParseHashesTableError> {
        let (table, _) = Table::ref_from_prefix(bytes)
            .map_err(|_| ParseHashesTableError::Truncated { got: bytes.len() })?;
        if table.guid != *TABLE_GUID.as_bytes() {
            return Err(ParseHashesTableError::TableGuid {
                got: Guid::from_bytes(table.guid),
            });
        }
        if table.length.get() != TABLE_LENGTH {
            return Err(ParseHashesTableError::TableLength {
                got: table.length.get(),
            });
        }
        if table.padding != [0; 8] {
            return Err(ParseHashesTableError::Padding);
        }
        let hash = |name: &'static str, guid: Guid, entry: &Entry| {
            if entry.guid == *guid.as_bytes() && entry.length.get() == ENTRY_LENGTH {
                Ok(Sha256Digest::new(entry.hash))
            } else {
                Err(ParseHashesTableError::Entry { name })
            }
        };
        Ok(Self {
            cmdline: hash("command line", CMDLINE_GUID, &table.cmdline)?,
            initrd: hash("initrd", INITRD_GUID, &table.initrd)?,
            kernel: hash("kernel", KERNEL_GUID, &table.kernel)?,
        })
    }
}

/// SHA-256 of a command line and its terminating NUL.
fn cmdline_digest(cmdline: &str) -> Sha256Digest {
    let digest = Sha256::new()
        .chain_update(cmdline)
        .chain_update([0])
        .finalize();
    Sha256Digest::new(digest.into())
}

/// The hashes table does not fit between its address and the end of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hashes table of {TABLE_SIZE} bytes at {table_gpa:#x} crosses the end of its page")]
pub struct TableCrossesPageError {
    table_gpa: u32,
}

/// Bytes are no hashes table in QEMU's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseHashesTableError {
    /// Fewer bytes than a table has.
    #[error("hashes table needs {TABLE_SIZE} bytes, got {got}")]
    Truncated {
        /// Bytes given.
        got: usize,
    },
    /// The table's GUID is another one; all zero means that QEMU placed none.
    #[error("not a hashes table: GUID {got}, expected {TABLE_GUID}")]
    TableGuid {
        /// GUID found.
        got: Guid,
    },
    /// The table's length field is not that of three entries.
    #[error("hashes table has length {got}, expected {TABLE_LENGTH}")]
    TableLength {
        /// Length found.
        got: u16,
    },
    /// An entry is missing or out of QEMU's order.
    #[error("hashes table has no {name} entry in its place")]
    Entry {
        /// The entry that should be here.
        name: &'static str,
    },
    /// The padding is not zero.
    #[error("padding of the hashes table is not zero")]
    Padding,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> KernelHashes {
        KernelHashes::from_bytes(b"kernel", Some(b"initrd"), "console=ttyS0")
    }

    #[test]
    fn cmdline_includes_its_nul_and_missing_initrd_is_empty() {
        let hashes = KernelHashes::from_bytes(b"", None, "");
        assert_eq!(hashes.cmdline, Sha256Digest::of(b"\0"));
        assert_eq!(hashes.initrd, Sha256Digest::of(b""));
        assert_eq!(good().cmdline, Sha256Digest::of(b"console=ttyS0\0"));
        assert_ne!(
            KernelHashes::from_bytes(b"", None, "a b ").cmdline,
            KernelHashes::from_bytes(b"", None, "a b").cmdline,
            "QEMU does not trim, neither do we"
        );
    }

    #[test]
    fn table_is_parsed_back() {
        assert_eq!(
            KernelHashes::parse_table(&good().encode_table()),
            Ok(good())
        );
    }

    #[test]
    fn page_holds_the_table_at_its_offset_and_zeros_elsewhere() {
        let page = good().encode_page(0x81_0c00).unwrap();
        assert_eq!(page[0xc00..0xc00 + TABLE_SIZE], good().encode_table());
        assert!(
            page[..0xc00]
                .iter()
                .chain(&page[0xc00 + TABLE_SIZE..])
                .all(|&b| b == 0)
        );
        assert!(good().encode_page(0x81_0f50).is_ok());
        assert!(good().encode_page(0x81_0f51).is_err());
    }

    #[test]
    fn every_changed_byte_outside_the_hashes_is_refused() {
        let table = good().encode_table();
        for at in 0..TABLE_SIZE {
            let mut changed = table;
            changed[at] ^= 1;
            let parsed = KernelHashes::parse_table(&changed);
            let in_hash = [36..68, 86..118, 136..168]
                .iter()
                .any(|hash| hash.contains(&at));
            assert_eq!(parsed.is_ok(), in_hash, "byte {at}");
            assert_ne!(parsed, Ok(good()), "byte {at}");
        }
        assert_eq!(
            KernelHashes::parse_table(&table[..175]),
            Err(ParseHashesTableError::Truncated { got: 175 })
        );
    }
}
