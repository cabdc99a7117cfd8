//! SHA-384, which a launch digest is made of: thousands of pages each. AWS-LC's
//! is half as fast again as `sha2`'s where a processor has no instructions for
//! SHA-512 (`cargo xtask bench hashing`).

use assay_tee::Sha384Digest;
use aws_lc_rs::digest::{SHA384, digest};

/// SHA-384 of bytes.
pub(crate) fn sha384(bytes: &[u8]) -> Sha384Digest {
    let mut array = [0; 48];
    array.copy_from_slice(digest(&SHA384, bytes).as_ref());
    Sha384Digest::new(array)
}
