use super::*;

/// The parts of a synthetic firmware, in the form of edk2's AmdSev build.
#[derive(Clone)]
struct Parts {
    len: usize,
    entries: Vec<(Guid, Vec<u8>)>,
    signature: [u8; 4],
    version: u32,
    sections: Vec<(u32, u32, u32)>,
    claimed_sections: Option<u32>,
}

/// Offset of the SEV metadata from the end of a synthetic firmware.
const METADATA_OFFSET: u32 = 0x800;

fn good() -> Parts {
    Parts {
        len: 8192,
        entries: vec![
            (
                SEV_HASH_TABLE_RV_GUID,
                [0x81_0c00_u32.to_le_bytes(), 0x400_u32.to_le_bytes()].concat(),
            ),
            (SEV_METADATA_GUID, METADATA_OFFSET.to_le_bytes().to_vec()),
            (
                SEV_ES_RESET_BLOCK_GUID,
                0x80_b004_u32.to_le_bytes().to_vec(),
            ),
        ],
        signature: *b"ASEV",
        version: 1,
        sections: vec![
            (0x80_0000, 0x9000, 1),
            (0x80_a000, 0x3000, 1),
            (0x80_d000, 0x1000, 2),
            (0x80_e000, 0x1000, 3),
            (0x80_f000, 0x1000, 4),
            (0x81_1000, 0xf000, 1),
            (0x81_0000, 0x1000, 0x10),
        ],
        claimed_sections: None,
    }
}

/// Firmware whose table has one entry more, with data that the entry says lie
/// `offset` bytes before the end.
pub(crate) fn with_entry(guid: Guid, offset: u32, data: &[u8]) -> Vec<u8> {
    let mut parts = good();
    parts.entries.push((guid, offset.to_le_bytes().to_vec()));
    let mut firmware = parts.build();
    if let Some(start) = firmware.len().checked_sub(offset as usize) {
        firmware[start..start + data.len()].copy_from_slice(data);
    }
    firmware
}

impl Parts {
    fn build(&self) -> Vec<u8> {
        let mut table = Vec::new();
        for (guid, data) in &self.entries {
            table.extend(data);
            table.extend(
                u16::try_from(data.len() + ENTRY_TAIL)
                    .unwrap()
                    .to_le_bytes(),
            );
            table.extend(guid.as_bytes());
        }
        table.extend(
            u16::try_from(table.len() + ENTRY_TAIL)
                .unwrap()
                .to_le_bytes(),
        );
        table.extend(FOOTER_GUID.as_bytes());

        let count = u32::try_from(self.sections.len()).unwrap();
        let mut metadata = self.signature.to_vec();
        for field in [
            16 + 12 * count,
            self.version,
            self.claimed_sections.unwrap_or(count),
        ] {
            metadata.extend(field.to_le_bytes());
        }
        for &(gpa, size, kind) in &self.sections {
            metadata.extend([gpa, size, kind].map(u32::to_le_bytes).as_flattened());
        }

        let mut firmware = vec![0xcc; self.len];
        let table_start = self.len - BYTES_AFTER_TABLE - table.len();
        firmware[table_start..self.len - BYTES_AFTER_TABLE].copy_from_slice(&table);
        let metadata_start = self.len - METADATA_OFFSET as usize;
        firmware[metadata_start..metadata_start + metadata.len()].copy_from_slice(&metadata);
        firmware
    }
}

fn section_problem(change: impl FnOnce(&mut Vec<(u32, u32, u32)>)) -> SectionProblem {
    let mut parts = good();
    change(&mut parts.sections);
    match parse_ovmf(&parts.build()) {
        Err(ParseOvmfError::Section { problem, .. }) => problem,
        other => panic!("expected a section problem, got {other:?}"),
    }
}

fn metadata_problem(change: impl FnOnce(&mut Parts)) -> SevMetadataProblem {
    let mut parts = good();
    change(&mut parts);
    match parse_ovmf(&parts.build()) {
        Err(ParseOvmfError::SevMetadata { problem }) => problem,
        other => panic!("expected an SEV metadata problem, got {other:?}"),
    }
}

