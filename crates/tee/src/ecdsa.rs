//! Pairs of P-384 numbers as the secure processor stores them: 72 bytes each,
//! little-endian, the upper 24 zero (SEV-SNP ABI, chapter *Signature Formats*).
//! Everyone else writes 48 bytes each, big-endian.

/// Bytes of a stored number.
pub(crate) const STORED_LEN: usize = 72;
/// Bytes of a P-384 number.
pub(crate) const P384_LEN: usize = 48;

/// Both numbers, big-endian. Only the lower 48 bytes of either count.
pub(crate) fn to_fixed(first: &[u8; STORED_LEN], second: &[u8; STORED_LEN]) -> [u8; 2 * P384_LEN] {
    let mut fixed = [0; 2 * P384_LEN];
    let (left, right) = fixed.split_at_mut(P384_LEN);
    for (to, from) in [(left, first), (right, second)] {
        for (to, from) in to.iter_mut().rev().zip(from) {
            *to = *from;
        }
    }
    fixed
}

/// The stored form of two numbers that are given big-endian.
pub(crate) fn from_fixed(fixed: &[u8; 2 * P384_LEN]) -> ([u8; STORED_LEN], [u8; STORED_LEN]) {
    let (left, right) = fixed.split_at(P384_LEN);
    (stored(left), stored(right))
}

fn stored(big_endian: &[u8]) -> [u8; STORED_LEN] {
    let mut stored = [0; STORED_LEN];
    for (to, from) in stored.iter_mut().zip(big_endian.iter().rev()) {
        *to = *from;
    }
    stored
}
