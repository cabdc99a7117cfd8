//! Parsers never panic: on random bytes, and on good input with damage. The
//! targets in `fuzz/` hold the same properties for longer.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../measure/tests/support/synthetic_firmware.rs"]
mod synthetic_firmware;

use assay_tee::gpt::parse_header;
use assay_tee::id_block::{EcdsaPublicKey, EcdsaSignature, IdAuth, IdBlock, KeyAndSignature};
use assay_tee::ovmf::{Section, SectionKind, parse_ovmf, parse_table, validate_sections};
use assay_tee::svsm::parse_svsm;
use assay_tee::{AttestationReport, GuestPolicy, LaunchDigest};
use proptest::prelude::*;
use synthetic_firmware::{SyntheticFirmware, build_firmware, build_svsm};

/// Bytes to write over good input: where, counted from the end, and what. The
/// end is where firmware has its table.
fn damage(within: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((1..=within, any::<u8>()), 0..8)
}

fn damaged(mut bytes: Vec<u8>, damage: &[(usize, u8)], cut: usize) -> Vec<u8> {
    for (from_end, value) in damage {
        if let Some(at) = bytes.len().checked_sub(*from_end) {
            bytes[at] = *value;
        }
    }
    bytes.truncate(bytes.len().saturating_sub(cut));
    bytes
}

/// Mostly nothing, sometimes a few bytes or all.
fn cut() -> impl Strategy<Value = usize> {
    prop_oneof![8 => Just(0), 1 => 1..100_usize, 1 => Just(4096)]
}

fn sections() -> [Section; 2] {
    [
        Section {
            gpa: 0x80_0000,
            size: 0x9000,
            kind: SectionKind::SecMem,
        },
        Section {
            gpa: 0x81_0000,
            size: 0x1000,
            kind: SectionKind::KernelHashes,
        },
    ]
}

fn firmware() -> Vec<u8> {
    build_firmware(&SyntheticFirmware {
        pages: 1,
        filler: 0,
        sections: &sections(),
        reset_eip: 0x80_b004,
        hashes_table_gpa: 0x81_0c00,
    })
}

fn svsm() -> Vec<u8> {
    build_svsm(2, 0x90, &[], 0x10)
}

fn check_firmware(bytes: &[u8]) {
    let table = parse_table(bytes);
    if let Ok(metadata) = parse_ovmf(bytes) {
        assert!(table.is_ok());
        assert!(validate_sections(&metadata.sections, metadata.base_gpa).is_ok());
    }
}

fn check_svsm(bytes: &[u8], end_gpa: u64) {
    if let Ok(metadata) = parse_svsm(bytes, end_gpa) {
        assert!(metadata.base_gpa <= u64::from(metadata.entry));
        assert!(u64::from(metadata.entry) < end_gpa);
    }
}

fn check_report(bytes: &[u8]) {
    if let Ok(report) = AttestationReport::parse(bytes) {
        assert_eq!(report.encode().as_slice(), bytes);
    }
}

fn check_id_block(bytes: &[u8]) {
    if let Ok(block) = IdBlock::parse(bytes) {
        assert_eq!(block.encode().as_slice(), bytes);
    }
    if let Ok(auth) = IdAuth::parse(bytes) {
        assert_eq!(auth.encode().as_slice(), bytes);
    }
}

fn check_table_of_partitions(bytes: &[u8]) {
    if let Some(array) = parse_header(bytes) {
        let partitions = array.parse_partitions(bytes);
        assert!(partitions.len() <= bytes.len() / 128);
        assert!(partitions.iter().all(|partition| partition.sectors > 0));
    }
}

/// A header with 128 entries of 128 bytes, and as much after it.
fn table_of_partitions() -> Vec<u8> {
    let mut table = b"EFI PART".to_vec();
    table.resize(72, 0);
    table.extend(2_u64.to_le_bytes());
    table.extend([128_u32.to_le_bytes(); 2].concat());
    table.resize(512 + 128 * 128, 1);
    table
}

fn report() -> Vec<u8> {
    let mut report = AttestationReport::zeroed();
    report.version = 5.into();
    report.signature_algo = 1.into();
    report.encode().to_vec()
}

fn auth() -> Vec<u8> {
    let part = KeyAndSignature {
        key: EcdsaPublicKey::from_coordinates(&[1; 96]),
        signature: EcdsaSignature::from_fixed(&[2; 96]),
    };
    IdAuth::new(&part, Some(&part)).encode().to_vec()
}

proptest! {
    #[test]
    fn random_bytes_give_a_value_or_an_error(bytes: Vec<u8>, end_gpa: u64) {
        check_firmware(&bytes);
        check_svsm(&bytes, end_gpa);
        check_report(&bytes);
        check_id_block(&bytes);
        check_table_of_partitions(&bytes);
    }

    #[test]
    fn damaged_tables_of_partitions_give_a_value_or_an_error(
        changes in damage(512 + 128 * 128),
        cut in cut(),
    ) {
        check_table_of_partitions(&damaged(table_of_partitions(), &changes, cut));
    }

    #[test]
    fn damaged_firmware_gives_a_value_or_an_error(changes in damage(512), cut in cut()) {
        check_firmware(&damaged(firmware(), &changes, cut));
    }

    #[test]
    fn damaged_svsm_gives_a_value_or_an_error(
        changes in damage(512),
        cut in cut(),
        end_gpa in prop_oneof![Just(0xffc0_0000_u64), any::<u64>(), (0..0x10_0001_u64).prop_map(|page| page << 12)],
    ) {
        check_svsm(&damaged(svsm(), &changes, cut), end_gpa);
    }

    #[test]
    fn damaged_reports_give_a_value_or_an_error(changes in damage(0x4a0), cut in cut()) {
        check_report(&damaged(report(), &changes, cut));
    }

    #[test]
    fn damaged_id_blocks_give_a_value_or_an_error(changes in damage(0x1000), cut in cut()) {
        let block = IdBlock::new(LaunchDigest::new([3; 48]), GuestPolicy::default());
        check_id_block(&damaged(block.encode().to_vec(), &changes, cut));
        check_id_block(&damaged(auth(), &changes, cut));
    }
}

#[test]
fn the_good_inputs_are_good() {
    assert!(parse_ovmf(&firmware()).is_ok());
    assert!(parse_svsm(&svsm(), 0xffc0_0000).is_ok());
    assert!(AttestationReport::parse(&report()).is_ok());
    assert!(IdAuth::parse(&auth()).is_ok());
}
