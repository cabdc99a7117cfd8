//! SHA-384, which a launch digest is made of: thousands of pages, each by itself.
//!
//! One after another goes through AWS-LC. Pages are hashed eight at a time where
//! the processor has AVX-512, which is several times what it can do with one
//! (`cargo xtask bench hashing`).

use assay_tee::Sha384Digest;
use assay_tee::page_info::PAGE_SIZE;
use aws_lc_rs::digest::{SHA384, digest};

#[cfg(target_arch = "x86_64")]
mod eight;

/// A page of 4 KiB.
pub(crate) type Page = [u8; PAGE_SIZE];

/// SHA-384 of bytes.
pub(crate) fn sha384(bytes: &[u8]) -> Sha384Digest {
    let mut array = [0; 48];
    array.copy_from_slice(digest(&SHA384, bytes).as_ref());
    Sha384Digest::new(array)
}

/// SHA-384 of each page.
pub(crate) fn sha384_pages(pages: &[&Page]) -> Vec<Sha384Digest> {
    let mut digests = Vec::with_capacity(pages.len());
    #[cfg(target_arch = "x86_64")]
    let pages = eight::hash(pages, &mut digests);
    digests.extend(pages.iter().map(|page| sha384(*page)));
    digests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pages_have_the_digests_of_each() {
        let mut number = 0x9e37_79b9_7f4a_7c15_u64;
        let mut page = || -> Page {
            std::array::from_fn(|_| {
                number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                number.to_be_bytes()[0]
            })
        };
        let pages: Vec<Page> = (0..35).map(|_| page()).collect();
        for count in [0, 1, 3, 4, 7, 8, 9, 13, 16, 35] {
            let pages: Vec<&Page> = pages.iter().take(count).collect();
            let one_by_one: Vec<_> = pages.iter().map(|page| Sha384Digest::of(*page)).collect();
            assert_eq!(sha384_pages(&pages), one_by_one, "{count} pages");
        }
        let same = [[0; PAGE_SIZE], [0xff; PAGE_SIZE]].repeat(4);
        let same: Vec<&Page> = same.iter().collect();
        assert_eq!(sha384_pages(&same)[1], Sha384Digest::of(&[0xff; PAGE_SIZE]));
    }
}
