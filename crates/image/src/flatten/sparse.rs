//! Files with holes in pax archives (GNU tar's manual, "Storing Sparse Files"): three
//! formats, in which records or the beginning of the content say what goes where.

use bytes::Bytes;

use super::MAX_LAYER_LEN;

const BLOCK: usize = 512;

/// What pax records say of a file with holes.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    name: Option<Vec<u8>>,
    /// Length of the file with its holes.
    len: Option<Vec<u8>>,
    /// Offsets and lengths in turn, by format 0.0 or 0.1.
    map: Vec<Vec<u8>>,
    /// Format 1.0: the map is in the content.
    is_inside: bool,
}

impl SparseRecords {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"GNU.sparse.name" => self.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.len = Some(value.to_vec()),
            b"GNU.sparse.major" => self.is_inside = value == b"1",
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.map.push(value.to_vec()),
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',');
                self.map = numbers.map(<[u8]>::to_vec).collect();
            }
            _ => {}
        }
    }

    /// The file's path, where the archive has another in its place.
    pub(super) fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    pub(super) fn is_any(&self) -> bool {
        self.len.is_some() || self.is_inside || !self.map.is_empty()
    }
}

/// The file with its holes, from what the archive has of it.
pub(super) fn expand(records: &SparseRecords, stored: &Bytes) -> Result<Bytes, &'static str> {
    const MALFORMED: &str = "is a sparse file whose map is malformed";
    let len = records.len.as_deref().and_then(number).ok_or(MALFORMED)?;
    if len as u64 > MAX_LAYER_LEN {
        return Err("is a sparse file of more than 8 GiB");
    }
    let (map, data) = if records.is_inside {
        read_map(stored).ok_or(MALFORMED)?
    } else {
        let numbers = records.map.iter().map(|text| number(text));
        let numbers: Option<Vec<_>> = numbers.collect();
        (numbers.ok_or(MALFORMED)?, stored.as_ref())
    };
    fill(&map, data, len).ok_or(MALFORMED)
}

/// Format 1.0: the number of pieces, then offset and length of each, one a line,
/// filled up to a block.
fn read_map(stored: &[u8]) -> Option<(Vec<usize>, &[u8])> {
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
fn fill(map: &[usize], mut data: &[u8], len: usize) -> Option<Bytes> {
    let (pieces, []) = map.as_chunks::<2>() else {
        return None;
    };
    let mut file = vec![0; len];
    let mut end = 0;
    for [offset, piece] in pieces {
        if *offset < end {
            return None;
        }
        end = offset.checked_add(*piece)?;
        let (bytes, rest) = data.split_at_checked(*piece)?;
        file.get_mut(*offset..end)?.copy_from_slice(bytes);
        data = rest;
    }
    data.is_empty().then(|| file.into())
}

fn number(text: &[u8]) -> Option<usize> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| is_number)?
        .parse()
        .ok()
}
