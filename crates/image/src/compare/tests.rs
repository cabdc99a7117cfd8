use super::*;
use crate::artifact::tests::{initramfs_inputs, inputs, switched_off, web_with};
use crate::artifact::{BuildInputs, build};
use crate::hardening::Setting;
use crate::recipe::Compression;

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

#[test]
fn a_byte_outside_of_everything_is_a_range() {
    let good = content(&inputs());
    let flip = |bytes: &Bytes, at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        Bytes::from(bytes)
    };
    let disk = good.root_disk.clone().unwrap();
    let bad = ArtifactContent {
        root_disk: Some(flip(&disk, disk.len() - 1)),
        firmware: flip(&good.firmware, 16),
        uki: flip(&good.uki, 8),
        ..good.clone()
    };
    let told = said(&good, &bad);
    has(&told, "firmware.fd: 1 bytes differ in 0x10..=0x10");
    has(
        &told,
        "uki.efi > headers, stub or signatures: outside of our sections: 1 bytes differ in 0x8",
    );
    has(
        &told,
        "rootfs.img > superblock, padding or hash tree: 1 bytes differ in ",
    );
    assert_eq!(told.len(), 3);
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
