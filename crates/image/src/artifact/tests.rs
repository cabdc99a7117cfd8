#![allow(clippy::cast_possible_truncation)] // small numbers

use std::collections::BTreeMap;

use super::*;
use crate::authenticode::ImageSigner;
use crate::hardening::{Exception, Hardening, SettingState};
use crate::kernel_config::complete;
use crate::kernel_loader::tests::synthetic_firmware::{HASH_GUIDS, build_volume, kernel_loader};
use crate::modules::info::module_file;
use crate::oci::{LayerCompression, RunConfig};
use crate::recipe::{ImageSource, Output, Recipe};
use crate::rope::InMemory;
use crate::uki::tests::{pe_image, stub};

pub(crate) const RELEASE: &str = "6.12.1-test";

/// A signer for Secure Boot alone.
pub(crate) fn secure_boot(signer: &ImageSigner) -> Signers<'_> {
    Signers {
        secure_boot: Some(signer),
        pcrs: None,
    }
}

/// A GUID in the byte order of the wire.
fn guid(text: &str) -> Vec<u8> {
    let bytes = hex::decode(text.replace('-', "")).unwrap();
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    order.iter().map(|index| bytes[*index]).collect()
}

/// Firmware that says what OVMF says about the hashes table, if it has one.
pub(crate) fn firmware(with_table: bool) -> Bytes {
    let mut out = build_volume(&[&kernel_loader(HASH_GUIDS)]);
    let metadata_at = out.len();
    out.resize(metadata_at + 4096, 0xf4);
    let mut metadata = b"ASEV".to_vec();
    for number in [28_u32, 1, 1, 0x81_0000, 0x1000, 0x10] {
        metadata.extend(number.to_le_bytes());
    }
    out[metadata_at..metadata_at + 28].copy_from_slice(&metadata);

    let entry = |data: &[u8], name: &str| {
        [data, &((data.len() + 18) as u16).to_le_bytes(), &guid(name)].concat()
    };
    let mut table = Vec::new();
    if with_table {
        let area = [0x81_0c00_u32.to_le_bytes(), 0x400_u32.to_le_bytes()].concat();
        table.extend(entry(&area, "7255371f-3a3b-4b04-927b-1da6efa8d454"));
    }
    let offset = ((out.len() - metadata_at) as u32).to_le_bytes();
    table.extend(entry(&offset, "dc886566-984a-4798-a75e-5585a7bf67cc"));
    table.extend(((table.len() + 18) as u16).to_le_bytes());
    table.extend(guid("96b582de-1fb2-45f7-baea-a366c55a082d"));
    let end = out.len() - 32;
    out[end - table.len()..end].copy_from_slice(&table);
    out.into()
}

/// An EFI kernel that names its release in a boot header.
pub(crate) fn kernel() -> Bytes {
    let mut text = vec![0; 0x1000];
    // The section starts at 0x400 in the file; the header counts from 0x200.
    text[..RELEASE.len()].copy_from_slice(RELEASE.as_bytes());
    let mut kernel = pe_image(true, &[(".text", &text)]).to_vec();
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x200_u16.to_le_bytes());
    kernel.into()
}

pub(super) type Files = BTreeMap<String, Bytes>;

pub(super) fn kit_files() -> Files {
    let modules = format!("usr/lib/modules/{RELEASE}");
    let mut files: Files = [
        (format!("{modules}/vmlinuz"), kernel()),
        (crate::boot_kit::STUB_PATH.to_owned(), stub()),
        (crate::boot_kit::FIRMWARE_PATH.to_owned(), firmware(true)),
        (
            format!("{modules}/modules.builtin"),
            Bytes::from_static(b"kernel/x/virtio_pci.ko\n"),
        ),
        (format!("{modules}/config"), complete().into()),
    ]
    .into();
    let mut dep = String::new();
    for name in [
        "virtio_console",
        "qemu_fw_cfg",
        "virtio_blk",
        "dm-verity",
        "erofs",
        "overlay",
        "virtio_net",
        "sev-guest",
    ] {
        let path = format!("kernel/x/{name}.ko");
        let module = module_file(name, "", RELEASE, true);
        files.insert(format!("{modules}/{path}"), module.into());
        dep += &path;
        dep += ":\n";
    }
    files.insert(format!("{modules}/modules.dep"), dep.into());
    files
}

