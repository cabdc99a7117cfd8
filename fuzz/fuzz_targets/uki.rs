//! EFI executables: sections lie in the file, or have no content.
#![no_main]

use assay_image::bzimage::parse_kernel_release;
use assay_image::pe::PeImage;
use assay_image::uki::parse_uki;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = parse_kernel_release(data);
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(image) = PeImage::parse(data) {
        for section in &image.sections {
            if let Some(content) = section.content(&bytes) {
                assert_eq!(content.len(), usize::try_from(section.virtual_size).unwrap());
            }
        }
    } else {
        assert!(parse_uki(&bytes).is_err());
    }
    let _ = parse_uki(&bytes);
});
