use std::fmt::Write as _;

use proptest::prelude::*;
use tar::EntryType;

use super::member::PAX_ATTRIBUTE;
use super::*;
use crate::oci::Layer;
use crate::rope::InMemory;
use crate::tarball::{Owner, TarBuilder};
use crate::tree::CAPABILITY;

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
            matches!(
                error,
                FlattenError::Entry { layer: 0, .. } | FlattenError::HardLink { layer: 0, .. }
            ),
            "{error}"
        );
    }
    let through = layer(|tar| {
        tar.file("a", 0o644, R, b"".to_vec())
            .file("a/b", 0o644, R, b"".to_vec());
    });
    let error = flatten_tars(&[through]).unwrap_err();
    assert_eq!(error.to_string(), "layer 0: cannot place entry \"a/b\"");
}

/// A member with fields that `TarBuilder` does not write.
fn member(kind: u8, path: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[156] = kind;
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut member = header.as_bytes().to_vec();
    member.extend(content);
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

/// A member before which pax records stand.
fn with_records(records: &[(&str, &str)], member: &[u8]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        // The length is part of what it is the length of.
        let digits = (rest + 2).to_string().len();
        let len = rest + (rest + digits).to_string().len();
        let _ = writeln!(text, "{len} {key}={value}");
    }
    [self::member(b'x', "pax", text.as_bytes()), member.to_vec()].concat()
}

fn flatten_members(layers: &[&[Vec<u8>]]) -> Result<Tree, FlattenError> {
    let tars: Vec<Bytes> = layers
        .iter()
        .map(|members| members.concat().into())
        .collect();
    flatten_tars(&tars)
}

#[test]
fn a_dot_in_a_path_leads_nowhere() {
    let tar = layer(|tar| {
        tar.directory("a/.", 0o711, R)
            .file("./a//./b", 0o644, R, b"1".to_vec())
            .hard_link("c", "./a/./b")
            .directory("./", 0o750, R);
    });
    let listed = listing(&flatten_tars(&[tar]).unwrap());
    assert_eq!(listed, ["/ 750", "/a/ 711", "/a/b=1", "/c=1"]);
}

#[test]
fn a_device_takes_the_place_of_a_file() {
    let lower = [member(b'0', "null", b"1"), member(b'0', "kept", b"1")];
    for kind in [b'3', b'4', b'6'] {
        let upper = [member(kind, "null", b""), {
            let mut link = member(b'1', "kept", b"");
            link[157..161].copy_from_slice(b"null");
            let mut header = tar::Header::from_byte_slice(&link).clone();
            header.set_cksum();
            header.as_bytes().to_vec()
        }];
        let tree = flatten_members(&[&lower, &upper[..1]]).unwrap();
        assert_eq!(listing(&tree), ["/ 755", "/kept=1"]);
        let tree = flatten_members(&[&lower, &upper]).unwrap();
        assert_eq!(listing(&tree), ["/ 755"]);
    }
}

