//! The digests of pages, ahead of their measurement: pages can be hashed many at
//! a time, while a launch digest chains them one by one.

use std::mem;

use assay_tee::Sha384Digest;
use assay_tee::page_info::PAGE_SIZE_U64;

use crate::sha384::{Page, sha384_pages};

/// Pages that are hashed together at best, whatever the processor does at once.
const TOGETHER: usize = 8;
/// Distinct pages that are hashed in one go, few enough to stay in the processor's
/// cache.
const BATCH: usize = 8 * TOGETHER;

/// The digests of the contents of pages, one after another, ready to be chained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageDigests {
    /// Of each run of equal pages, how many they are and the digest of one. Four
    /// of five pages of an OVMF image are empty, so runs are hashed once.
    runs: Vec<(u64, Sha384Digest)>,
}

/// Hashes pages that come piece by piece.
#[derive(Debug, Clone, Default)]
pub struct PageHasher {
    digests: PageDigests,
    /// Distinct pages that wait for others, to be hashed together.
    waiting: Vec<Page>,
    /// How long the runs of the waiting pages are so far.
    lengths: Vec<u64>,
}

impl PageDigests {
    /// Hashes pages.
    pub fn of<'a>(pages: impl IntoIterator<Item = &'a Page>) -> Self {
        let mut hasher = PageHasher::default();
        hasher.update(pages);
        hasher.finish()
    }

    /// Of each run of equal pages, how many they are and the digest of one.
    pub(crate) fn runs(&self) -> &[(u64, Sha384Digest)] {
        &self.runs
    }

    /// Length of the pages in bytes.
    pub fn length(&self) -> u64 {
        let pages: u64 = self.runs.iter().map(|(length, _)| length).sum();
        pages.saturating_mul(PAGE_SIZE_U64)
    }
}

impl PageHasher {
    /// Hashes the next pages, sooner or later.
    pub fn update<'a>(&mut self, pages: impl IntoIterator<Item = &'a Page>) {
        let waiting = mem::take(&mut self.waiting);
        let mut batch: Vec<&Page> = Vec::with_capacity(BATCH);
        batch.extend(&waiting);
        for page in pages {
            if batch.last().is_some_and(|last| is_same(last, page)) {
                if let Some(length) = self.lengths.last_mut() {
                    *length += 1;
                }
                continue;
            }
            if batch.len() == BATCH {
                self.hash(&mut batch, BATCH);
            }
            batch.push(page);
            self.lengths.push(1);
        }
        // The run of the last page may go on.
        let complete = batch.len().saturating_sub(1);
        self.hash(&mut batch, complete - complete % TOGETHER);
        self.waiting.extend(batch.into_iter().copied());
    }

    /// The digests of all pages.
    pub fn finish(mut self) -> PageDigests {
        let waiting = mem::take(&mut self.waiting);
        self.hash(&mut waiting.iter().collect(), waiting.len());
        self.digests
    }

    fn hash(&mut self, batch: &mut Vec<&Page>, count: usize) {
        let pages: Vec<_> = batch.drain(..count).collect();
        let runs = self.lengths.drain(..count).zip(sha384_pages(&pages));
        self.digests.runs.extend(runs);
    }
}

/// Whether two pages are equal. The comparison of the C library goes byte by byte
/// with musl, which takes longer than to hash what differs.
fn is_same(page: &Page, other: &Page) -> bool {
    let (words, other) = (page.as_chunks::<8>().0, other.as_chunks::<8>().0);
    let mut lines = words.chunks(16).zip(other.chunks(16));
    lines.all(|(line, other)| {
        let pairs = line.iter().zip(other);
        let differences =
            pairs.map(|(word, other)| u64::from_ne_bytes(*word) ^ u64::from_ne_bytes(*other));
        differences.fold(0, |all, difference| all | difference) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_tee::page_info::PAGE_SIZE;

    #[test]
    fn pieces_have_the_digests_of_the_whole() {
        // Runs of one, two and many pages, and one longer than a batch.
        let contents = (0..=255_u8).flat_map(|byte| {
            let run = match byte {
                200 => 100,
                _ => usize::from(byte % 3) + 1,
            };
            vec![[byte; PAGE_SIZE]; run]
        });
        let pages: Vec<Page> = contents.collect();
        let whole = PageDigests::of(&pages);
        assert_eq!(whole.length(), pages.len() as u64 * PAGE_SIZE_U64);
        let digests: Vec<_> = whole
            .runs()
            .iter()
            .flat_map(|(length, digest)| vec![*digest; usize::try_from(*length).unwrap()])
            .collect();
        let one_by_one: Vec<_> = pages.iter().map(|page| Sha384Digest::of(page)).collect();
        assert_eq!(digests, one_by_one);
        for piece in [1, 2, 7, 16, 63, 64, 65, 400] {
            let mut hasher = PageHasher::default();
            pages.chunks(piece).for_each(|pages| hasher.update(pages));
            assert_eq!(hasher.finish(), whole, "{piece} pages at a time");
        }
        assert_eq!(PageDigests::of([]), PageDigests::default());
    }

    #[test]
    fn any_bit_tells_two_pages_apart() {
        let page = [0x5a; PAGE_SIZE];
        assert!(is_same(&page, &page.clone()));
        for bit in 0..PAGE_SIZE * 8 {
            let mut other = page;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_same(&page, &other), "bit {bit}");
        }
    }
}
