//! Byte strings made of shared pieces.
//!
//! An image of hundreds of megabytes is mostly the content of files that are
//! already in memory. A [`Rope`] refers to those bytes instead of copying them
//! at each step (layer, file system, artifact, upload).

use assay_tee::Sha256Digest;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// Where bytes go that are made on the way and are too many for memory.
pub trait Keep: std::fmt::Debug + Send + Sync {
    /// The same bytes, for as long as something refers to them.
    ///
    /// # Errors
    /// When there is no room for them.
    fn keep(&self, bytes: Vec<u8>) -> std::io::Result<Bytes>;
}

/// Memory after all: for who builds small images.
#[derive(Debug, Clone, Copy, Default)]
pub struct InMemory;

impl Keep for InMemory {
    fn keep(&self, bytes: Vec<u8>) -> std::io::Result<Bytes> {
        Ok(bytes.into())
    }
}

/// A block of zeros that padding refers to.
static ZEROS: [u8; 4096] = [0; 4096];

/// Bytes in order, in shared pieces.
#[derive(Debug, Clone, Default)]
pub struct Rope {
    chunks: Vec<Bytes>,
    len: u64,
}

impl Rope {
    /// An empty rope.
    pub fn new() -> Self {
        Self::default()
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order; none is empty.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.len += bytes.len() as u64;
            self.chunks.push(bytes);
        }
    }

    /// Appends another rope's pieces.
    pub fn append(&mut self, other: &Self) {
        self.chunks.extend_from_slice(&other.chunks);
        self.len += other.len;
    }

    /// Appends `count` zero bytes.
    pub fn push_zeros(&mut self, mut count: u64) {
        while count > 0 {
            let step = count.min(ZEROS.len() as u64);
            #[expect(clippy::cast_possible_truncation, reason = "at most 4096")]
            self.push(Bytes::from_static(&ZEROS).slice(..step as usize));
            count -= step;
        }
    }

    /// Appends zeros up to the next multiple of `alignment`.
    pub fn pad_to(&mut self, alignment: u64) {
        self.push_zeros(self.len.next_multiple_of(alignment) - self.len);
    }

    /// The bytes before `at` and the others. `None` when there are fewer.
    pub fn split_at(&self, at: u64) -> Option<(Self, Self)> {
        let (mut before, mut after) = (Self::new(), Self::new());
        for chunk in &self.chunks {
            // What is missing in front is no more than a chunk, or takes all of it.
            let missing = usize::try_from(at - before.len).unwrap_or(usize::MAX);
            let cut = missing.min(chunk.len());
            before.push(chunk.slice(..cut));
            after.push(chunk.slice(cut..));
        }
        (before.len == at).then_some((before, after))
    }

    /// All bytes in one piece. Free when there is only one.
    pub fn to_bytes(&self) -> Bytes {
        match self.chunks.as_slice() {
            [] => Bytes::new(),
            [only] => only.clone(),
            many => many.concat().into(),
        }
    }

    /// The bytes as blocks of `size`; the last is padded with zeros.
    pub fn blocks(&self, size: usize) -> impl Iterator<Item = Bytes> + '_ {
        let mut chunks = self.chunks.iter();
        let mut current = Bytes::new();
        std::iter::from_fn(move || {
            if current.is_empty() {
                current = chunks.next()?.clone();
            }
            if current.len() >= size {
                return Some(current.split_to(size));
            }
            let mut block = Vec::with_capacity(size);
            loop {
                let take = current.len().min(size - block.len());
                block.extend_from_slice(&current.split_to(take));
                if block.len() == size {
                    break;
                }
                let Some(next) = chunks.next() else {
                    block.resize(size, 0);
                    break;
                };
                current = next.clone();
            }
            Some(block.into())
        })
    }

    /// SHA-256 of all bytes.
    pub fn sha256(&self) -> Sha256Digest {
        let mut hasher = Sha256::new();
        for chunk in &self.chunks {
            hasher.update(chunk);
        }
        Sha256Digest::new(hasher.finalize().into())
    }
}

impl From<Bytes> for Rope {
    fn from(bytes: Bytes) -> Self {
        let mut rope = Self::new();
        rope.push(bytes);
        rope
    }
}

impl From<Vec<u8>> for Rope {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(pieces: &[&'static [u8]]) -> Rope {
        let mut rope = Rope::new();
        for piece in pieces {
            rope.push(*piece);
        }
        rope
    }

    #[test]
    fn blocks_do_not_depend_on_the_pieces() {
        let expected = vec![Bytes::from_static(b"abcd"), b"efgh".as_slice().into()];
        let splits: [&[&'static [u8]]; 4] = [
            &[b"abcdefgh"],
            &[b"abcd", b"efgh"],
            &[b"a", b"bcdefg", b"h"],
            &[b"abcde", b"fgh"],
        ];
        for pieces in splits {
            assert_eq!(rope(pieces).blocks(4).collect::<Vec<_>>(), expected);
            assert_eq!(rope(pieces).sha256(), Sha256Digest::of(b"abcdefgh"));
            assert_eq!(rope(pieces).to_bytes(), b"abcdefgh".as_slice());
        }
    }

    #[test]
    fn both_parts_of_a_split_have_all_bytes() {
        let whole = rope(&[b"abc", b"de"]);
        for at in 0..=5 {
            let (before, after) = whole.split_at(at).unwrap();
            assert_eq!((before.len(), after.len()), (at, 5 - at));
            let parts = [before.to_bytes(), after.to_bytes()].concat();
            assert_eq!(parts, b"abcde");
        }
        assert!(whole.split_at(6).is_none());
    }

    #[test]
    fn the_last_block_is_padded() {
        let blocks: Vec<_> = rope(&[b"abc", b"de"]).blocks(4).collect();
        assert_eq!(blocks, [b"abcd".as_slice(), b"e\0\0\0"]);
        assert_eq!(Rope::new().blocks(4).count(), 0);
    }

    #[test]
    fn padding_reaches_the_alignment() {
        let mut rope = rope(&[b"abc"]);
        rope.pad_to(10_000);
        assert_eq!(rope.len(), 10_000);
        assert!(rope.to_bytes()[3..].iter().all(|byte| *byte == 0));
        rope.pad_to(10_000);
        assert_eq!(rope.len(), 10_000);
    }
}
