//! SVSM binaries: errors are fine, panics are bugs.
#![no_main]

use assay_tee::svsm::parse_svsm;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &[u8])| {
    let (end_gpa, data) = input;
    if let Ok(metadata) = parse_svsm(data, end_gpa) {
        assert!(metadata.base_gpa <= u64::from(metadata.entry));
        assert!(u64::from(metadata.entry) < end_gpa);
    }
});
