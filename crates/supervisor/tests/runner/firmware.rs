//! The smallest files that pass for a firmware and a UKI.

const SEV_METADATA: u128 = 0xdc88_6566_984a_4798_a75e_5585_a7bf_67cc;
const HASHES_TABLE: u128 = 0x7255_371f_3a3b_4b04_927b_1da6_efa8_d454;
const RESET_BLOCK: u128 = 0x00f7_71de_1a7e_4fcb_890e_68c7_7e2f_b44e;
const FOOTER: u128 = 0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d;

/// A GUID as UEFI stores it: the first three fields little-endian.
fn guid(value: u128) -> [u8; 16] {
    let mut bytes = value.to_be_bytes();
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// One page of OVMF: SEV metadata with a memory and a KERNEL_HASHES section,
/// the hashes table's area, and an address for application processors.
pub(crate) fn ovmf() -> Vec<u8> {
    let metadata_offset_from_end = 0x400;
    let entries = [
        (SEV_METADATA, words(&[metadata_offset_from_end])),
        (RESET_BLOCK, words(&[0x80_b004])),
        (HASHES_TABLE, words(&[0x81_0c00, 0x400])),
    ];
    let mut table = Vec::new();
    for (id, data) in entries {
        table.extend(&data);
        table.extend(u16::try_from(data.len() + 18).unwrap().to_le_bytes());
        table.extend(guid(id));
    }
    table.extend(u16::try_from(table.len() + 18).unwrap().to_le_bytes());
    table.extend(guid(FOOTER));

    let mut metadata = b"ASEV".to_vec();
    let sections = words(&[0x80_0000, 0x9000, 1, 0x81_0000, 0x1000, 0x10]);
    metadata.extend(words(&[u32::try_from(16 + sections.len()).unwrap(), 1, 2]));
    metadata.extend(sections);

    let mut image = vec![0xf4; 4096];
    let end = image.len() - 32;
    image[end - table.len()..end].copy_from_slice(&table);
    let start = image.len() - 0x400;
    image[start..start + metadata.len()].copy_from_slice(&metadata);
    image
}

/// A PE32+ file whose only section is `.uname`.
pub(crate) fn uki() -> Vec<u8> {
    let mut file = vec![0; 0x400];
    let mut put = |offset: usize, bytes: &[u8]| {
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let optional_header_size = 240_u16;
    let section_header = 0x58 + usize::from(optional_header_size);
    put(0x00, b"MZ");
    put(0x3c, &words(&[0x40]));
    put(0x40, b"PE\0\0");
    put(0x44, &0x8664_u16.to_le_bytes());
    put(0x46, &1_u16.to_le_bytes());
    put(0x54, &optional_header_size.to_le_bytes());
    put(0x58, &0x20b_u16.to_le_bytes());
    put(0x58 + 108, &words(&[16]));
    put(section_header, b".uname");
    put(section_header + 8, &words(&[4, 0x1000, 0x200, 0x200]));
    put(0x200, b"6.12");
    file
}
