#![allow(clippy::cast_possible_truncation)] // small numbers

use assay_tee::Sha256Digest;

use super::*;
use crate::newc::NewcBuilder;
use crate::oracles::Oracles;
use crate::rope::InMemory;
use crate::tarball::Owner;
use crate::tree::{ACCESS_LISTS, CAPABILITY, Metadata};

fn put(tree: &mut Tree, path: &str, inode: Inode) -> InodeId {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = tree.resolve_or_create(parent.as_bytes()).unwrap();
    let id = tree.add(inode);
    tree.entries_mut(parent)
        .unwrap()
        .insert(Bytes::copy_from_slice(name.as_bytes()), id);
    id
}

fn file(mode: u32, content: Vec<u8>) -> Inode {
    Inode {
        metadata: Metadata::root(mode),
        content: Content::File(content.into()),
    }
}

fn set(inode: &mut Inode, name: &'static [u8], value: &[u8]) {
    let attributes = &mut inode.metadata.attributes;
    attributes.insert(Bytes::from_static(name), Bytes::copy_from_slice(value));
}

/// A tree with everything that the format treats differently.
pub(crate) fn rich_tree() -> Tree {
    let mut tree = Tree::new();
    put(&mut tree, "empty", file(0o600, Vec::new()));
    put(&mut tree, "exact", file(0o644, vec![1; 4096]));
    put(
        &mut tree,
        "large",
        file(0o644, (0..100_000_u32).map(|i| i as u8).collect()),
    );
    let mut owned = file(0o6755, b"tool".to_vec());
    owned.metadata.owner = Owner {
        uid: 4_000_000_000,
        gid: 65534,
    };
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    set(&mut owned, CAPABILITY, capability);
    let id = put(&mut tree, "usr/bin/tool", owned);
    let dir = tree.resolve_or_create(b"usr/sbin").unwrap();
    tree.entries_mut(dir)
        .unwrap()
        .insert(Bytes::from_static(b"again"), id);
    let link = Content::Symlink(Bytes::from_static(b"usr/bin"));
    put(
        &mut tree,
        "bin",
        Inode {
            metadata: Metadata::root(0o777),
            content: link,
        },
    );
    tree.resolve_or_create(b"var/empty").unwrap();
    // Several directory blocks, names around "." and "..", and every length.
    for i in 0..700 {
        put(
            &mut tree,
            &format!("many/{i}-{}", "n".repeat(i % 200)),
            file(0o644, vec![7; i]),
        );
    }
    for name in ["!", "-", "...", ".a", "a"] {
        put(&mut tree, &format!("many/{name}"), file(0o644, name.into()));
    }
    tree
}

#[test]
fn the_bytes_are_pinned() {
    // Changing this changes the launch digest of every image: see CHANGELOG, MEASUREMENT.
    let image = encode_erofs(
        &rich_tree(),
        *b"0123456789abcdef",
        Compression::None,
        &InMemory,
    )
    .unwrap();
    assert_eq!(image.len() % BLOCK, 0);
    assert_eq!(
        image.sha256().to_string(),
        "sha256:f44b3f562083aa7fddf17edf5ca28b7c300dfc360ec249494124c9bc222093a0"
    );
}

