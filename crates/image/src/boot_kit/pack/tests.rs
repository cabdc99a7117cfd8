use super::*;
use crate::artifact::tests::{RELEASE, firmware, kernel};
use crate::flatten::{StoredLayer, flatten};
use crate::kernel_config::{Ability, complete, put_config};
use crate::modules::info::module_file;
use crate::oci::LayerCompression;
use crate::uki::tests::stub;

const STATUS: &str = "Package: linux-image\nVersion: 6.12.1-1\nArchitecture: amd64\n\n\
                      Package: bash\nVersion: 5\nArchitecture: amd64\n\n\
                      Package: ovmf\nVersion: 2026\nArchitecture: all\n";

/// What a distribution installs, with one module that no guest loads.
fn installed() -> BTreeMap<String, Bytes> {
    let modules = format!("usr/lib/modules/{RELEASE}");
    let mut files: BTreeMap<String, Bytes> = [
        (format!("boot/vmlinuz-{RELEASE}"), kernel()),
        (format!("boot/config-{RELEASE}"), complete().into()),
        (
            format!("{modules}/modules.builtin"),
            "kernel/virtio_pci.ko\n".into(),
        ),
        (STUB_PATH.to_owned(), stub()),
        ("usr/share/OVMF/OVMF.amdsev.fd".to_owned(), firmware(true)),
        ("var/lib/dpkg/status".to_owned(), STATUS.into()),
        (
            "var/lib/dpkg/info/bash.list".to_owned(),
            "/usr/bin/bash\n".into(),
        ),
        (
            "var/lib/dpkg/info/linux-image.list".to_owned(),
            format!("/boot/vmlinuz-{RELEASE}\n").into(),
        ),
    ]
    .into();
    for (name, depends) in [
        ("virtio_console", ""),
        ("qemu_fw_cfg", ""),
        ("virtio_blk", ""),
        ("dm_verity", "dm-bufio,dm-mod"),
        ("dm_bufio", "dm-mod"),
        ("dm_mod", ""),
        ("erofs", ""),
        ("overlay", ""),
        ("virtio_net", ""),
        ("sev_guest", "tsm"),
        ("tsm", ""),
        ("floppy", ""),
    ] {
        let module = module_file(name, depends, RELEASE, true);
        files.insert(format!("{modules}/kernel/x/{name}.ko"), module.into());
    }
    files
}

fn tree_of(tar: &Rope) -> Tree {
    let bytes = tar.to_bytes();
    let id = Sha256Digest::of(&bytes);
    let layer = StoredLayer {
        bytes,
        compression: LayerCompression::None,
    };
    flatten(&[layer], &[id]).unwrap()
}

fn pack(files: &BTreeMap<String, Bytes>, options: &PackOptions) -> Result<PackedKit, BootKitError> {
    pack_kit(&tree_of(&write(files)), options)
}

#[test]
fn a_kit_has_what_a_guest_needs_and_says_where_it_was() {
    let packed = pack(&installed(), &PackOptions::default()).unwrap();
    let document = &packed.document;
    assert_eq!(document.kernel.from, format!("boot/vmlinuz-{RELEASE}"));
    assert_eq!(
        document.kernel.path,
        format!("usr/lib/modules/{RELEASE}/vmlinuz")
    );
    assert_eq!(document.firmware.from, "usr/share/OVMF/OVMF.amdsev.fd");
    assert_eq!(document.firmware.sha256, Sha256Digest::of(&firmware(true)));
    let modules: Vec<_> = document
        .modules
        .iter()
        .map(|module| module.path.as_str())
        .collect();
    assert_eq!(modules.len(), 11);
    assert!(!modules.contains(&"kernel/x/floppy.ko"));
    // bash has a list in which nothing of the kit is; of ovmf there is no list.
    let packages: Vec<_> = document
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    assert_eq!(packages, ["linux-image", "ovmf"]);

    let kit = super::super::BootKit::from_tree(&tree_of(&packed.tar)).unwrap();
    assert_eq!(kit.document.as_ref(), Some(document));
    let report = kit.report();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(
        report.modules[..5],
        [
            "virtio_console",
            "qemu_fw_cfg",
            "virtio_blk",
            "dm_mod",
            "dm_bufio"
        ]
    );
    assert!(report.abilities[&Ability::Snp].missing.is_empty());
}

#[test]
fn the_same_files_give_the_same_kit() {
    let digest = |files: &BTreeMap<String, Bytes>| {
        let packed = pack(files, &PackOptions::default()).unwrap();
        packed.to_image().unwrap().manifest_digest
    };
    let files = installed();
    let mut beside = files.clone();
    beside.insert("usr/bin/other".to_owned(), Bytes::new());
    assert_eq!(digest(&files), digest(&beside));
    beside.insert(
        format!("boot/config-{RELEASE}"),
        (complete() + "CONFIG_MORE=y\n").into(),
    );
    assert_ne!(digest(&files), digest(&beside));
}

#[test]
fn a_kernel_that_carries_its_configuration_needs_no_file() {
    let mut files = installed();
    files.remove(&format!("boot/config-{RELEASE}"));
    let with_config = put_config(&kernel(), &complete());
    files.insert(format!("boot/vmlinuz-{RELEASE}"), with_config.into());
    let packed = pack(&files, &PackOptions::default()).unwrap();
    let config = &packed.document.config;
    assert_eq!(config.from, "the kernel (CONFIG_IKCONFIG)");
    assert_eq!(config.sha256, Sha256Digest::of(complete().as_bytes()));
}

#[test]
fn all_modules_are_kept_on_demand() {
    let options = PackOptions {
        all_modules: true,
        ..PackOptions::default()
    };
    let packed = pack(&installed(), &options).unwrap();
    assert_eq!(packed.document.modules.len(), 12);
}

#[test]
fn what_is_missing_is_named_before_anything_is_packed() {
    let refused = |options: &PackOptions, change: &dyn Fn(&mut BTreeMap<String, Bytes>)| {
        let mut files = installed();
        change(&mut files);
        pack(&files, options).unwrap_err().to_string()
    };
    let default = PackOptions::default();
    let without = |path: &str| refused(&default, &|files| drop(files.remove(path)));
    let modules = format!("usr/lib/modules/{RELEASE}");
    for (path, said) in [
        (
            format!("boot/config-{RELEASE}"),
            "no configuration of the kernel",
        ),
        (
            STUB_PATH.to_owned(),
            "no file usr/lib/systemd/boot/efi/linuxx64.efi.stub",
        ),
        (
            "usr/share/OVMF/OVMF.amdsev.fd".to_owned(),
            "no file usr/share/ovmf/OVMF.amdsev.fd or usr/share/OVMF/OVMF.amdsev.fd or",
        ),
        (
            format!("{modules}/kernel/x/erofs.ko"),
            "the kernel has no erofs,",
        ),
        (
            format!("{modules}/modules.builtin"),
            "no file usr/lib/modules/",
        ),
        (format!("boot/vmlinuz-{RELEASE}"), "expected one kernel"),
    ] {
        let error = without(&path);
        assert!(error.contains(said), "{path}: {error}");
    }
    let other = PackOptions {
        release: Some("5.0".to_owned()),
        ..PackOptions::default()
    };
    let error = refused(&other, &|_| ());
    assert!(error.contains(&format!("found [\"{RELEASE}\"]")), "{error}");
    let plain = PackOptions {
        firmware: Some("/plain.fd".to_owned()),
        ..PackOptions::default()
    };
    let error = refused(&plain, &|files| {
        files.insert("plain.fd".to_owned(), firmware(false));
    });
    assert!(error.contains("no kernel hashes table"), "{error}");
}
