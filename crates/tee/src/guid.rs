//! GUIDs as firmware stores them: the first three fields little-endian, the
//! rest in text order (UEFI 2.10, appendix A).

use std::fmt;

/// A GUID in its stored form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// A GUID from its text form read as one hexadecimal number, so that a
    /// constant shows the digits that the specification prints.
    pub const fn new(text: u128) -> Self {
        Self(swap_fields(text.to_be_bytes()))
    }

    /// A GUID from its 16 stored bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 stored bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Turns text order into stored order and back: the bytes of the first three
/// fields change direction.
const fn swap_fields(b: [u8; 16]) -> [u8; 16] {
    [
        b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13],
        b[14], b[15],
    ]
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = u128::from_be_bytes(swap_fields(self.0));
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            text >> 96,
            (text >> 80) & 0xffff,
            (text >> 64) & 0xffff,
            (text >> 48) & 0xffff,
            text & 0xffff_ffff_ffff,
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_form_is_mixed_endian_and_text_form_round_trips() {
        let guid = Guid::new(0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d);
        assert_eq!(
            guid.as_bytes(),
            b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d"
        );
        assert_eq!(guid.to_string(), "96b582de-1fb2-45f7-baea-a366c55a082d");
    }
}
