use super::*;
use crate::artifact::tests::secure_boot;
use crate::artifact::tests::{initramfs_inputs, inputs};
use crate::artifact::{Artifact, build, build_signed};
use crate::hardening::SettingState;
use crate::newc::{EncodeNewcError, NewcBuilder};
use crate::oci::LayerCompression;
use crate::recipe::Compression;
use crate::tarball::Owner;

fn content(artifact: &Artifact) -> ArtifactContent {
    let file = |name: &str| {
        let (_, rope) = artifact
            .files
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap();
        rope.to_bytes()
    };
    ArtifactContent {
        manifest: file(MANIFEST_PATH),
        uki: file(UKI_PATH),
        firmware: file(FIRMWARE_PATH),
        root_disk: artifact
            .manifest
            .root_disk
            .as_ref()
            .map(|_| file(ROOT_DISK_PATH)),
    }
}

fn off() -> SettingState {
    SettingState::Off {
        reason: "a lie".to_owned(),
    }
}

#[test]
fn what_was_built_is_read() {
    let artifact = build(&inputs()).unwrap();
    let image = artifact.to_image().unwrap();
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| StoredLayer {
            bytes: layer.content().to_bytes(),
            compression: LayerCompression::None,
        })
        .collect();
    let read = read_artifact(&image.config.content().to_bytes(), &layers).unwrap();
    assert_eq!(read.manifest, artifact.manifest);
    assert_eq!(read.guest_config.process.args, ["/bin/web"]);
    assert_eq!(read.guest_config.process.uid, 101);
    assert_eq!(
        read.guest_config.root,
        artifact.manifest.root_disk.unwrap().root
    );
    assert_eq!(read.guest_config.modules.len(), 8);
}

#[test]
fn no_byte_of_any_file_can_change() {
    let good = content(&build(&inputs()).unwrap());
    let flip = |bytes: &Bytes, at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        Bytes::from(bytes)
    };
    let disk = good.root_disk.as_ref().unwrap();
    for step in 0..16 {
        let at = |bytes: &Bytes| step * (bytes.len() - 1) / 15;
        let tables = [
            ArtifactContent {
                uki: flip(&good.uki, at(&good.uki)),
                ..good.clone()
            },
            ArtifactContent {
                firmware: flip(&good.firmware, at(&good.firmware)),
                ..good.clone()
            },
            ArtifactContent {
                root_disk: Some(flip(disk, at(disk))),
                ..good.clone()
            },
        ];
        for bad in tables {
            let error = read_artifact_content(&bad).unwrap_err();
            assert!(matches!(error, ReadArtifactError::Untrue { .. }), "{error}");
        }
    }
}

/// Changes manifest values without changing files.
#[test]
fn a_manifest_that_lies_is_refused() {
    type Lie = fn(&mut Manifest);
    let artifact = build(&inputs()).unwrap();
    let good = content(&artifact);
    let lies: [(&str, Lie); 16] = [
        ("hardening", |m| {
            m.hardening.insert(Setting::Lockdown, off());
        }),
        ("hardening.ReadOnlyRoot", |m| {
            m.hardening.insert(Setting::ReadOnlyRoot, off());
        }),
        ("hardening.NoExec", |m| {
            m.hardening.insert(Setting::NoExec, off());
        }),
        ("uki.sha256", |m| m.uki.sha256 = Sha256Digest::of(b"x")),
        ("uki.path", |m| m.uki.path = "../uki.efi".to_owned()),
        ("uki.cmdline", |m| m.uki.cmdline.push('x')),
        ("uki.uname", |m| m.uki.uname.push('x')),
        ("uki.sections", |m| m.uki.sections[0].size += 1),
        ("uki.pcrs", |m| {
            m.uki.pcrs.remove(&11);
        }),
        ("firmware.size", |m| m.firmware.size += 1),
        ("inputs.agent", |m| m.inputs.agent = Sha256Digest::of(b"x")),
        ("rootDisk.sha256", |m| {
            m.root_disk.as_mut().unwrap().sha256 = Sha256Digest::of(b"x");
        }),
        ("rootDisk.compression", |m| {
            m.root_disk.as_mut().unwrap().compression = Compression::Zstd;
        }),
        ("layout", |m| m.layout = Layout::Initramfs),
        ("rootDisk", |m| m.root_disk = None),
        ("rootDisk.root", |m| {
            m.root_disk.as_mut().unwrap().root = RootFs::Initramfs;
        }),
    ];
    let mut silent = artifact.manifest.clone();
    silent.hardening.remove(&Setting::Lockdown);
    let manifest = serde_json::to_vec(&silent).unwrap().into();
    let error = read_artifact_content(&ArtifactContent {
        manifest,
        ..good.clone()
    });
    assert!(matches!(error, Err(ReadArtifactError::Hardening)));
    for (expected, lie) in lies {
        let mut manifest = artifact.manifest.clone();
        lie(&mut manifest);
        let manifest = serde_json::to_vec(&manifest).unwrap().into();
        let error = read_artifact_content(&ArtifactContent {
            manifest,
            ..good.clone()
        });
        match error.unwrap_err() {
            ReadArtifactError::Untrue { field, .. } => assert_eq!(field, expected),
            other => panic!("{expected}: {other}"),
        }
    }
}

