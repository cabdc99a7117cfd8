use super::*;
use crate::artifact::tests::{initramfs_inputs, inputs};
use crate::artifact::{BuildInputs, build};
use crate::pe::u32_at;

fn number(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u32_at(bytes, at).unwrap()).unwrap()
}

/// Type and identifier as text, and content, of each partition, read by the
/// first table or by the second.
pub(crate) fn partitions(disk: &[u8], header_at: usize) -> Vec<(String, String, Vec<u8>)> {
    let header = &disk[header_at * 512..][..512];
    assert_eq!(&header[..8], b"EFI PART");
    let mut without = header[..92].to_vec();
    without[16..20].fill(0);
    assert_eq!(number(header, 16), crc32fast::hash(&without) as usize);
    assert_eq!(number(header, 24), header_at);
    let array = &disk[number(header, 72) * 512..][..128 * 128];
    assert_eq!(number(header, 88), crc32fast::hash(array) as usize);
    let entries = array.chunks(128).take_while(|entry| entry[0] != 0);
    entries
        .map(|entry| {
            let (first, last) = (number(entry, 32), number(entry, 40));
            assert!(number(header, 40) <= first && last <= number(header, 48));
            let content = disk[first * 512..(last + 1) * 512].to_vec();
            (guid(&entry[..16]), guid(&entry[16..32]), content)
        })
        .collect()
}

fn guid(bytes: &[u8]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    hex::encode(order.map(|index| bytes[index]))
}

#[test]
fn the_partitions_are_those_that_a_guest_looks_for() {
    let artifact = build(&inputs()).unwrap();
    let disk = encode_disk(&artifact).unwrap().to_bytes();
    assert!(disk.len().is_multiple_of(1 << 20));
    let found = partitions(&disk, 1);
    let last = disk.len() / 512 - 1;
    assert_eq!(partitions(&disk, last), found);
    assert_eq!(number(&disk[512..], 32), last);

    let root = artifact.manifest.root_disk.clone().unwrap();
    let RootFs::DmVerity { root_hash, .. } = root.root else {
        panic!("another root");
    };
    let root_hash = root_hash.to_hex();
    let kinds: Vec<_> = found.iter().map(|(kind, ..)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "c12a7328f81f11d2ba4b00a0c93ec93b",
            "4f68bce3e8cd4db196e7fbcaf984b709",
            "2c7357edebd246d9aec123d437ec2bf5",
        ]
    );
    assert_eq!(found[1].1, root_hash[..32]);
    assert_eq!(found[2].1, root_hash[32..]);
    let files = &artifact.files;
    let whole = [found[1].2.as_slice(), &found[2].2].concat();
    let (_, rootfs) = files
        .iter()
        .find(|(name, _)| *name == ROOT_DISK_PATH)
        .unwrap();
    assert!(whole == rootfs.to_bytes(), "the root disk is another");
    assert!(found[2].2.starts_with(b"verity\0\0"));
}

#[test]
fn a_disk_is_pinned() {
    let digest = |inputs: BuildInputs| {
        let artifact = build(&inputs).unwrap();
        encode_disk(&artifact).unwrap().sha256().to_string()
    };
    assert_eq!(
        digest(inputs()),
        "sha256:35f0b413c78dfc8d97b0554836951415d696db114f1d6d616509aff477342fa7"
    );
    assert_eq!(
        digest(initramfs_inputs()),
        "sha256:95bee151fab40d60506b5f0ffcec5359f88b904819547687f074c8f17c29b4fd"
    );
}

#[test]
fn without_a_root_disk_there_is_one_partition() {
    let artifact = build(&initramfs_inputs()).unwrap();
    let disk = encode_disk(&artifact).unwrap().to_bytes();
    assert_eq!(partitions(&disk, 1).len(), 1);
}

/// The file system read by its own numbers: a chain of clusters from the root
/// directory to the file.
#[test]
fn the_esp_has_the_uki_where_firmware_looks() {
    let artifact = build(&inputs()).unwrap();
    let disk = encode_disk(&artifact).unwrap().to_bytes();
    let esp = partitions(&disk, 1).remove(0).2;
    assert_eq!(esp.len(), number(&esp, 32) * 512);
    let (tables, table_len) = (32 * 512, number(&esp, 36) * 512);
    let data = tables + 2 * table_len;
    assert!(esp[tables..][..table_len] == esp[tables + table_len..][..table_len]);
    assert_eq!(esp[6 * 512..8 * 512], esp[..2 * 512]);
    let clusters = (esp.len() - data) / 512;
    assert!(clusters >= 65_525, "{clusters} clusters are no FAT32");

    let read = |first: usize| {
        let mut content = Vec::new();
        let mut cluster = first;
        while cluster < 0x0fff_fff8 {
            content.extend(&esp[data + (cluster - 2) * 512..][..512]);
            cluster = number(&esp, tables + 4 * cluster);
        }
        content
    };
    let find = |directory: &[u8], name: &[u8; 11]| {
        let mut entries = directory.chunks(32);
        let entry = entries.find(|entry| entry.starts_with(name)).unwrap();
        let low = usize::from(entry[26]) | usize::from(entry[27]) << 8;
        (low, number(entry, 28))
    };
    let root = read(number(&esp, 44));
    let efi = read(find(&root, b"EFI        ").0);
    let boot = read(find(&efi, b"BOOT       ").0);
    assert_eq!(find(&boot, b"..         ").0, find(&root, b"EFI        ").0);
    let (first, len) = find(&boot, b"BOOTX64 EFI");
    let (_, uki) = artifact
        .files
        .iter()
        .find(|(name, _)| *name == UKI_PATH)
        .unwrap();
    let content = read(first);
    assert!(content[..len] == uki.to_bytes(), "the UKI is another");
    let used = 3 + len.div_ceil(512);
    assert_eq!(number(&esp, 512 + 488), clusters - used);
}

#[test]
fn an_artifact_that_lacks_a_file_is_refused() {
    let mut artifact = build(&inputs()).unwrap();
    artifact.files.retain(|(name, _)| *name != UKI_PATH);
    assert_eq!(
        encode_disk(&artifact).unwrap_err(),
        EncodeDiskError::MissingFile(UKI_PATH)
    );
    let mut artifact = build(&inputs()).unwrap();
    if let Some(RootFs::DmVerity { data_blocks, .. }) = artifact
        .manifest
        .root_disk
        .as_mut()
        .map(|disk| &mut disk.root)
    {
        *data_blocks = 1 << 40;
    }
    assert_eq!(
        encode_disk(&artifact).unwrap_err(),
        EncodeDiskError::RootDisk
    );
}
