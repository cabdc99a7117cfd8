//! Kernel modules, plain and compressed: errors are fine, panics are bugs.
#![no_main]

use assay_image::modules::info::parse_module;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let data = bytes::Bytes::copy_from_slice(data);
    for path in ["x.ko", "x.ko.xz", "x.ko.gz", "x.ko.zst"] {
        let _ = parse_module(path, &data);
    }
});