/// Changes the disk and every digest of it in the manifest: what the UKI
/// enforces still differs.
#[test]
fn a_disk_that_the_guest_would_refuse_is_refused() {
    let artifact = build(&inputs()).unwrap();
    let good = content(&artifact);
    let good_disk = good.root_disk.as_ref().unwrap();
    for at in [0, good_disk.len() - 4096] {
        let mut disk = good_disk.to_vec();
        disk[at] ^= 1;
        let mut manifest = artifact.manifest.clone();
        manifest.root_disk.as_mut().unwrap().sha256 = Sha256Digest::of(&disk);
        let bad = ArtifactContent {
            manifest: serde_json::to_vec(&manifest).unwrap().into(),
            root_disk: Some(disk.into()),
            ..good.clone()
        };
        let error = read_artifact_content(&bad).unwrap_err();
        let refused = matches!(
            error,
            ReadArtifactError::Untrue {
                field: "rootDisk.root.rootHash",
                ..
            } | ReadArtifactError::RootDisk { .. }
        );
        assert!(refused, "{error}");
    }
}

#[test]
fn an_artifact_without_a_disk_is_read() {
    let artifact = build(&initramfs_inputs()).unwrap();
    assert_eq!(artifact.manifest.root_disk, None);
    let good = content(&artifact);
    let read = read_artifact_content(&good).unwrap();
    assert_eq!(read.guest_config.root, RootFs::Initramfs);
    // A disk that nothing speaks of, and a disk in place of none.
    let disk = content(&build(&inputs()).unwrap()).root_disk;
    let error = read_artifact_content(&ArtifactContent {
        root_disk: disk,
        ..good.clone()
    });
    assert!(matches!(
        error,
        Err(ReadArtifactError::Untrue {
            field: "rootDisk",
            ..
        })
    ));
    let mut manifest = artifact.manifest;
    manifest.layout = Layout::DmVerity;
    let error = read_artifact_content(&ArtifactContent {
        manifest: serde_json::to_vec(&manifest).unwrap().into(),
        ..good
    });
    assert!(matches!(
        error,
        Err(ReadArtifactError::Untrue {
            field: "layout",
            ..
        })
    ));
}

#[test]
fn entries_that_the_kernel_could_put_elsewhere_are_refused() {
    type Write = fn(&mut NewcBuilder) -> Result<&mut NewcBuilder, EncodeNewcError>;
    let empty = Bytes::new;
    let rows: [(&str, Write); 6] = [
        ("init", |archive| {
            archive.file("init", 0o644, Owner::ROOT, Bytes::new())
        }),
        ("./etc//assay/guest.json", |archive| {
            archive.file("./etc//assay/guest.json", 0o644, Owner::ROOT, Bytes::new())
        }),
        ("link/init", |archive| {
            archive
                .symlink("link", 0o777, Owner::ROOT, Bytes::from_static(b"/"))?
                .file("link/init", 0o644, Owner::ROOT, Bytes::new())
        }),
        ("a/..", |archive| {
            archive
                .directory("a", 0o755, Owner::ROOT)?
                .directory("a/..", 0o755, Owner::ROOT)
        }),
        ("/x", |archive| {
            archive.file("/x", 0o644, Owner::ROOT, Bytes::new())
        }),
        ("b/x", |archive| {
            archive.file("b/x", 0o644, Owner::ROOT, Bytes::new())
        }),
    ];
    for (bad, write) in rows {
        let mut archive = NewcBuilder::new();
        archive.file("init", 0o755, Owner::ROOT, empty()).unwrap();
        write(&mut archive).unwrap();
        let entries = parse_newc(&archive.finish().to_bytes()).unwrap();
        let error = check_places(&entries).unwrap_err();
        assert!(
            matches!(&error, ReadArtifactError::InitrdEntry { path } if path == bad),
            "{bad}: {error}"
        );
    }
}