fn area_problem(gpa: u32, size: u32) -> HashesTableAreaProblem {
    let mut parts = good();
    parts.entries[0].1 = [gpa.to_le_bytes(), size.to_le_bytes()].concat();
    match parse_ovmf(&parts.build()) {
        Err(ParseOvmfError::HashesTableArea { problem, .. }) => problem,
        other => panic!("expected a problem of the hashes table area, got {other:?}"),
    }
}

#[test]
fn reads_sections_in_file_order_and_both_addresses() {
    let metadata = parse_ovmf(&good().build()).unwrap();
    assert_eq!(metadata.base_gpa, 0xffff_e000);
    assert_eq!(metadata.reset_eip, Some(0x80_b004));
    assert_eq!(
        metadata.hashes_table,
        Some(HashesTableArea {
            gpa: 0x81_0c00,
            size: 0x400
        })
    );
    let kinds: Vec<_> = metadata
        .sections
        .iter()
        .map(|section| section.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            SectionKind::SecMem,
            SectionKind::SecMem,
            SectionKind::SnpSecrets,
            SectionKind::Cpuid,
            SectionKind::SvsmCaa,
            SectionKind::SecMem,
            SectionKind::KernelHashes,
        ]
    );
    assert_eq!(
        metadata.section(SectionKind::KernelHashes).unwrap().gpa,
        0x81_0000
    );
}

#[test]
fn what_firmware_does_not_name_is_absent() {
    let mut parts = good();
    parts.entries.clear();
    let metadata = parse_ovmf(&parts.build()).unwrap();
    assert_eq!((metadata.reset_eip, metadata.hashes_table), (None, None));
    assert!(metadata.sections.is_empty());

    let mut parts = good();
    parts.entries[0].1 = vec![0; 8];
    parts.entries[2].1 = vec![0; 4];
    let metadata = parse_ovmf(&parts.build()).unwrap();
    assert_eq!((metadata.reset_eip, metadata.hashes_table), (None, None));
}

#[test]
fn unknown_section_types_and_empty_memory_are_kept() {
    let mut parts = good();
    parts
        .sections
        .extend([(0, 0, 1), (0, 0, 4), (0x90_0000, 0x1000, 0x77)]);
    let metadata = parse_ovmf(&parts.build()).unwrap();
    assert_eq!(metadata.sections.len(), 10);
    assert_eq!(metadata.sections[9].kind, SectionKind::Unknown(0x77));
}

#[test]
fn impossible_lengths_are_refused() {
    let firmware = good().build();
    for len in [0, 1, 10, 4095, 8191] {
        assert_eq!(
            parse_ovmf(&firmware[..len]),
            Err(ParseOvmfError::Length { len })
        );
    }
    assert_eq!(
        parse_ovmf(&firmware[..4096]),
        Err(ParseOvmfError::NoFooter),
        "the wrong half"
    );
}

#[test]
fn damaged_tables_are_refused() {
    let firmware = good().build();
    let footer = firmware.len() - BYTES_AFTER_TABLE - ENTRY_TAIL;
    let table_problem = |firmware: &[u8]| match parse_ovmf(firmware) {
        Err(ParseOvmfError::Table { problem }) => problem,
        other => panic!("expected a table problem, got {other:?}"),
    };
    let with_length = |length: u16| {
        let mut changed = firmware.clone();
        changed[footer..footer + 2].copy_from_slice(&length.to_le_bytes());
        table_problem(&changed)
    };
    assert_eq!(with_length(17), TableProblem::Length(17));
    assert_eq!(with_length(u16::MAX), TableProblem::Length(u16::MAX));
    assert_eq!(with_length(18 + 17), TableProblem::Rest(17));
    assert!(matches!(
        with_length(18 + 18),
        TableProblem::EntryLength { length: 22, .. }
    ));

    let mut parts = good();
    let again = parts.entries[2].clone();
    parts.entries.push(again);
    assert_eq!(
        table_problem(&parts.build()),
        TableProblem::Duplicate(SEV_ES_RESET_BLOCK_GUID)
    );

    let mut parts = good();
    parts.entries[0].1.truncate(7);
    assert_eq!(
        parse_ovmf(&parts.build()),
        Err(ParseOvmfError::EntryData {
            guid: SEV_HASH_TABLE_RV_GUID,
            need: 8,
            got: 7
        })
    );
}

