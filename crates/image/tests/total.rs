//! Parsers of foreign bytes return; they never panic.

use assay_image::boot_kit::{BootKit, PackOptions, pack_kit};
use assay_image::deb::parse_deb;
use assay_image::flatten::{StoredLayer, flatten};
use assay_image::kernel_config::KernelConfig;
use assay_image::modules::info::parse_module;
use assay_image::oci::LayerCompression;
use assay_image::packages::{distribution, installed_packages, language_packages};
use assay_image::tarball::{Owner, TarBuilder};
use assay_tee::Sha256Digest;
use proptest::collection::vec;
use proptest::prelude::*;

/// An ar archive with members of these contents.
fn archive(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, content) in members {
        let header = format!(
            "{name:<16}0           0     0     100644  {:<10}`\n",
            content.len()
        );
        out.extend(header.into_bytes());
        out.extend(content);
        out.resize(out.len().next_multiple_of(2), b'\n');
    }
    out
}

proptest! {
    #[test]
    fn packages(bytes in vec(any::<u8>(), 0..200), ending in "(tar|xz|gz|zst|x)?") {
        let _ = parse_deb(&bytes.clone().into());
        let data = format!("data.tar.{ending}");
        let members = [
            ("debian-binary", b"2.0\n".to_vec()),
            ("control.tar", bytes.clone()),
            (data.as_str(), bytes),
        ];
        let _ = parse_deb(&archive(&members).into());
    }

    #[test]
    fn modules(bytes in vec(any::<u8>(), 0..300), ending in "(ko|xz|gz|zst)") {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.extend(&bytes);
        for bytes in [bytes, elf] {
            let _ = parse_module(&format!("x.{ending}"), &bytes.into());
        }
    }

    #[test]
    fn configurations(text in "(CONFIG_[A-B]=[ymn\"]{0,2}\n|# x\n|.{0,3}\n){0,20}") {
        let _ = KernelConfig::parse(&text);
    }

    #[test]
    fn databases(text in "((Package|Version|P|V|Status): ?[a-b \n]{0,4}\n|\n){0,20}") {
        let mut tar = TarBuilder::new();
        for path in [
            "var/lib/dpkg/status",
            "lib/apk/db/installed",
            "etc/os-release",
            "usr/share/assay/kit.json",
            "var/lib/rpm/rpmdb.sqlite",
            "x.dist-info/METADATA",
            "node_modules/x/package.json",
        ] {
            tar.file(path, 0o644, Owner::ROOT, text.clone().into_bytes());
        }
        let bytes = tar.finish().to_bytes();
        let id = Sha256Digest::of(&bytes);
        let layer = StoredLayer { bytes, compression: LayerCompression::None };
        let tree = flatten(&[layer], &[id]).expect("an archive of ours");
        let _ = (installed_packages(&tree), language_packages(&tree), distribution(&tree));
        prop_assert!(BootKit::from_tree(&tree).is_err());
        prop_assert!(pack_kit(&tree, &PackOptions::default()).is_err());
    }
}
