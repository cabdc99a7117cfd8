//! Partition tables: no more entries than the array has bytes for, and each of at least
//! one sector.
#![no_main]

use assay_tee::gpt::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(array) = parse_header(data) {
        let partitions = array.parse_partitions(data);
        assert!(partitions.len() <= data.len() / 128);
        assert!(partitions.iter().all(|partition| partition.sectors > 0));
    }
});