#[test]
fn checksum_is_crc32c() {
    // The check value of CRC-32C/ISCSI, before its final inversion.
    assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn directories_split_into_blocks_that_stand_alone() {
    let tree = rich_tree();
    let many = tree.lookup(b"many").unwrap().unwrap();
    let entries = tree.entries(many).unwrap();
    let blocks = directory_blocks(entries);
    assert!(blocks.len() > 10);
    assert_eq!(
        blocks.iter().map(Vec::len).sum::<usize>(),
        entries.len() + 2
    );
    for block in &blocks {
        let len: usize = block
            .iter()
            .map(|entry| DIRENT_LEN + entry.name.len())
            .sum();
        assert!(len as u64 <= BLOCK);
    }
    let names: Vec<_> = blocks.iter().flatten().map(|entry| entry.name).collect();
    assert!(names.is_sorted());
}

#[test]
fn nesting_deeper_than_a_stack_is_no_problem() {
    let mut tree = Tree::new();
    let mut directory = Tree::ROOT;
    for _ in 0..100_000 {
        directory = tree.make_directory(directory, &Bytes::from_static(b"d"), 0o755);
    }
    encode_erofs(&tree, [0; 16], Compression::None, &InMemory).unwrap();
}

#[test]
fn fsck_finds_nothing_and_extracts_the_same_tree() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    let Some(oracles) = Oracles::find("fsck.erofs") else {
        return;
    };
    let image = encode_erofs(&rich_tree(), [7; 16], Compression::None, &InMemory)
        .unwrap()
        .to_bytes();
    let image = oracles.write("image", &image);
    let report = oracles.run("fsck.erofs", &["-d3", &image]);
    assert!(report.contains("No errors found"), "{report}");

    let extract = format!("--extract={}", oracles.inside("out"));
    let options = ["--no-preserve-owner", "--preserve-perms", &extract, &image];
    oracles.run("fsck.erofs", &options);
    let out = oracles.outside("out");
    let metadata = |path: &str| std::fs::symlink_metadata(out.join(path)).unwrap();
    assert_eq!(std::fs::read(out.join("exact")).unwrap(), vec![1; 4096]);
    assert_eq!(
        std::fs::read(out.join("large")).unwrap(),
        (0..100_000_u32).map(|i| i as u8).collect::<Vec<_>>()
    );
    assert_eq!(metadata("empty").permissions().mode() & 0o7777, 0o600);
    assert_eq!(metadata("exact").mtime(), 0);
    assert_eq!(
        metadata("usr/bin/tool").permissions().mode() & 0o7777,
        0o6755
    );
    assert_eq!(
        std::fs::read_link(out.join("bin")).unwrap().to_str(),
        Some("usr/bin")
    );
    assert_eq!(std::fs::read_dir(out.join("many")).unwrap().count(), 705);
    assert_eq!(std::fs::read(out.join("many/...")).unwrap(), b"...");

    for path in ["--path=/usr/bin/tool", "--path=/usr/sbin/again"] {
        let dump = oracles.run("dump.erofs", &[path, &image]);
        assert!(dump.contains("Links: 2"), "{dump}");
        assert!(dump.contains("Uid: 4000000000"), "{dump}");
    }
}

const CODECS: [Compression; 2] = [Compression::Lz4hc, Compression::Zstd];

/// Bytes that no codec makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Bytes that compress to a fraction, no two pieces alike.
fn text(len: usize) -> Vec<u8> {
    let lines = (0_u32..).flat_map(|i| format!("line {} of {i}\n", i % 977).into_bytes());
    lines.take(len).collect()
}

/// Files of every size and kind that packing treats differently.
fn packable_files() -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        ("zeros".to_owned(), vec![0; 1 << 20]),
        ("noise".to_owned(), noise(200_000)),
        (
            "mixed".to_owned(),
            [noise(65536), text(70000), noise(5000)].concat(),
        ),
        ("tail".to_owned(), [text(65536), noise(100)].concat()),
        ("half".to_owned(), [noise(30_000), text(150_000)].concat()),
    ];
    for len in [
        0, 1, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 69632, 131_072, 300_001,
    ] {
        files.push((format!("text/{len}"), text(len)));
    }
    files
}

fn packable_tree() -> Tree {
    let mut tree = rich_tree();
    for (path, content) in packable_files() {
        put(&mut tree, &path, file(0o644, content));
    }
    let mut tool = file(0o755, text(20_000));
    set(&mut tool, CAPABILITY, &[1; 20]);
    put(&mut tree, "capable", tool);
    tree
}