fn image(tar: Rope, run: RunConfig) -> SourceImage {
    let options = ImageOptions {
        run,
        ..ImageOptions::default()
    };
    let image = OciImage::assemble(options, &[Layer::tar(tar)]).unwrap();
    let bytes = image.layers[0].content().to_bytes();
    SourceImage {
        config: image.config.content().to_bytes(),
        layers: vec![StoredLayer {
            bytes,
            compression: LayerCompression::None,
        }],
    }
}

pub(super) fn kit(files: &Files) -> SourceImage {
    let mut tar = TarBuilder::new();
    for (path, content) in files {
        tar.file(path, 0o644, Owner::ROOT, content.clone());
    }
    image(tar.finish(), RunConfig::default())
}

fn web_config() -> RunConfig {
    RunConfig {
        entrypoint: Some(vec!["/bin/web".to_owned()]),
        user: Some("web".to_owned()),
        ..RunConfig::default()
    }
}

fn web(write: impl FnOnce(&mut TarBuilder)) -> SourceImage {
    let mut tar = TarBuilder::new();
    write(&mut tar);
    image(tar.finish(), web_config())
}

/// An image like that of [`inputs`], with another program and more files.
pub(crate) fn web_with(mode: u32, program: &[u8], more: &[&str]) -> SourceImage {
    web(|tar| {
        tar.file("bin/web", mode, Owner::ROOT, program.to_vec())
            .file("etc/passwd", 0o644, Owner::ROOT, PASSWD.to_vec());
        for path in more {
            tar.file(path, 0o644, Owner::ROOT, b"more".to_vec());
        }
    })
}

const PASSWD: &[u8] = b"web:x:101:102::/:/\n";

/// The recipe of [`inputs`].
pub(super) fn recipe() -> Recipe {
    let reference = |name: &str| ImageSource {
        image: format!(
            "registry.example/{name}@{}",
            Sha256Digest::of(name.as_bytes())
        ),
    };
    Recipe {
        version: Recipe::VERSION,
        rootfs: reference("web"),
        boot_kit: reference("kit"),
        layout: Layout::DmVerity,
        compression: Compression::None,
        hardening: Hardening::default(),
        git: None,
        cmdline: Some("test=1".to_owned()),
        uki: UkiFiles::default(),
        output: Output {
            repository: "registry.example/guest".to_owned(),
        },
    }
}

/// The recipe of [`inputs`] with a setting off.
pub(crate) fn switched_off(setting: Setting) -> ValidRecipe {
    let hardening = Hardening {
        exceptions: vec![Exception {
            setting,
            reason: "a test".to_owned(),
        }],
    };
    let recipe = Recipe {
        hardening,
        ..recipe()
    };
    recipe.validate().unwrap()
}

pub(crate) fn inputs() -> BuildInputs {
    BuildInputs {
        recipe: recipe().validate().unwrap(),
        rootfs: web(|tar| {
            tar.file("bin/web", 0o755, Owner::ROOT, vec![1; 5000]).file(
                "etc/passwd",
                0o644,
                Owner::ROOT,
                PASSWD.to_vec(),
            );
        }),
        boot_kit: kit(&kit_files()),
        agent: Bytes::from_static(b"\x7fELF\x02\x01agent"),
        keep: Arc::new(InMemory),
    }
}

pub(crate) fn initramfs_inputs() -> BuildInputs {
    let mut inputs = inputs();
    inputs.recipe.layout = Layout::Initramfs;
    inputs
}

