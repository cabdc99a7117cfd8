//! A database of rpm in each of its formats: errors are fine, panics are bugs.
#![no_main]

use assay_image::flatten::{StoredLayer, flatten};
use assay_image::oci::LayerCompression;
use assay_image::packages::{installed_packages, package_origins, unread_databases};
use assay_image::tarball::{Owner, TarBuilder};
use assay_tee::Sha256Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut tar = TarBuilder::new();
    for name in ["rpmdb.sqlite", "Packages.db", "Packages"] {
        let path = format!("var/lib/rpm/{name}");
        tar.file(path, 0o644, Owner::ROOT, data.to_vec());
    }
    let bytes = tar.finish().to_bytes();
    let id = Sha256Digest::of(&bytes);
    let layer = StoredLayer {
        bytes,
        compression: LayerCompression::None,
    };
    if let Ok(tree) = flatten(&[layer], &[id]) {
        let _ = (installed_packages(&tree), unread_databases(&tree));
        let _ = package_origins(&tree, &["etc/x".to_owned()]);
    }
});
