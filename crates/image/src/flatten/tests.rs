use proptest::prelude::*;

use super::*;
use crate::oci::Layer;
use crate::rope::InMemory;
use crate::tarball::TarBuilder;

const R: Owner = Owner::ROOT;

fn layer(write: impl FnOnce(&mut TarBuilder)) -> Bytes {
    let mut tar = TarBuilder::new();
    write(&mut tar);
    tar.finish().to_bytes()
}

fn flatten_tars(tars: &[Bytes]) -> Result<Tree, FlattenError> {
    let layers: Vec<_> = tars
        .iter()
        .map(|bytes| StoredLayer {
            bytes: bytes.clone(),
            compression: LayerCompression::None,
        })
        .collect();
    let diff_ids: Vec<_> = tars.iter().map(|bytes| Sha256Digest::of(bytes)).collect();
    flatten(&layers, &diff_ids)
}

/// Every path with a sign of what it is, sorted.
fn listing(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, id: InodeId, path: &str, out: &mut Vec<String>) {
        let inode = tree.inode(id);
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        match &inode.content {
            Content::Directory(entries) => {
                out.push(format!("{path}/ {:o}", inode.metadata.mode));
                for (name, child) in entries {
                    walk(tree, *child, &format!("{path}/{}", text(name)), out);
                }
            }
            Content::File(content) => out.push(format!("{path}={}", text(content))),
            Content::Symlink(target) => out.push(format!("{path}->{}", text(target))),
        }
    }
    let mut out = Vec::new();
    walk(tree, Tree::ROOT, "", &mut out);
    out
}

#[test]
fn upper_layers_win_and_whiteouts_hide_lower_ones() {
    let lower = layer(|tar| {
        tar.directory("etc", 0o755, R)
            .file("etc/keep", 0o644, R, b"1".to_vec())
            .file("etc/gone", 0o644, R, b"1".to_vec())
            .file("etc/changed", 0o644, R, b"1".to_vec())
            .file("opaque/old/deep", 0o644, R, b"1".to_vec())
            .file("dir-to-file/x", 0o644, R, b"1".to_vec())
            .file("file-to-dir", 0o644, R, b"1".to_vec())
            .file("again", 0o644, R, b"1".to_vec());
    });
    let upper = layer(|tar| {
        // New content before the whiteouts that hide the old: order is no matter.
        tar.directory("etc", 0o700, R)
            .file("etc/changed", 0o644, R, b"2".to_vec())
            .file("etc/.wh.gone", 0o644, R, b"".to_vec())
            .file("opaque/old/new", 0o644, R, b"2".to_vec())
            .file("opaque/.wh..wh..opq", 0o644, R, b"".to_vec())
            .file("dir-to-file", 0o644, R, b"2".to_vec())
            .directory("file-to-dir", 0o755, R)
            .file("again", 0o644, R, b"2".to_vec())
            .file(".wh.again", 0o644, R, b"".to_vec())
            .file("nowhere/.wh.nothing", 0o644, R, b"".to_vec());
    });
    assert_eq!(
        listing(&flatten_tars(&[lower, upper]).unwrap()),
        [
            "/ 755",
            "/again=2",
            "/dir-to-file=2",
            "/etc/ 700",
            "/etc/changed=2",
            "/etc/keep=1",
            "/file-to-dir/ 755",
            "/opaque/ 755",
            "/opaque/old/ 755",
            "/opaque/old/new=2",
        ]
    );
}

#[test]
fn entries_go_where_links_of_lower_layers_point() {
    let lower = layer(|tar| {
        tar.directory("usr/lib", 0o755, R)
            .symlink("lib", "usr/lib", R);
    });
    let upper = layer(|tar| {
        tar.file("lib/a", 0o644, R, b"a".to_vec())
            .hard_link("b", "lib/a");
    });
    let tree = flatten_tars(&[lower, upper]).unwrap();
    assert_eq!(
        listing(&tree),
        [
            "/ 755",
            "/b=a",
            "/lib->usr/lib",
            "/usr/ 755",
            "/usr/lib/ 755",
            "/usr/lib/a=a"
        ]
    );
    assert_eq!(
        tree.lookup(b"b").unwrap(),
        tree.lookup(b"usr/lib/a").unwrap()
    );
}

#[test]
fn a_layer_cannot_leave_the_root() {
    for path in ["../x", "a/../../x", "a/.."] {
        let tar = layer(|tar| {
            tar.file(path, 0o644, R, b"".to_vec());
        });
        let error = flatten_tars(&[tar]).unwrap_err();
        assert!(
            matches!(error, FlattenError::Entry { .. }),
            "{path}: {error}"
        );
    }
    // A link that points out stays inside.
    let tar = layer(|tar| {
        tar.symlink("out", "../../..", R)
            .file("out/x", 0o644, R, b"1".to_vec());
    });
    assert_eq!(
        listing(&flatten_tars(&[tar]).unwrap()),
        ["/ 755", "/out->../../..", "/x=1"]
    );
}

