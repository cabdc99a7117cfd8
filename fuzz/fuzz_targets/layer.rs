//! A layer of an image, and what its files say that it consists of: errors are
//! fine, panics are bugs, and so is an end of memory.
#![no_main]

use assay_image::flatten::{StoredLayer, flatten, prepare_root};
use assay_image::oci::LayerCompression;
use assay_image::packages::{installed_packages, language_packages, unread_databases};
use assay_tee::Sha256Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let layer = StoredLayer {
        bytes: data.to_vec().into(),
        compression: LayerCompression::None,
    };
    if let Ok(mut tree) = flatten(&[layer], &[Sha256Digest::of(data)]) {
        let _ = (
            installed_packages(&tree),
            language_packages(&tree),
            unread_databases(&tree),
        );
        prepare_root(&mut tree);
    }
});
