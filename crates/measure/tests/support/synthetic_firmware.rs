//! Firmware images that hold nothing but what a VMM reads.

use assay_tee::guid::Guid;
use assay_tee::ovmf::Section;

const FOOTER: Guid = Guid::new(0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d);
const SEV_METADATA: Guid = Guid::new(0xdc88_6566_984a_4798_a75e_5585_a7bf_67cc);
const SEV_HASH_TABLE_RV: Guid = Guid::new(0x7255_371f_3a3b_4b04_927b_1da6_efa8_d454);
const SEV_ES_RESET_BLOCK: Guid = Guid::new(0x00f7_71de_1a7e_4fcb_890e_68c7_7e2f_b44e);
const SVSM_INFO: Guid = Guid::new(0xa789_a612_0597_4c4b_a49f_cbb1_fe9d_1ddd);

const IGVM_METADATA: Guid = Guid::new(0x784f_a70e_3176_4677_8a20_04b6_8699_e374);

/// Offset of the SEV metadata from the end of the image.
const METADATA_OFFSET: usize = 0x600;
/// Offset of the IGVM metadata from the end of the image.
const IGVM_METADATA_OFFSET: usize = 0x700;

/// An OVMF image of `pages` pages filled from `filler`.
pub(crate) struct SyntheticFirmware<'a> {
    pub(crate) pages: usize,
    pub(crate) filler: u8,
    pub(crate) sections: &'a [Section],
    pub(crate) reset_eip: u32,
    pub(crate) hashes_table_gpa: u32,
}

/// The bytes of an OVMF image.
#[allow(dead_code, reason = "not every test has firmware without IGVM files")]
pub(crate) fn build_firmware(firmware: &SyntheticFirmware) -> Vec<u8> {
    build(
        firmware.pages,
        firmware.filler,
        firmware.sections,
        &entries(firmware),
    )
}

/// The bytes of an OVMF image that expects IGVM files: base, size and type of
/// what it expects of them.
#[allow(dead_code, reason = "not every test has an IGVM file")]
pub(crate) fn build_igvm_firmware(firmware: &SyntheticFirmware, areas: &[[u32; 3]]) -> Vec<u8> {
    let offset = u32::try_from(IGVM_METADATA_OFFSET).unwrap();
    let mut entries = entries(firmware);
    entries.push((IGVM_METADATA, offset.to_le_bytes().to_vec()));
    let mut image = build(firmware.pages, firmware.filler, firmware.sections, &entries);
    let count = u32::try_from(areas.len()).unwrap();
    let mut metadata = b"IGVM".to_vec();
    metadata.extend(
        [16 + 12 * count, 1, count]
            .map(u32::to_le_bytes)
            .as_flattened(),
    );
    metadata.extend(
        areas
            .as_flattened()
            .iter()
            .flat_map(|word| word.to_le_bytes()),
    );
    let start = image.len() - IGVM_METADATA_OFFSET;
    image[start..start + metadata.len()].copy_from_slice(&metadata);
    let volume = build_volume(&[&kernel_loader(&[HASH_GUIDS, &[IGVM_DATA_HOB]].concat())]);
    image[..volume.len()].copy_from_slice(&volume);
    image
}

/// The entries of the table of kernel hashes.
#[allow(dead_code, reason = "not every test has a driver")]
pub(crate) const HASH_GUIDS: &[Guid] = &[
    Guid::new(0x4de7_9437_abd2_427f_b835_d5b1_72d2_045b),
    Guid::new(0x44ba_f731_3a2f_4bd7_9af1_41e2_9169_781d),
    Guid::new(0x97d0_2dd8_bd20_4c94_aa78_e771_4d36_ab2a),
];
/// What leads to the kernel of an IGVM file.
#[allow(dead_code, reason = "not every test has a driver")]
pub(crate) const IGVM_DATA_HOB: Guid = Guid::new(0x3dd1_77ff_b632_4e25_bef3_0650_63d5_5fc4);

