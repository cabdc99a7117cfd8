//! IGVM files: errors are fine, panics are bugs. What parses has every page in
//! the file.
#![no_main]

use assay_tee::igvm::{Directive, PlatformType, parse_igvm};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = parse_igvm(data) else {
        return;
    };
    assert!(!file.platforms.is_empty());
    for directive in &file.directives {
        if let Directive::PageData(page) = directive {
            let contents = page.contents.map_or(0, <[u8]>::len);
            assert!(contents == 0 || contents as u64 == page.length());
        }
    }
    if let Some(platform) = file.platform(PlatformType::SevSnp) {
        let _ = file.check_overlaps(platform.compatibility_mask);
    }
});
