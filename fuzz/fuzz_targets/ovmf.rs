//! OVMF images: errors are fine, panics are bugs.
#![no_main]

use assay_image::kernel_loader::read_kernel_loader;
use assay_tee::ovmf::{parse_ovmf, parse_table, validate_sections};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let table = parse_table(data);
    let _ = read_kernel_loader(data);
    if let Ok(metadata) = parse_ovmf(data) {
        assert!(table.is_ok());
        assert!(validate_sections(&metadata.sections, metadata.base_gpa).is_ok());
    }
});