#[test]
fn an_artifact_without_a_disk_is_pinned() {
    // Changing this changes launch digests: see CHANGELOG, MEASUREMENT.
    let artifact = build(&initramfs_inputs()).unwrap();
    assert_eq!(
        artifact.manifest.uki.sha256.to_string(),
        "sha256:35cee74e8df2430543dfc56b38ac7810e9f9a93b7dc6ad611408e6ee54b0c11b"
    );
    let names: Vec<_> = artifact.files.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["manifest.json", "firmware.fd", "uki.efi"]);
}

#[test]
fn the_artifact_is_pinned() {
    // Changing this changes launch digests: see CHANGELOG, MEASUREMENT.
    let artifact = build(&inputs()).unwrap();
    let manifest = &artifact.manifest;
    assert_eq!(manifest.uki.uname, RELEASE);
    assert!(manifest.uki.cmdline.starts_with("console="));
    assert!(manifest.uki.cmdline.ends_with(" test=1"));
    assert_eq!(
        [
            manifest.uki.sha256,
            manifest.root_disk.as_ref().unwrap().sha256
        ]
        .map(|digest| digest.to_string()),
        [
            "sha256:f6141ae26afd7379fc252eab1e0a99beb9e54e87ddb0980f836b04e1446ae323",
            "sha256:23858ecc8058e2427aabdb26315d7aafddd5fb43b25e4d317db22dcf3024febe"
        ]
    );
    let names: Vec<_> = artifact.files.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        ["manifest.json", "firmware.fd", "uki.efi", "rootfs.img"]
    );
}