#[test]
fn compressed_bytes_are_pinned() {
    // Changing these changes launch digests: see CHANGELOG, MEASUREMENT. An update
    // of a codec does so too.
    let expected = [
        "sha256:af3fa1f4a8894f414a1195b73bc58ed8bf2e774307a3b366e01a4ff7e6e53528",
        "sha256:4bbe1ffb2e2aa25c94c24fe7bc5352f0fa597ecfcde453f2b2378d0377cc6bd9",
    ];
    let plain = encode_erofs(&packable_tree(), [7; 16], Compression::None, &InMemory).unwrap();
    for (codec, expected) in CODECS.into_iter().zip(expected) {
        let image = encode_erofs(&packable_tree(), [7; 16], codec, &InMemory).unwrap();
        assert_eq!(image.len() % BLOCK, 0);
        assert!(
            image.len() < plain.len() * 3 / 4,
            "{codec:?}: {}",
            image.len()
        );
        assert_eq!(image.sha256().to_string(), expected, "{codec:?}");
        assert_eq!(parse_compression(&image.to_bytes()), Some(codec));
    }
    assert_eq!(
        parse_compression(&plain.to_bytes()),
        Some(Compression::None)
    );
    assert_eq!(parse_compression(&[0xff; 4096]), None);
}

/// Attributes of every kind, and more than a block of them.
fn attributed_tree() -> Tree {
    let mut tree = Tree::new();
    let mut every = file(0o644, b"every".to_vec());
    for name in [CAPABILITY, b"security.ima", b"user.a", b"user.empty"] {
        let value = if name == b"user.empty" { &[][..] } else { name };
        set(&mut every, name, value);
    }
    for name in ACCESS_LISTS {
        set(&mut every, name, &[2, 0, 0, 0]);
    }
    put(&mut tree, "a/every", every);
    for (name, len) in [("block", 3_900), ("more", 5_000), ("most", 65_535)] {
        let mut large = file(0o644, name.into());
        set(&mut large, b"user.large", &text(len));
        set(&mut large, b"user.small", b"small");
        put(&mut tree, &format!("b/{name}"), large);
        put(
            &mut tree,
            &format!("b/{name}-after"),
            file(0o644, name.into()),
        );
    }
    let directory = tree.lookup(b"b").unwrap().unwrap();
    set(
        tree.inode_mut(directory),
        b"user.of-directory",
        b"directory",
    );
    tree
}

#[test]
fn attributes_of_any_size_are_written() {
    for codec in [Compression::None, Compression::Zstd] {
        let tree = attributed_tree();
        let image = encode_erofs(&tree, [7; 16], codec, &InMemory).unwrap();
        let image = image.to_bytes();
        let walked = walk::walk(&image).unwrap();
        for path in ["a/every", "b", "b/block", "b/more", "b/most"] {
            let inode = tree.inode(tree.lookup(path.as_bytes()).unwrap().unwrap());
            let written = &walked[path.as_bytes()].attributes;
            let written = &image[written.clone()];
            for (name, value) in &inode.metadata.attributes {
                let (prefix, suffix) = split_xattr_name(name).unwrap();
                let len = u16::try_from(value.len()).unwrap().to_le_bytes();
                let suffix_len = u8::try_from(suffix.len()).unwrap();
                let entry = [&[suffix_len, prefix], len.as_slice(), suffix, value].concat();
                let found = written.windows(entry.len()).any(|window| window == entry);
                assert!(found, "{path}: {}", name.escape_ascii());
            }
        }
        let plain = &walked[b"b/more-after".as_slice()].attributes;
        assert!(plain.is_empty());
    }
    let mut unknown = file(0o644, Vec::new());
    set(&mut unknown, b"trusted.x", b"x");
    let mut tree = Tree::new();
    put(&mut tree, "x", unknown);
    let error = encode_erofs(&tree, [7; 16], Compression::None, &InMemory).unwrap_err();
    assert!(error.to_string().contains("trusted.x"), "{error}");
}

#[test]
fn fsck_takes_attributes_of_any_size() {
    let Some(oracles) = Oracles::find("fsck.erofs of extended attributes") else {
        return;
    };
    for codec in [Compression::None, Compression::Zstd] {
        let name = format!("{codec:?}");
        let image = encode_erofs(&attributed_tree(), [7; 16], codec, &InMemory).unwrap();
        let image = oracles.write(&name, &image.to_bytes());
        let report = oracles.run("fsck.erofs", &["-d3", &image]);
        assert!(report.contains("No errors found"), "{report}");
        for path in ["block", "more", "most", "most-after"] {
            let dump = oracles.run("dump.erofs", &[&format!("--path=/b/{path}"), &image]);
            let size = path.trim_end_matches("-after").len();
            assert!(dump.contains(&format!("Size: {size} ")), "{path}: {dump}");
        }
        let dump = oracles.run("dump.erofs", &["--path=/b/most", &image]);
        assert!(dump.contains("Xattr size: 65572"), "{dump}");
    }
}