#[test]
fn damaged_sev_metadata_are_refused() {
    let offset =
        |offset: u32| metadata_problem(|parts| parts.entries[1].1 = offset.to_le_bytes().to_vec());
    assert_eq!(offset(8193), SevMetadataProblem::Offset(8193));
    assert_eq!(offset(u32::MAX), SevMetadataProblem::Offset(u32::MAX));
    assert_eq!(offset(15), SevMetadataProblem::Offset(15));
    assert_eq!(offset(0), SevMetadataProblem::Offset(0));
    assert_eq!(
        metadata_problem(|p| p.signature = *b"TDVF"),
        SevMetadataProblem::Signature
    );
    assert_eq!(
        metadata_problem(|p| p.version = 2),
        SevMetadataProblem::Version(2)
    );
    assert_eq!(
        metadata_problem(|p| p.claimed_sections = Some(8)),
        SevMetadataProblem::Length {
            length: 100,
            sections: 8
        }
    );
    assert_eq!(
        metadata_problem(|p| p.claimed_sections = Some(u32::MAX)),
        SevMetadataProblem::TooManySections(u32::MAX)
    );
    assert_eq!(
        metadata_problem(|p| p.sections = vec![(0, 0x1000_1000, 1)]),
        SevMetadataProblem::TooManyPages
    );
}

#[test]
fn impossible_sections_are_refused() {
    assert_eq!(
        section_problem(|s| s[0].0 = 0x80_0001),
        SectionProblem::Misaligned
    );
    assert_eq!(
        section_problem(|s| s[0].1 = 0x8fff),
        SectionProblem::Misaligned
    );
    assert_eq!(
        section_problem(|s| s[0].0 = 0xffff_e000),
        SectionProblem::ReachesFirmware
    );
    assert_eq!(
        section_problem(|s| s[5].1 = 0xffff_f000),
        SectionProblem::ReachesFirmware
    );
    assert_eq!(
        section_problem(|s| s[1].0 = 0x80_8000),
        SectionProblem::Overlaps(0)
    );
    assert_eq!(
        section_problem(|s| s[6].0 = 0x81_f000),
        SectionProblem::Overlaps(5)
    );
    for index in [2, 3, 6] {
        assert_eq!(
            section_problem(|s| s[index].1 = 0),
            SectionProblem::NotOnePage
        );
        let problem = section_problem(|s| s.push((0x90_0000, 0x1000, s[index].2)));
        assert_eq!(problem, SectionProblem::Duplicate(index));
    }
}

#[test]
fn a_hashes_table_that_would_not_be_measured_is_refused() {
    assert_eq!(
        area_problem(0x81_0c00, 0xaf),
        HashesTableAreaProblem::TooSmall
    );
    assert_eq!(
        area_problem(0x81_0f51, 0x400),
        HashesTableAreaProblem::CrossesPage
    );
    assert_eq!(
        area_problem(0x80_fc00, 0x400),
        HashesTableAreaProblem::Unmeasured(0x81_0000)
    );
}

#[test]
fn no_single_changed_byte_makes_the_parser_panic() {
    let firmware = good().build();
    let interesting = firmware.len() - METADATA_OFFSET as usize..firmware.len();
    for at in interesting {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = firmware.clone();
            changed[at] = value;
            // Errors are fine, panics are not.
            let _ = parse_ovmf(&changed);
        }
    }
}