#[test]
fn order_and_times_in_an_archive_do_not_matter() {
    let expected = build(&inputs())
        .unwrap()
        .to_image()
        .unwrap()
        .manifest_digest;
    let mut builder = tar::Builder::new(Vec::new());
    let web = [1; 5000];
    for (path, mode, content) in [
        ("./etc/passwd", 0o644, PASSWD),
        ("bin/web", 0o755, web.as_slice()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_username("builder").unwrap();
        builder.append_data(&mut header, path, content).unwrap();
    }
    let tar = Rope::from(builder.into_inner().unwrap());
    let shuffled = BuildInputs {
        rootfs: image(tar, web_config()),
        ..inputs()
    };
    assert_eq!(
        build(&shuffled)
            .unwrap()
            .to_image()
            .unwrap()
            .manifest_digest,
        expected
    );
}

#[test]
fn every_input_counts() {
    let base = build(&inputs()).unwrap().manifest;
    let with = |change: &dyn Fn(&mut BuildInputs)| {
        let mut inputs = inputs();
        change(&mut inputs);
        build(&inputs).unwrap().manifest
    };
    let agent = with(&|inputs| inputs.agent = Bytes::from_static(b"\x7fELF\x02\x01other"));
    assert_ne!(agent.uki.sha256, base.uki.sha256);
    assert_eq!(agent.root_disk, base.root_disk);
    let root = |manifest: &Manifest| manifest.root_disk.as_ref().unwrap().root.clone();
    let file = with(&|inputs| {
        inputs.rootfs = web(|tar| {
            tar.file("bin/web", 0o755, Owner::ROOT, vec![2; 5000]).file(
                "etc/passwd",
                0o644,
                Owner::ROOT,
                PASSWD.to_vec(),
            );
        });
    });
    assert_ne!(root(&file), root(&base));
    assert_ne!(file.uki.sha256, base.uki.sha256);
    let user = with(&|inputs| {
        let run = RunConfig {
            user: Some("7".to_owned()),
            ..web_config()
        };
        let config: ImageConfig = serde_json::from_slice(&inputs.rootfs.config).unwrap();
        let config = ImageConfig {
            config: run,
            ..config
        };
        inputs.rootfs.config = serde_json::to_vec(&config).unwrap().into();
    });
    assert_eq!(user.root_disk, base.root_disk);
    assert_ne!(user.uki.sha256, base.uki.sha256);
}

#[test]
fn choices_change_what_they_are_about() {
    let with = |layout, compression| {
        let mut inputs = inputs();
        let content = vec![1; 70_000];
        inputs.rootfs = web(|tar| {
            tar.file("bin/web", 0o755, Owner::ROOT, content).file(
                "etc/passwd",
                0o644,
                Owner::ROOT,
                PASSWD.to_vec(),
            );
        });
        inputs.recipe.layout = layout;
        inputs.recipe.compression = compression;
        build(&inputs).unwrap().manifest
    };
    let base = with(Layout::DmVerity, Compression::None);
    let inside = with(Layout::Initramfs, Compression::None);
    let packed = with(Layout::DmVerity, Compression::Zstd);
    let disk = |manifest: &Manifest| manifest.root_disk.clone().unwrap();
    assert_eq!(disk(&packed).compression, Compression::Zstd);
    assert!(disk(&packed).size < disk(&base).size);
    let sections = |manifest: &Manifest| -> Vec<Section> {
        let of_guest = |section: &&Section| section.name != ".initrd";
        let sections = manifest.uki.sections.iter().filter(of_guest);
        sections.cloned().collect()
    };
    for other in [&inside, &packed] {
        // guest.json, and with it the initrd, names the root; nothing else does.
        assert_ne!(other.uki.sha256, base.uki.sha256);
        assert_eq!(sections(other), sections(&base));
        assert_eq!(other.firmware, base.firmware);
        assert_eq!(other.inputs, base.inputs);
    }
}

#[test]
fn a_setting_that_is_off_says_why_and_changes_the_launch_digest() {
    let base = build(&inputs()).unwrap().manifest;
    assert!(
        base.hardening
            .values()
            .all(|state| *state == SettingState::On)
    );
    for setting in Setting::ALL {
        let mut inputs = inputs();
        inputs.recipe = switched_off(setting);
        let manifest = build(&inputs).unwrap().manifest;
        let reason = "a test".to_owned();
        assert_eq!(manifest.hardening[&setting], SettingState::Off { reason });
        assert_ne!(manifest.uki.sha256, base.uki.sha256, "{setting}");
        assert_eq!(manifest.root_disk, base.root_disk);
    }
}

#[test]
fn what_somebody_signed_can_be_built_again() {
    let signer = crate::authenticode::tests::signer();
    let mut steps = Vec::new();
    let signers = secure_boot(&signer);
    let signed = build_in_steps(&inputs(), signers, &mut |step| steps.push(step));
    let signed = signed.unwrap().content();
    let all = [
        BuildStep::Flatten,
        BuildStep::Erofs,
        BuildStep::Verity,
        BuildStep::Uki,
    ];
    assert_eq!(steps, all);
    let again = build_signed_as(&inputs(), &signed.uki, &[])
        .unwrap()
        .content();
    assert_eq!(again.uki, signed.uki);
    assert_eq!(again.manifest, signed.manifest);
    // Signatures of another UKI are not put to this one.
    let mut other = inputs();
    other.agent = Bytes::from_static(b"\x7fELF\x02\x01other");
    let unsigned = build(&other).unwrap().content();
    let again = build_signed_as(&other, &signed.uki, &[]).unwrap().content();
    assert_eq!(again.uki, unsigned.uki);
    let plain = build(&inputs()).unwrap().content();
    let again = build_signed_as(&inputs(), &plain.uki, &[])
        .unwrap()
        .content();
    assert_eq!(again.uki, plain.uki);
}

#[test]
fn unusable_inputs_are_named() {
    let refused = |change: &dyn Fn(&mut BuildInputs)| {
        let mut inputs = inputs();
        change(&mut inputs);
        build(&inputs).unwrap_err()
    };
    let kit_without = |change: &dyn Fn(&mut Files)| {
        let mut files = kit_files();
        change(&mut files);
        match refused(&|inputs| inputs.boot_kit = kit(&files)) {
            BuildError::BootKit(error) => error,
            other => panic!("{other}"),
        }
    };
    let modules = format!("usr/lib/modules/{RELEASE}");
    assert!(matches!(
        kit_without(&|files| {
            files.insert(crate::boot_kit::FIRMWARE_PATH.to_owned(), firmware(false));
        }),
        BootKitError::FirmwareLacksHashTable
    ));
    assert!(matches!(
        kit_without(&|files| drop(files.remove(&format!("{modules}/vmlinuz")))),
        BootKitError::Kernels { found } if found.is_empty()
    ));
    assert!(matches!(
        kit_without(&|files| drop(files.insert("boot/vmlinuz-7".to_owned(), kernel())
            .or(files.insert("usr/lib/modules/7/modules.dep".to_owned(), Bytes::new())))),
        BootKitError::Kernels { found } if found.len() == 2
    ));
    assert!(matches!(
        kit_without(&|files| drop(files.remove(&format!("{modules}/kernel/x/erofs.ko")))),
        BootKitError::MissingFile { path } if path.ends_with("erofs.ko")
    ));
    assert!(matches!(
        kit_without(&|files| {
            files.insert(format!("{modules}/modules.dep"), Bytes::new());
        }),
        BootKitError::Unfit { problems, .. } if problems.len() == 8
    ));
    assert!(matches!(
        kit_without(&|files| drop(files.remove(&format!("{modules}/config")))),
        BootKitError::NoConfig { release } if release == RELEASE
    ));
    assert!(matches!(
        kit_without(&|files| {
            let config = complete().replace("CONFIG_DM_VERITY=m", "# CONFIG_DM_VERITY is not set");
            files.insert(format!("{modules}/config"), config.into());
        }),
        BootKitError::Unfit { problems, .. }
            if problems == ["the root disk cannot be verified: CONFIG_DM_VERITY must be y or m"]
    ));
    let unsigned = |files: &mut Files| {
        let module = module_file("overlay", "", RELEASE, false);
        files.insert(format!("{modules}/kernel/x/overlay.ko"), module.into());
    };
    assert!(matches!(
        kit_without(&unsigned),
        BootKitError::Unfit { problems, .. }
            if problems.len() == 1 && problems[0].starts_with("module overlay has no signature")
    ));
    let mut reasoned = inputs();
    let mut files = kit_files();
    unsigned(&mut files);
    reasoned.boot_kit = kit(&files);
    reasoned.recipe = switched_off(Setting::ModuleSignatures);
    build(&reasoned).unwrap();
    assert!(matches!(
        kit_without(&|files| {
            let module = module_file("overlay", "", "6.13.0", true);
            files.insert(format!("{modules}/kernel/x/overlay.ko"), module.into());
        }),
        BootKitError::Unfit { problems, .. }
            if problems == ["module overlay is for kernel 6.13.0: pack the kit from one kernel"]
    ));
    assert!(matches!(
        kit_without(&|files| drop(files.remove(crate::boot_kit::STUB_PATH))),
        BootKitError::MissingFile { .. }
    ));
    assert!(matches!(
        refused(&|inputs| inputs.agent = Bytes::from_static(b"#!/bin/sh")),
        BuildError::Agent
    ));
    assert!(matches!(
        refused(&|inputs| inputs.rootfs.config = Bytes::from_static(b"{}")),
        BuildError::Config {
            image: "rootfs",
            ..
        }
    ));
    assert!(matches!(
        refused(&|inputs| {
            let text = String::from_utf8(inputs.rootfs.config.to_vec()).unwrap();
            inputs.rootfs.config = text.replace("amd64", "arm64").into();
        }),
        BuildError::Platform { image: "rootfs", platform } if platform == "linux/arm64"
    ));
    assert!(matches!(
        refused(&|inputs| inputs.rootfs.layers.clear()),
        BuildError::Flatten {
            image: "rootfs",
            ..
        }
    ));
}