#[test]
fn odd_members_are_refused_by_name() {
    let hard = layer(|tar| {
        tar.hard_link("a", "missing");
    });
    let root = layer(|tar| {
        tar.symlink("/", "elsewhere", R);
    });
    let name = layer(|tar| {
        tar.file("x".repeat(256), 0o644, R, b"".to_vec());
    });
    let whiteout = layer(|tar| {
        tar.file("a/.wh...", 0o644, R, b"".to_vec());
    });
    for tar in [hard, root, name, whiteout] {
        let error = flatten_tars(&[tar]).unwrap_err();
        assert!(
            matches!(error, FlattenError::Entry { layer: 0, .. }),
            "{error}"
        );
    }
    let through = layer(|tar| {
        tar.file("a", 0o644, R, b"".to_vec())
            .file("a/b", 0o644, R, b"".to_vec());
    });
    assert!(matches!(
        flatten_tars(&[through]),
        Err(FlattenError::Place { .. })
    ));
}

#[test]
fn devices_are_dropped_and_capabilities_kept() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::Char);
    header.set_size(0);
    header.set_mode(0o666);
    builder
        .append_data(&mut header, "null", std::io::empty())
        .unwrap();
    let record = [PAX_CAPABILITY, b"=\x01\0\0\x02\n"].concat();
    let record = [format!("{} ", record.len() + 3).as_bytes(), &record].concat();
    let mut pax = tar::Header::new_ustar();
    pax.set_entry_type(EntryType::XHeader);
    pax.set_size(record.len() as u64);
    pax.set_cksum();
    builder.append(&pax, record.as_slice()).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(2);
    header.set_mode(0o4755);
    header.set_uid(1000);
    header.set_gid(1001);
    builder
        .append_data(&mut header, "ping", b"hi".as_slice())
        .unwrap();

    let tree = flatten_tars(&[builder.into_inner().unwrap().into()]).unwrap();
    assert_eq!(listing(&tree), ["/ 755", "/ping=hi"]);
    let metadata = &tree.inode(tree.lookup(b"ping").unwrap().unwrap()).metadata;
    assert_eq!(metadata.mode, 0o4755);
    assert_eq!(
        metadata.owner,
        Owner {
            uid: 1000,
            gid: 1001
        }
    );
    assert_eq!(
        metadata.capability.as_deref(),
        Some(b"\x01\0\0\x02".as_slice())
    );
}

#[test]
fn a_root_is_prepared_for_a_guest() {
    let mut tree = flatten_tars(&[layer(|tar| {
        tar.directory("/", 0o700, Owner { uid: 5, gid: 5 })
            .file("proc/leftover", 0o644, R, b"".to_vec())
            .symlink("dev", "etc", R)
            .file("run/lock", 0o644, R, b"".to_vec())
            .file("tmp/kept", 0o644, R, b"".to_vec());
    })])
    .unwrap();
    prepare_root(&mut tree);
    assert_eq!(
        listing(&tree),
        [
            "/ 755",
            "/dev/ 755",
            "/proc/ 755",
            "/run/ 755",
            "/sys/ 555",
            "/tmp/ 755",
            "/tmp/kept=",
        ]
    );
    assert_eq!(tree.inode(Tree::ROOT).metadata.owner, R);
}

#[test]
fn compressed_layers_are_checked_by_their_uncompressed_digest() {
    let tar = TarBuilder::new().finish();
    let gzip = Layer::gzip(&tar).unwrap().blob().content().to_bytes();
    let zstd: Bytes = zstd::encode_all(tar.to_bytes().as_ref(), 1).unwrap().into();
    for (bytes, compression) in [
        (gzip.clone(), LayerCompression::Gzip),
        (zstd, LayerCompression::Zstd),
    ] {
        let layers = [StoredLayer { bytes, compression }];
        flatten(&layers, &[tar.sha256()]).unwrap();
        let error = flatten(&layers, &[Sha256Digest::of(b"other")]).unwrap_err();
        assert!(matches!(error, FlattenError::DiffId { .. }), "{error}");
        let error = flatten(&layers, &[]).unwrap_err();
        assert!(matches!(error, FlattenError::LayerCount { .. }), "{error}");
    }
    let broken = StoredLayer {
        bytes: gzip,
        compression: LayerCompression::Zstd,
    };
    let error = flatten(&[broken], &[tar.sha256()]).unwrap_err();
    assert!(matches!(error, FlattenError::Uncompress { .. }), "{error}");
}

proptest! {
    #[test]
    fn any_bytes_give_a_value_or_an_error(at in 0..4096_usize, with: Vec<u8>) {
        let mut bytes = layer(|tar| {
            tar.directory("etc", 0o755, R)
                .file("x".repeat(150), 0o644, R, vec![1; 700])
                .symlink("lib", "usr/lib", R)
                .file("etc/.wh.x", 0o644, R, b"".to_vec())
                .hard_link("y", "x".repeat(150));
        })
        .to_vec();
        let end = bytes.len().min(at + with.len());
        bytes.splice(at.min(end)..end, with);
        if let Ok(mut tree) = flatten_tars(&[bytes.into()]) {
            prepare_root(&mut tree);
            crate::erofs::encode_erofs(&tree, [0; 16], crate::recipe::Compression::None, &InMemory).unwrap();
        }
    }
}