#[test]
fn whiteouts_in_a_directory_do_not_reach_through_the_link_that_it_replaces() {
    let lower = layer(|tar| {
        tar.file("usr/lib/a", 0o644, R, b"1".to_vec())
            .file("usr/lib/b/c", 0o644, R, b"1".to_vec())
            .symlink("lib", "usr/lib", R);
    });
    let kept = ["/usr/", "/usr/lib/", "/usr/lib/a=1", "/usr/lib/b/"];
    for hidden in ["lib/.wh..wh..opq", "lib/.wh.a", "lib/b/.wh.c"] {
        let upper = layer(|tar| {
            tar.directory("lib", 0o755, R)
                .file(hidden, 0o644, R, b"".to_vec());
        });
        let listed = listing(&flatten_tars(&[lower.clone(), upper]).unwrap());
        for path in kept {
            assert!(
                listed.iter().any(|line| line.starts_with(path)),
                "{hidden}: {path}"
            );
        }
        // Without the directory, the link is followed.
        let upper = layer(|tar| {
            tar.file(hidden, 0o644, R, b"".to_vec());
        });
        let followed = listing(&flatten_tars(&[lower.clone(), upper]).unwrap());
        assert!(followed.len() < listed.len(), "{followed:?}");
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    for (key, value) in [
        ("uid", "-1"),
        ("gid", "x"),
        ("size", ""),
        ("uid", "4294967296"),
    ] {
        let tar = with_records(&[(key, value)], &member(b'0', "a", b""));
        let error = flatten_members(&[&[tar]]).unwrap_err();
        let is_refused = matches!(&error, FlattenError::Entry { path, .. } if path == "a")
            || matches!(&error, FlattenError::Tar { .. });
        assert!(is_refused, "{key}={value}: {error}");
    }
    let tar = with_records(&[("uid", "3000000")], &member(b'0', "a", b""));
    let tree = flatten_members(&[&[tar]]).unwrap();
    let id = tree.lookup(b"a").unwrap().unwrap();
    assert_eq!(tree.inode(id).metadata.owner.uid, 3_000_000);
}

#[test]
fn a_directory_of_the_seventh_edition_has_a_slash() {
    let tree = flatten_members(&[&[member(0, "old/", b""), member(b'0', "new/", b"")]]).unwrap();
    assert_eq!(listing(&tree), ["/ 755", "/new=", "/old/ 644"]);
}

#[test]
fn files_with_holes_are_whole_in_every_format() {
    let (at, len) = ("GNU.sparse.offset", "GNU.sparse.numbytes");
    let mut inside = b"2\n2\n3\n7\n0\n".to_vec();
    inside.resize(512, 0);
    inside.extend(b"abc");
    let rows: [(&[_], &str, &[u8]); 3] = [
        (
            &[
                ("GNU.sparse.size", "7"),
                (at, "2"),
                (len, "3"),
                (at, "7"),
                (len, "0"),
            ],
            "hole",
            b"abc",
        ),
        (
            &[
                ("GNU.sparse.size", "7"),
                ("GNU.sparse.name", "hole"),
                ("GNU.sparse.map", "2,3,7,0"),
            ],
            "GNUSparseFile.1/hole",
            b"abc",
        ),
        (
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "hole"),
                ("GNU.sparse.realsize", "7"),
            ],
            "GNUSparseFile.1/hole",
            &inside,
        ),
    ];
    for (records, path, content) in rows {
        let tar = with_records(records, &member(b'0', path, content));
        let tree = flatten_members(&[&[tar]]).unwrap();
        assert_eq!(listing(&tree), ["/ 755", "/hole=\0\0abc\0\0"]);
        // Pieces that are not there, or not in the file.
        let tar = with_records(records, &member(b'0', path, &content[..content.len() - 1]));
        let said = with_source(&flatten_members(&[&[tar]]).unwrap_err());
        assert!(said.ends_with("whose map is malformed"), "{said}");
    }
    for (size, map) in [
        ("7", "5,3"),
        ("7", "2,2,1,1"),
        ("7", "2"),
        ("x", "2,3"),
        ("99999999999", "2,3"),
    ] {
        let records = [("GNU.sparse.size", size), ("GNU.sparse.map", map)];
        let tar = with_records(&records, &member(b'0', "a", b"abc"));
        assert!(flatten_members(&[&[tar]]).is_err(), "{size} {map}");
    }
}

#[test]
fn gnu_tars_holes_may_need_more_blocks_than_a_header() {
    let mut header = tar::Header::new_gnu();
    header.set_path("hole").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(6);
    let put = |block: &mut [u8], at: usize, value: u64| {
        block[at..at + 12].copy_from_slice(format!("{value:011o}\0").as_bytes());
    };
    let mut more = [0; 512];
    for index in 0..6 {
        let (block, at): (&mut [u8], _) = match index {
            0..4 => (header.as_mut_bytes(), 386 + 24 * index),
            _ => (&mut more, 24 * (index - 4)),
        };
        put(block, at, 2 * index as u64);
        put(block, at + 12, 1);
    }
    header.as_mut_bytes()[482] = 1;
    put(header.as_mut_bytes(), 483, 13);
    header.set_cksum();
    let mut content = b"abcdef".to_vec();
    content.resize(512, 0);
    let tar = [
        header.as_bytes().to_vec(),
        more.to_vec(),
        content,
        member(b'0', "z", b"1"),
    ];
    let tree = flatten_members(&[&tar]).unwrap();
    assert_eq!(
        listing(&tree),
        ["/ 755", "/hole=a\0b\0c\0d\0e\0f\0\0", "/z=1"]
    );

    // In binary, as eleven octal digits end below it.
    header.as_mut_bytes()[483..495].copy_from_slice(b"\x80\0\0\0\0\0\x01\0\0\0\0\0");
    header.set_cksum();
    let tar = [&[header.as_bytes().to_vec()], &tar[1..]].concat();
    let error = flatten_members(&[&tar]).unwrap_err();
    let said = with_source(&error);
    assert!(
        said.contains("a file with holes of more than 8 GiB"),
        "{said}"
    );
}

fn with_source(error: &dyn std::error::Error) -> String {
    let source = error.source().map(ToString::to_string);
    format!("{error}: {}", source.unwrap_or_default())
}

