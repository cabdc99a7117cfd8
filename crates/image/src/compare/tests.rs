use super::*;
use crate::artifact::tests::{initramfs_inputs, inputs, switched_off, web_with};
use crate::artifact::{BuildInputs, build};
use crate::erofs::encode_erofs;
use crate::hardening::Setting;
use crate::recipe::Compression;
use crate::rope::InMemory;
use crate::tree::{CAPABILITY, Content, Inode, Metadata, Tree};

fn content(inputs: &BuildInputs) -> ArtifactContent {
    build(inputs).unwrap().content()
}

fn said(expected: &ArtifactContent, actual: &ArtifactContent) -> Vec<String> {
    compare(expected, actual)
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[track_caller]
fn has(said: &[String], wanted: &str) {
    assert!(
        said.iter().any(|line| line.starts_with(wanted)),
        "{wanted:?} is not in {said:#?}"
    );
}

#[test]
fn what_is_the_same_has_no_differences() {
    for inputs in [inputs(), initramfs_inputs()] {
        assert_eq!(
            said(&content(&inputs), &content(&inputs)),
            Vec::<String>::new()
        );
    }
}

#[test]
fn another_agent_is_found_in_the_initrd() {
    let mut other = inputs();
    other.agent = Bytes::from_static(b"\x7fELF\x02\x01other");
    let told = said(&content(&inputs()), &content(&other));
    has(
        &told,
        "uki.efi > .initrd > init: 5 bytes differ in 0x6..=0xa",
    );
    has(&told, "manifest.json > inputs.agent: is ");
    assert!(!told.iter().any(|line| line.starts_with("rootfs.img")));
}

#[test]
fn another_choice_is_found_in_the_measured_document() {
    let mut other = inputs();
    other.recipe = switched_off(Setting::ReadOnlyRoot);
    let told = said(&content(&inputs()), &content(&other));
    has(
        &told,
        "uki.efi > .initrd > etc/assay/guest.json > hardening.readOnlyRoot: is false, expected true",
    );
    let mut other = inputs();
    other.recipe = switched_off(Setting::InitOnAlloc);
    let of_cmdline = said(&content(&inputs()), &content(&other));
    has(&of_cmdline, "uki.efi > .cmdline: is \"console=ttyS0 quiet");
}

#[test]
fn a_file_of_the_root_disk_is_named() {
    for compression in [Compression::None, Compression::Lz4hc] {
        let with = |mode, byte, more: &[&str]| {
            let mut inputs = inputs();
            inputs.recipe.compression = compression;
            inputs.rootfs = web_with(mode, &vec![byte; 70_000], more);
            content(&inputs)
        };
        let good = with(0o755, 1, &[]);
        has(
            &said(&good, &with(0o755, 2, &[])),
            "rootfs.img > /bin/web: ",
        );
        has(
            &said(&good, &with(0o4755, 1, &[])),
            "rootfs.img > /bin/web: mode 104755, owner 0:0, 1 names, expected 100755",
        );
        let more = said(&good, &with(0o755, 1, &["etc/more"]));
        has(&more, "rootfs.img > /etc/more: ought not to be there");
        assert!(
            !more.iter().any(|line| line.contains("/bin/web")),
            "{more:#?}"
        );
        let less = said(&with(0o755, 1, &["etc/more"]), &good);
        has(&less, "rootfs.img > /etc/more: is missing");
    }
}

fn flip(bytes: &Bytes, at: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes.into()
}

/// Where a text stands that is only once in a file.
fn find(bytes: &[u8], text: &[u8]) -> usize {
    let mut found = memchr::memmem::find_iter(bytes, text);
    let at = found.next().unwrap();
    assert_eq!(found.next(), None, "{text:?}");
    at
}

/// One byte of each part, where nothing else is changed with it.
#[test]
fn a_byte_of_each_part_is_told_by_its_name() {
    let mut inputs = inputs();
    let file = [b"of a file ".repeat(1000), b"mark".to_vec()].concat();
    inputs.rootfs = web_with(0o755, &file, &[]);
    let good = content(&inputs);
    let disk = good.root_disk.clone().unwrap();
    let walked = walk(&disk).unwrap();
    let web = &walked[b"bin/web".as_slice()];
    let inode = web.attributes.start - 64;
    let hashes = hash_tree_start(&good.manifest).unwrap();
    let image = PeImage::parse(&good.uki).unwrap();
    let section = |name: &str| image.section(name).unwrap().raw_offset as usize;
    let certificate = |uki: &Bytes| ArtifactContent {
        uki: [uki.as_ref(), b"more"].concat().into(),
        ..good.clone()
    };

    let of_disk = |at| ArtifactContent {
        root_disk: Some(flip(&disk, at)),
        ..good.clone()
    };
    let of_uki = |at| ArtifactContent {
        uki: flip(&good.uki, at),
        ..good.clone()
    };
    let of_manifest = |text: &[u8]| ArtifactContent {
        manifest: flip(&good.manifest, find(&good.manifest, text) + text.len() - 1),
        ..good.clone()
    };
    let firmware = ArtifactContent {
        firmware: flip(&good.firmware, 16),
        ..good.clone()
    };
    let padding = section(".cmdline")
        + parse_uki(&good.uki)
            .unwrap()
            .section(".cmdline")
            .unwrap()
            .len();
    let rows = [
        (firmware, "firmware.fd: 1 bytes differ in 0x10..=0x10"),
        (
            of_manifest(b"\"cmdline\":\"c"),
            "manifest.json > uki.cmdline: is \"bonsole=ttyS0",
        ),
        (of_uki(8), "uki.efi > headers: 1 bytes differ in 0x8..=0x8"),
        (
            of_uki(section(".text")),
            "uki.efi > .text: 1 bytes differ in 0x0..=0x0",
        ),
        (
            of_uki(section(".linux") + 0x300),
            "uki.efi > .linux: 1 bytes differ in 0x300..=0x300",
        ),
        (
            of_uki(section(".cmdline")),
            "uki.efi > .cmdline: is \"bonsole=ttyS0",
        ),
        (
            of_uki(padding),
            "uki.efi > padding of .cmdline: 1 bytes differ in 0x0..=0x0",
        ),
        (
            of_uki(find(&good.uki, b"\x7fELF\x02\x01agent") + 8),
            "uki.efi > .initrd > init: 1 bytes differ in 0x8..=0x8",
        ),
        (certificate(&good.uki), "uki.efi > "),
        (
            of_disk(web.content.start + 10_001),
            "rootfs.img > /bin/web: 1 bytes differ in 0x2711..=0x2711 (the file starts at byte",
        ),
        (
            of_disk(inode + 4),
            "rootfs.img > /bin/web: mode 100754, owner 0:0",
        ),
        (
            of_disk(inode + 24),
            "rootfs.img > /bin/web: mode 100755, owner 1:0",
        ),
        (
            of_disk(1024 + 48),
            "rootfs.img > superblock: 1 bytes differ in 0x430..=0x430",
        ),
        (
            of_disk(hashes + 5),
            "rootfs.img > hash tree: 1 bytes differ in 0x5..=0x5",
        ),
        (
            of_disk(disk.len() - 1),
            "rootfs.img > hash tree: 1 bytes differ in ",
        ),
    ];
    for (bad, expected) in rows {
        let told = said(&good, &bad);
        has(&told, expected);
        assert_eq!(told.len(), 1, "{told:#?}");
    }
}

#[test]
fn a_layout_without_a_disk_has_its_files_in_the_initrd() {
    let mut other = initramfs_inputs();
    other.rootfs = web_with(0o755, &[2; 5000], &[]);
    let told = said(&content(&initramfs_inputs()), &content(&other));
    has(
        &told,
        "uki.efi > .initrd > rootfs/bin/web: 5000 bytes differ in 0x0..=0x1387",
    );
    let of_layout = said(&content(&inputs()), &content(&initramfs_inputs()));
    has(&of_layout, "rootfs.img: is missing");
}

#[test]
fn other_capabilities_are_told() {
    let disk = |capability: &'static [u8]| {
        let mut tree = Tree::new();
        let id = tree.add(Inode {
            metadata: Metadata {
                attributes: [(
                    Bytes::from_static(CAPABILITY),
                    Bytes::from_static(capability),
                )]
                .into(),
                ..Metadata::root(0o755)
            },
            content: Content::File(Bytes::from_static(b"ping")),
        });
        let entries = tree.entries_mut(Tree::ROOT).unwrap();
        entries.insert(Bytes::from_static(b"ping"), id);
        encode_erofs(&tree, [0; 16], Compression::None, &InMemory)
            .unwrap()
            .to_bytes()
    };
    let told = root_disk("rootfs.img", &disk(b"\x01\x02"), &disk(b"\x01\x03"), None);
    assert_eq!(told.len(), 1);
    assert_eq!(
        told[0].to_string(),
        "rootfs.img > /ping: has other file capabilities"
    );
}
