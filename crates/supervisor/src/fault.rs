//! What a hostile host does to a UKI, for simulated launches.

use object::read::pe::PeFile64;
use object::{Object as _, ObjectSection as _};

/// Sections that are data to everything on the boot path, so that a UKI with a
/// changed byte in one still boots wherever nobody verifies it: `.uname` is only
/// measured by systemd-stub, `.sbat` only read by shim.
const INERT_SECTIONS: [&str; 2] = [".uname", ".sbat"];

/// A UKI with one byte changed.
#[derive(Debug)]
pub(crate) struct TamperedUki {
    /// The changed UKI.
    pub(crate) uki: Vec<u8>,
    /// Offset of the changed byte in the file.
    pub(crate) offset: usize,
    /// The section that it lies in.
    pub(crate) section: &'static str,
}

/// A UKI cannot be changed without breaking it.
#[derive(Debug, thiserror::Error)]
pub enum TamperError {
    /// The UKI is no PE file.
    #[error("cannot tamper with the UKI: no 64-bit PE file")]
    Parse(#[source] object::Error),
    /// There is no byte that boot does not depend on.
    #[error("cannot tamper with the UKI: none of the sections {INERT_SECTIONS:?} has content")]
    NoInertSection,
}

/// Changes one byte that boot does not depend on.
pub(crate) fn tamper(uki: &[u8]) -> Result<TamperedUki, TamperError> {
    let pe = PeFile64::parse(uki).map_err(TamperError::Parse)?;
    let first_byte = |name: &'static str| {
        let (offset, size) = pe.section_by_name(name)?.file_range()?;
        (size > 0).then_some(())?;
        Some((usize::try_from(offset).ok()?, name))
    };
    let (offset, section) = INERT_SECTIONS
        .into_iter()
        .find_map(first_byte)
        .ok_or(TamperError::NoInertSection)?;
    let mut uki = uki.to_vec();
    // The lowest bit: text stays printable text.
    *uki.get_mut(offset).ok_or(TamperError::NoInertSection)? ^= 1;
    Ok(TamperedUki {
        uki,
        offset,
        section,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE32+ file with one section of four bytes.
    fn pe_with_section(name: &str, content: [u8; 4]) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        let mut put = |offset: usize, bytes: &[u8]| {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0x00, b"MZ");
        put(0x3c, &0x40u32.to_le_bytes());
        put(0x40, b"PE\0\0");
        put(0x44, &0x8664u16.to_le_bytes());
        put(0x46, &1u16.to_le_bytes());
        put(0x54, &240u16.to_le_bytes());
        put(0x58, &0x20bu16.to_le_bytes());
        put(0x58 + 108, &16u32.to_le_bytes());
        let header = 0x58 + 240;
        put(header, name.as_bytes());
        put(header + 8, &4u32.to_le_bytes());
        put(header + 12, &0x1000u32.to_le_bytes());
        put(header + 16, &0x200u32.to_le_bytes());
        put(header + 20, &0x200u32.to_le_bytes());
        put(0x200, &content);
        file
    }

    #[test]
    fn one_byte_of_an_inert_section_changes() {
        for name in INERT_SECTIONS {
            let uki = pe_with_section(name, *b"6.12");
            let tampered = tamper(&uki).unwrap();
            assert_eq!((tampered.section, tampered.offset), (name, 0x200));
            let changed: Vec<usize> = (0..uki.len())
                .filter(|&i| uki[i] != tampered.uki[i])
                .collect();
            assert_eq!(changed, [0x200]);
            assert_eq!(
                &tampered.uki[0x200..0x204],
                &[b"6.12"[0] ^ 1, b'.', b'1', b'2']
            );
        }
    }

    #[test]
    fn a_uki_without_inert_sections_is_refused() {
        let uki = pe_with_section(".linux", *b"code");
        assert!(matches!(tamper(&uki), Err(TamperError::NoInertSection)));
        assert!(matches!(tamper(b"MZ"), Err(TamperError::Parse(_))));
    }

    #[test]
    fn a_section_outside_the_file_is_refused() {
        let mut uki = pe_with_section(".uname", *b"6.12");
        let pointer = 0x58 + 240 + 20;
        uki[pointer..pointer + 4].copy_from_slice(&0x0100_0000u32.to_le_bytes());
        assert!(matches!(tamper(&uki), Err(TamperError::NoInertSection)));
    }
}