/// The kernel believes the last of a parameter.
#[test]
fn a_command_line_that_undoes_what_is_on_is_refused() {
    let cmdlines = [
        " lockdown=none",
        " module.sig_enforce=0",
        " init_on_alloc=0 x",
        " rdinit=/bin/sh",
    ];
    for more in cmdlines {
        let mut inputs = inputs();
        inputs.recipe.cmdline = inputs.recipe.hardening.cmdline() + more;
        let artifact = build(&inputs).unwrap();
        let error = read_artifact_content(&content(&artifact)).unwrap_err();
        assert!(
            matches!(
                error,
                ReadArtifactError::Cmdline(RecipeError::CmdlineReserved(_))
            ),
            "{more}: {error}"
        );
    }
}

#[test]
fn nothing_is_in_an_initrd_that_nobody_asked_for() {
    type Row<'a> = (&'a str, &'a dyn Fn(&mut NewcBuilder));
    let read = read_artifact_content(&content(&build(&inputs()).unwrap())).unwrap();
    let config = read.guest_config;
    let module = config.modules[0].trim_start_matches('/').to_owned();
    let empty = Bytes::new;
    let check = |write: &dyn Fn(&mut NewcBuilder), config: &GuestConfig| {
        let mut archive = NewcBuilder::new();
        archive.file("init", 0o755, Owner::ROOT, empty()).unwrap();
        archive.file(&module, 0o444, Owner::ROOT, empty()).unwrap();
        write(&mut archive);
        let entries = parse_newc(&archive.finish().to_bytes()).unwrap();
        check_entries(&entries, config)
    };
    check(&|_| (), &config).unwrap();
    let shell = |archive: &mut NewcBuilder| {
        archive.file("bin/sh", 0o755, Owner::ROOT, empty()).unwrap();
    };
    let link = |archive: &mut NewcBuilder| {
        let target = Bytes::from_static(b"/init");
        archive.symlink("x", 0o777, Owner::ROOT, target).unwrap();
    };
    let workload = |archive: &mut NewcBuilder| {
        archive
            .file("rootfs/app", 0o755, Owner::ROOT, empty())
            .unwrap();
    };
    let rows: [Row<'_>; 3] = [("bin/sh", &shell), ("x", &link), ("rootfs/app", &workload)];
    for (foreign, write) in rows {
        let error = check(write, &config).unwrap_err();
        assert!(
            matches!(&error, ReadArtifactError::InitrdForeign { path } if path == foreign),
            "{foreign}: {error}"
        );
    }
    let inside = GuestConfig {
        root: RootFs::Initramfs,
        ..config
    };
    check(&workload, &inside).unwrap();
}

#[test]
fn a_file_that_another_name_could_change_is_refused() {
    let mut archive = NewcBuilder::new();
    archive
        .linked_file(
            &["init", "other"],
            0o755,
            Owner::ROOT,
            Bytes::from_static(b"x"),
        )
        .unwrap();
    let entries = parse_newc(&archive.finish().to_bytes()).unwrap();
    assert!(matches!(
        only_file(&entries, AGENT_PATH),
        Err(ReadArtifactError::InitrdFile { .. })
    ));
}

#[test]
fn who_signed_is_read_from_the_uki() {
    let signer = crate::authenticode::tests::signer();
    let artifact = build_signed(&inputs(), secure_boot(&signer)).unwrap();
    let good = content(&artifact);
    let read = read_artifact_content(&good).unwrap();
    assert_eq!(read.manifest.uki.signers, [signer.certificate.digest()]);

    let with = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = artifact.manifest.clone();
        change(&mut manifest);
        let manifest = serde_json::to_vec(&manifest).unwrap().into();
        ArtifactContent {
            manifest,
            ..good.clone()
        }
    };
    let silent = with(&|manifest| manifest.uki.signers.clear());
    let error = read_artifact_content(&silent).unwrap_err();
    let untrue =
        |field| matches!(error, ReadArtifactError::Untrue { field: it, .. } if it == field);
    assert!(untrue("uki.signers"), "{error}");

    // A signature that is broken, and a manifest that hides it.
    let mut uki = good.uki.to_vec();
    let table = artifact.manifest.uki.size - 300;
    uki[usize::try_from(table).unwrap()] ^= 1;
    let (digest, uki) = (Sha256Digest::of(&uki), Bytes::from(uki));
    let mut broken = with(&|manifest| {
        manifest.uki.sha256 = digest;
        manifest.measurement = measurement(&good.firmware, &uki, digest).unwrap();
    });
    broken.uki = uki;
    let error = read_artifact_content(&broken).unwrap_err();
    assert!(matches!(error, ReadArtifactError::Signers(_)), "{error}");
}