#[test]
fn a_record_may_hold_any_bytes() {
    let records = [
        ("SCHILY.xattr.user.x", "a\nb=c\n12 path=no\n"),
        ("SCHILY.xattr.security.capability", "\u{1}\n\u{2}"),
    ];
    let tar = with_records(&records, &member(b'0', "a", b""));
    let tree = flatten_members(&[&[tar]]).unwrap();
    assert_eq!(listing(&tree), ["/ 755", "/a="]);
    let metadata = &tree.inode(tree.lookup(b"a").unwrap().unwrap()).metadata;
    let kept: Vec<_> = metadata
        .attributes
        .iter()
        .map(|it| (&**it.0, &**it.1))
        .collect();
    let expected: [(&[u8], &[u8]); 2] = [
        (b"security.capability", b"\x01\n\x02"),
        (b"user.x", b"a\nb=c\n12 path=no\n"),
    ];
    assert_eq!(kept, expected);
}

#[test]
fn what_is_no_archive_is_refused_with_its_place() {
    let good = || member(b'0', "a", b"1");
    let mut sum = good();
    sum[0] = b'b';
    let mut negative = good();
    negative[124] = 0xff;
    let mut negative_header = tar::Header::from_byte_slice(&negative[..512]).clone();
    negative_header.set_cksum();
    negative[..512].copy_from_slice(negative_header.as_bytes());
    let rows = [
        ([good(), sum].concat(), 1024, "checksum"),
        ([good(), vec![1; 511]].concat(), 1024, "within a block"),
        (
            [good(), vec![0; 512], good()].concat(),
            1024,
            "a block of zeros",
        ),
        (good()[..512].to_vec(), 0, "ends after the archive"),
        (negative, 0, "no number"),
        (
            member(b'x', "pax", b"9 path=x\n"),
            0,
            "no member after them",
        ),
        (member(b'x', "pax", b"99 path=x\n"), 0, "malformed"),
        (
            [
                member(b'x', "pax", b"9 path=x\n"),
                member(b'x', "pax", b"9 path=y\n"),
                good(),
            ]
            .concat(),
            0,
            "two headers",
        ),
        (
            member(b'L', "long", &vec![b'x'; (1 << 20) + 1]),
            0,
            "more than 1 MiB",
        ),
    ];
    for (bytes, at, said) in rows {
        let FlattenError::Tar { source, .. } = flatten_members(&[&[bytes]]).unwrap_err() else {
            panic!("{said}: another error");
        };
        assert_eq!(source.at, at, "{source}");
        assert!(source.to_string().contains(said), "{source}");
    }
}

#[test]
fn a_working_directory_is_made_where_there_is_none() {
    let mut tree = flatten_tars(&[layer(|tar| {
        tar.file("etc/x", 0o644, R, b"".to_vec());
    })])
    .unwrap();
    prepare_working_directory(&mut tree, "/srv/app").unwrap();
    prepare_working_directory(&mut tree, "/").unwrap();
    assert_eq!(
        tree.entries(tree.lookup(b"srv/app").unwrap().unwrap())
            .unwrap()
            .len(),
        0
    );
    assert!(prepare_working_directory(&mut tree, "/etc/x").is_err());
}

#[test]
fn a_file_keeps_its_own_extended_attributes() {
    let rows = [
        ("user.note", true),
        ("user.overlayed", true),
        ("security.ima", true),
        ("system.posix_acl_access", true),
        ("system.posix_acl_default", true),
        ("user.overlay.opaque", false),
        ("trusted.overlay.opaque", false),
        ("trusted.x", false),
        ("system.other", false),
        ("user.", false),
        ("btrfs.compression", false),
    ];
    for (name, kept) in rows {
        let key = format!("SCHILY.xattr.{name}");
        let tar = with_records(&[(&key, "value")], &member(b'0', "a", b""));
        let tree = flatten_members(&[&[tar]]).unwrap();
        let metadata = &tree.inode(tree.lookup(b"a").unwrap().unwrap()).metadata;
        let value = metadata.attributes.get(name.as_bytes());
        assert_eq!(value.is_some(), kept, "{name}");
    }
    let long_name = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    let long_value = "v".repeat(65_536);
    let rows = [
        (
            (long_name.as_str(), "value"),
            "with a name that Linux does not take",
        ),
        (
            ("SCHILY.xattr.user.x", long_value.as_str()),
            "of 64 KiB or more",
        ),
    ];
    for (record, expected) in rows {
        let tar = with_records(&[record], &member(b'0', "a", b""));
        let said = flatten_members(&[&[tar]]).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
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
    let record = [PAX_ATTRIBUTE, b"security.capability=\x01\0\0\x02\n"].concat();
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
        metadata.attributes.get(CAPABILITY).map(|value| &**value),
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
