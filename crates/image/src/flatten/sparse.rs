//! Files with holes (GNU tar's manual, "Storing Sparse Files"): GNU tar's own format,
//! and three in pax records, the last of which has its map in the content.

use bytes::Bytes;

use super::archive::Records;

const BLOCK: usize = 512;
const MALFORMED: &str = "a file with holes whose map is malformed";

/// Format 0.0 has these in turn, for each piece.
pub(super) const OFFSET: &[u8] = b"GNU.sparse.offset";
/// As [`OFFSET`].
pub(super) const LENGTH: &[u8] = b"GNU.sparse.numbytes";
/// Format 0.1 has all numbers in one record.
const MAP: &[u8] = b"GNU.sparse.map";

/// Adds a number of format 0.0, as format 0.1 has it.
pub(super) fn add(records: &mut Records, number: &[u8]) {
    let map = records.entry(MAP.to_vec()).or_default();
    if !map.is_empty() {
        map.push(b',');
    }
    map.extend(number);
}

/// Where the pieces go that an archive has of a file.
pub(super) struct Holes {
    len: u64,
    /// Offset and length in turn; `None` where they are in the content.
    map: Option<Vec<u64>>,
}

impl Holes {
    pub(super) fn new(len: u64, map: Vec<u64>) -> Self {
        Self {
            len,
            map: Some(map),
        }
    }

    /// What pax records say; `None` where the file is whole.
    pub(super) fn of_records(records: &Records) -> Result<Option<Self>, &'static str> {
        let value = |key: &[u8]| records.get(key).map(Vec::as_slice);
        let is_inside = value(b"GNU.sparse.major") == Some(b"1");
        let map = value(MAP);
        let len = value(b"GNU.sparse.realsize").or_else(|| value(b"GNU.sparse.size"));
        if !is_inside && map.is_none() && len.is_none() {
            return Ok(None);
        }
        let numbers = |text: &[u8]| -> Option<Vec<u64>> {
            let words = text.split(|byte| *byte == b',');
            words.map(number).collect()
        };
        let map = match map {
            _ if is_inside => None,
            None | Some(b"") => Some(Vec::new()),
            Some(text) => Some(numbers(text).ok_or(MALFORMED)?),
        };
        let len = len.and_then(number).ok_or(MALFORMED)?;
        Ok(Some(Self { len, map }))
    }

    /// Length of the file with its holes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The file, from what is stored of it. Memory of holes is never written.
    pub(super) fn fill(&self, stored: &[u8]) -> Result<Bytes, &'static str> {
        match &self.map {
            Some(map) => fill(map, stored, self.len),
            None => read_map(stored).and_then(|(map, data)| fill(&map, data, self.len)),
        }
        .ok_or(MALFORMED)
    }
}

/// Format 1.0: the number of pieces, then offset and length of each, one a line,
/// filled up to a block.
fn read_map(stored: &[u8]) -> Option<(Vec<u64>, &[u8])> {
    let mut rest = stored;
    let mut next = || {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let value = number(rest.get(..end)?)?;
        rest = rest.get(end + 1..)?;
        Some(value)
    };
    let count = next()?.checked_mul(2)?;
    let mut map = Vec::new();
    for _ in 0..count {
        map.push(next()?);
    }
    let used = (stored.len() - rest.len()).next_multiple_of(BLOCK);
    Some((map, stored.get(used..)?))
}

/// Pieces in order, without a byte in common, and all of the data.
fn fill(map: &[u64], mut data: &[u8], len: u64) -> Option<Bytes> {
    let (pieces, []) = map.as_chunks::<2>() else {
        return None;
    };
    let mut file = vec![0; usize::try_from(len).ok()?];
    let mut end = 0;
    for [offset, piece] in pieces {
        let (offset, piece) = (
            usize::try_from(*offset).ok()?,
            usize::try_from(*piece).ok()?,
        );
        if offset < end {
            return None;
        }
        end = offset.checked_add(piece)?;
        let (bytes, rest) = data.split_at_checked(piece)?;
        file.get_mut(offset..end)?.copy_from_slice(bytes);
        data = rest;
    }
    data.is_empty().then(|| file.into())
}

/// A number in decimal digits and nothing else.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| is_number)?;
    text.parse().ok()
}
