//! Firmware images that hold nothing but what a VMM reads.

use assay_tee::guid::Guid;
use assay_tee::ovmf::Section;

const FOOTER: Guid = Guid::new(0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d);
const SEV_METADATA: Guid = Guid::new(0xdc88_6566_984a_4798_a75e_5585_a7bf_67cc);
const SEV_HASH_TABLE_RV: Guid = Guid::new(0x7255_371f_3a3b_4b04_927b_1da6_efa8_d454);
const SEV_ES_RESET_BLOCK: Guid = Guid::new(0x00f7_71de_1a7e_4fcb_890e_68c7_7e2f_b44e);

/// Offset of the SEV metadata from the end of the image.
const METADATA_OFFSET: usize = 0x600;

/// An image of `pages` pages filled from `filler`, with the entries that are
/// given.
pub(crate) fn build_firmware(
    pages: usize,
    filler: u8,
    sections: &[Section],
    reset_eip: u32,
    hashes_table_gpa: u32,
) -> Vec<u8> {
    let mut table = Vec::new();
    let mut entry = |guid: Guid, data: &[u8]| {
        table.extend(data);
        table.extend(u16::try_from(data.len() + 18).unwrap().to_le_bytes());
        table.extend(guid.as_bytes());
    };
    let area = [hashes_table_gpa.to_le_bytes(), 0x400_u32.to_le_bytes()].concat();
    entry(SEV_HASH_TABLE_RV, &area);
    entry(
        SEV_METADATA,
        &u32::try_from(METADATA_OFFSET).unwrap().to_le_bytes(),
    );
    entry(SEV_ES_RESET_BLOCK, &reset_eip.to_le_bytes());
    let table_length = u16::try_from(table.len() + 18).unwrap();
    table.extend(table_length.to_le_bytes());
    table.extend(FOOTER.as_bytes());

    let count = u32::try_from(sections.len()).unwrap();
    let mut metadata = b"ASEV".to_vec();
    metadata.extend(
        [16 + 12 * count, 1, count]
            .map(u32::to_le_bytes)
            .as_flattened(),
    );
    for section in sections {
        let fields = [section.gpa, section.size, section.kind.into()];
        metadata.extend(fields.map(u32::to_le_bytes).as_flattened());
    }
    assert!(metadata.len() + table.len() + 32 <= METADATA_OFFSET);

    let mut firmware = vec![filler; pages * 4096];
    for (index, page) in firmware.chunks_mut(4096).enumerate() {
        page[..8].copy_from_slice(&u64::try_from(index).unwrap().to_le_bytes());
    }
    let metadata_start = firmware.len() - METADATA_OFFSET;
    firmware[metadata_start..metadata_start + metadata.len()].copy_from_slice(&metadata);
    let table_start = firmware.len() - 32 - table.len();
    firmware[table_start..table_start + table.len()].copy_from_slice(&table);
    firmware
}
