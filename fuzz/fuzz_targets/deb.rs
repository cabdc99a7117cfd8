//! Debian packages: errors are fine, panics are bugs.
#![no_main]

use assay_image::deb::parse_deb;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = parse_deb(&bytes::Bytes::copy_from_slice(data));
});
