//! PAGE_INFO: what the secure processor hashes for every page that enters a
//! guest before it starts (SEV-SNP Firmware ABI, SNP_LAUNCH_UPDATE, table
//! "PAGE_INFO"). The launch digest is the SHA-384 of the last one.

use std::mem::{offset_of, size_of};

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a page, the unit of measurement. A constant of the x86
/// architecture; larger pages are measured as 4 KiB ones.
pub const PAGE_SIZE: usize = 4096;

/// [`PAGE_SIZE`] for 32-bit addresses.
pub const PAGE_SIZE_U32: u32 = 4096;

/// [`PAGE_SIZE`] for 64-bit addresses.
pub const PAGE_SIZE_U64: u64 = 4096;

/// PAGE_TYPE of SNP_LAUNCH_UPDATE (SEV-SNP Firmware ABI, table "Encodings for
/// the PAGE_TYPE Field").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum PageType {
    /// Content is copied in and measured.
    Normal = 1,
    /// A virtual CPU's save area: content is copied in and measured.
    Vmsa = 2,
    /// The processor fills the page with zeros. Not the same measurement as a
    /// normal page of zeros.
    Zero = 3,
    /// Content is copied in, only the page's existence is measured.
    Unmeasured = 4,
    /// The processor writes the secrets page.
    Secrets = 5,
    /// The processor checks the host's CPUID values; they are not measured.
    Cpuid = 6,
}

impl PageType {
    /// Whether the page's content takes part in the measurement.
    pub const fn has_contents(self) -> bool {
        matches!(self, Self::Normal | Self::Vmsa)
    }
}

/// PAGE_INFO (SEV-SNP Firmware ABI 1.55, SNP_LAUNCH_UPDATE).
///
/// The IMI bit and the permissions of VMPL1 to VMPL3 are zero in every launch
/// that KVM makes, and so here.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PageInfo {
    /// The launch digest before this page.
    pub digest_cur: [u8; 48],
    /// SHA-384 of the page for [`PageType::Normal`] and [`PageType::Vmsa`],
    /// zero otherwise.
    pub contents: [u8; 48],
    /// Length of this structure: 0x70.
    pub length: U16,
    /// A [`PageType`].
    pub page_type: u8,
    /// Bit 0: the page belongs to an initial migration image.
    pub imi_page: u8,
    _rsvd_0x64: u8,
    /// Permissions of VMPL1.
    pub vmpl1_perms: u8,
    /// Permissions of VMPL2.
    pub vmpl2_perms: u8,
    /// Permissions of VMPL3.
    pub vmpl3_perms: u8,
    /// Guest physical address of the page.
    pub gpa: U64,
}

const _: () = assert!(size_of::<PageInfo>() == 0x70);
const _: () = assert!(offset_of!(PageInfo, contents) == 0x30);
const _: () = assert!(offset_of!(PageInfo, length) == 0x60);
const _: () = assert!(offset_of!(PageInfo, page_type) == 0x62);
const _: () = assert!(offset_of!(PageInfo, imi_page) == 0x63);
const _: () = assert!(offset_of!(PageInfo, vmpl1_perms) == 0x65);
const _: () = assert!(offset_of!(PageInfo, vmpl3_perms) == 0x67);
const _: () = assert!(offset_of!(PageInfo, gpa) == 0x68);

impl PageInfo {
    /// PAGE_INFO of one page. `contents` is used for page types whose content
    /// is measured and ignored for the others, as the processor does.
    pub fn new(digest_cur: [u8; 48], page_type: PageType, gpa: u64, contents: [u8; 48]) -> Self {
        Self {
            digest_cur,
            contents: if page_type.has_contents() {
                contents
            } else {
                [0; 48]
            },
            length: U16::new(0x70),
            page_type: page_type as u8,
            imi_page: 0,
            _rsvd_0x64: 0,
            vmpl1_perms: 0,
            vmpl2_perms: 0,
            vmpl3_perms: 0,
            gpa: U64::new(gpa),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_abi_puts_them() {
        let info = PageInfo::new([0xaa; 48], PageType::Vmsa, 0xffff_ffff_f000, [0xbb; 48]);
        let mut expected = [0xaa; 48].to_vec();
        expected.extend([0xbb; 48]);
        expected.extend([0x70, 0, 2, 0, 0, 0, 0, 0]);
        expected.extend([0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        assert_eq!(info.as_bytes(), expected);
    }

    #[test]
    fn contents_of_unmeasured_types_are_zero() {
        for page_type in [
            PageType::Zero,
            PageType::Unmeasured,
            PageType::Secrets,
            PageType::Cpuid,
        ] {
            assert_eq!(
                PageInfo::new([0; 48], page_type, 0, [1; 48]).contents,
                [0; 48]
            );
        }
    }
}