#[test]
fn fsck_extracts_what_was_compressed() {
    let Some(oracles) = Oracles::find("fsck.erofs of compressed images") else {
        return;
    };
    for codec in CODECS {
        let name = format!("{codec:?}");
        let image = encode_erofs(&packable_tree(), [7; 16], codec, &InMemory).unwrap();
        let bytes = image.to_bytes();
        let image = oracles.write(&name, &bytes);
        let out = format!("{name}-out");
        let extract = format!("--extract={}", oracles.inside(&out));
        oracles.run("fsck.erofs", &["--no-preserve-owner", &extract, &image]);
        let report = oracles.run("fsck.erofs", &["-d3", &image]);
        assert!(report.contains("No errors found"), "{report}");
        for (path, content) in packable_files() {
            let extracted = std::fs::read(oracles.outside(&out).join(&path)).unwrap();
            assert!(extracted == content, "{codec:?}: {path} differs");
        }
        let capable = std::fs::read(oracles.outside(&out).join("capable")).unwrap();
        assert_eq!(capable, text(20_000));
        let dump = oracles.run("dump.erofs", &["-s", "--path=/zeros", &image]);
        assert!(dump.contains("compr_cfgs"), "{dump}");
        assert!(
            dump.contains("big_pcluster") || dump.contains("0padding"),
            "{dump}"
        );
    }
}

/// A guest that lists the digests of the files on its disk and goes.
const SUMS_INIT: &str = "#!/busybox sh\n\
    /busybox mount -t devtmpfs dev /dev\n\
    exec >/dev/console 2>&1\n\
    for name in crc32c-intel libcrc32c erofs virtio_blk; do /busybox insmod /$name.ko.xz; done\n\
    /busybox mount -t erofs -o ro /dev/vda /mnt\n\
    cd /mnt\n\
    /busybox find . -type f -exec /busybox sha256sum {} +\n\
    echo done\n\
    /busybox poweroff -f\n";

#[test]
fn the_kernel_reads_what_was_compressed() {
    let Some(oracles) = Oracles::find("the kernel mounts compressed images") else {
        return;
    };
    let mut initrd = NewcBuilder::new();
    for directory in ["dev", "mnt"] {
        initrd.directory(directory, 0o755, Owner::ROOT).unwrap();
    }
    let init = Bytes::from_static(SUMS_INIT.as_bytes());
    for (name, content) in [
        ("busybox", oracles.file("usr/bin/busybox")),
        ("init", init),
        (
            "crc32c-intel.ko.xz",
            oracles.module("arch/x86/crypto/crc32c-intel.ko.xz"),
        ),
        ("libcrc32c.ko.xz", oracles.module("lib/libcrc32c.ko.xz")),
        ("erofs.ko.xz", oracles.module("fs/erofs/erofs.ko.xz")),
        (
            "virtio_blk.ko.xz",
            oracles.module("drivers/block/virtio_blk.ko.xz"),
        ),
    ] {
        initrd.file(name, 0o755, Owner::ROOT, content).unwrap();
    }
    let initrd = oracles.write("initrd", &initrd.finish().to_bytes());
    let kernel = oracles.write("kernel", &oracles.kernel());
    for codec in CODECS {
        let image = encode_erofs(&packable_tree(), [7; 16], codec, &InMemory).unwrap();
        let image = oracles.write("image", &image.to_bytes());
        let drive = format!("file={image},format=raw,if=none,id=root,readonly=on");
        let console = oracles.boot(&[
            "-kernel",
            &kernel,
            "-initrd",
            &initrd,
            "-append",
            "console=ttyS0 panic=-1 quiet",
            "-drive",
            &drive,
            "-device",
            "virtio-blk-pci,drive=root",
        ]);
        for (path, content) in packable_files() {
            let line = format!("{}  ./{path}\n", Sha256Digest::of(&content).to_hex());
            assert!(
                console.contains(&line),
                "{codec:?}: {line} is not in\n{console}"
            );
        }
    }
}
