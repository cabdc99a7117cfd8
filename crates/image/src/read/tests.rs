use super::*;
use crate::artifact::tests::inputs;
use crate::artifact::{Artifact, build};
use crate::newc::NewcBuilder;
use crate::oci::LayerCompression;

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
        root_disk: file(ROOT_DISK_PATH),
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
    assert_eq!(read.guest_config.root, artifact.manifest.root_disk.root);
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
                root_disk: flip(&good.root_disk, at(&good.root_disk)),
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
    let lies: [(&str, Lie); 10] = [
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
            m.root_disk.sha256 = Sha256Digest::of(b"x");
        }),
        ("rootDisk.root", |m| {
            let RootFs::DmVerity { root_hash, .. } = &mut m.root_disk.root;
            *root_hash = Sha256Digest::of(b"x");
        }),
    ];
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
    for at in [0, good.root_disk.len() - 4096] {
        let mut disk = good.root_disk.to_vec();
        disk[at] ^= 1;
        let mut manifest = artifact.manifest.clone();
        manifest.root_disk.sha256 = Sha256Digest::of(&disk);
        let bad = ArtifactContent {
            manifest: serde_json::to_vec(&manifest).unwrap().into(),
            root_disk: disk.into(),
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
fn a_second_configuration_is_not_overlooked() {
    let mut archive = NewcBuilder::new();
    for path in ["init", "etc/assay/guest.json", "./etc//assay/guest.json"] {
        archive
            .file(path, 0o644, Bytes::from_static(b"{}"))
            .unwrap();
    }
    let entries = parse_newc(&archive.finish().to_bytes()).unwrap();
    only_file(&entries, AGENT_PATH).unwrap();
    assert!(matches!(
        only_file(&entries, GUEST_CONFIG_PATH),
        Err(ReadArtifactError::InitrdFile { .. })
    ));
}