/// A file of a firmware volume.
#[allow(dead_code, reason = "not every test has a driver")]
pub(crate) fn build_file(name: Guid, kind: u8, content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(24 + content.len()).unwrap().to_le_bytes();
    let mut file = name.as_bytes().to_vec();
    file.extend([0, 0, kind, 0, size[0], size[1], size[2], 0xf8]);
    file.extend(content);
    file
}

/// The driver that hands kernels over, of which these GUIDs are all that is said.
#[allow(dead_code, reason = "not every test has a driver")]
pub(crate) fn kernel_loader(holds: &[Guid]) -> Vec<u8> {
    const DRIVER: Guid = Guid::new(0x8060_40ca_dad9_4978_a3b4_2d2a_b0c8_a48f);
    let holds: Vec<u8> = holds.iter().flat_map(|guid| *guid.as_bytes()).collect();
    build_file(DRIVER, 0x07, &[b"code".as_slice(), &holds].concat())
}

/// A firmware volume of whole pages.
#[allow(dead_code, reason = "not every test has a driver")]
pub(crate) fn build_volume(files: &[&[u8]]) -> Vec<u8> {
    const FILE_SYSTEM: Guid = Guid::new(0x8c8c_e578_8a3d_4f1c_9935_8961_85c3_2dd3);
    let mut volume = vec![0; 16];
    volume.extend(FILE_SYSTEM.as_bytes());
    volume.extend([0; 8]);
    volume.extend(b"_FVH\xff\xfe\x04\0\x48\0\0\0\0\0\0\x02");
    volume.resize(0x48, 0);
    for file in files {
        volume.resize(volume.len().next_multiple_of(8), 0xff);
        volume.extend(*file);
    }
    volume.resize((volume.len() + 24).next_multiple_of(4096), 0xff);
    let length = u64::try_from(volume.len()).unwrap();
    volume[0x20..0x28].copy_from_slice(&length.to_le_bytes());
    volume
}

fn entries(firmware: &SyntheticFirmware) -> Vec<(Guid, Vec<u8>)> {
    let hashes_table = [
        firmware.hashes_table_gpa.to_le_bytes(),
        0x400_u32.to_le_bytes(),
    ]
    .concat();
    vec![
        (SEV_HASH_TABLE_RV, hashes_table),
        (
            SEV_ES_RESET_BLOCK,
            firmware.reset_eip.to_le_bytes().to_vec(),
        ),
    ]
}

/// The bytes of an SVSM binary whose entry point has this offset.
#[allow(dead_code, reason = "not every test has an SVSM")]
pub(crate) fn build_svsm(pages: usize, filler: u8, sections: &[Section], entry: u32) -> Vec<u8> {
    let entries = [(SVSM_INFO, entry.to_le_bytes().to_vec())];
    build(pages, filler, sections, &entries)
}

fn build(pages: usize, filler: u8, sections: &[Section], entries: &[(Guid, Vec<u8>)]) -> Vec<u8> {
    let metadata_offset = u32::try_from(METADATA_OFFSET).unwrap().to_le_bytes();
    let mut table = Vec::new();
    for (guid, data) in entries
        .iter()
        .chain([&(SEV_METADATA, metadata_offset.to_vec())])
    {
        table.extend(data);
        table.extend(u16::try_from(data.len() + 18).unwrap().to_le_bytes());
        table.extend(guid.as_bytes());
    }
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

    let mut image = vec![filler; pages * 4096];
    for (index, page) in image.chunks_mut(4096).enumerate() {
        page[..8].copy_from_slice(&u64::try_from(index).unwrap().to_le_bytes());
    }
    let metadata_start = image.len() - METADATA_OFFSET;
    image[metadata_start..metadata_start + metadata.len()].copy_from_slice(&metadata);
    let table_start = image.len() - 32 - table.len();
    image[table_start..table_start + table.len()].copy_from_slice(&table);
    image
}
