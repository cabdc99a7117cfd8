//! Laws that hold for every input, checked on generated ones.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

#[path = "support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::collections::BTreeSet;

use assay_measure::context::LaunchContext;
use assay_measure::matrix::measure_matrix;
use assay_measure::sev::{measure_sev_es, measure_sev_es_counts};
use assay_measure::svsm::{SvsmInputs, SvsmProfile, measure_svsm, measure_svsm_counts};
use assay_measure::trace::RegionKind;
use assay_measure::vcpus::NoResetAddressError;
use assay_measure::{
    FirmwareInputs, MeasureError, MeasurementInputs, VcpuProfile, measure_snp_launch,
    measure_vcpu_range,
};
use assay_tee::cpu::CpuSignature;
use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{Section, SectionKind, parse_ovmf};
use assay_tee::svsm::parse_svsm;
use assay_tee::vmsa::{SvsmFpu, Vmm};
use assay_tee::{BootMethod, GuestFeatures, Sha256Digest, VcpuCount};
use proptest::prelude::*;
use synthetic_firmware::{SyntheticFirmware, build_firmware, build_svsm};

const KINDS: [SectionKind; 5] = [
    SectionKind::SecMem,
    SectionKind::SnpSecrets,
    SectionKind::Cpuid,
    SectionKind::SvsmCaa,
    SectionKind::KernelHashes,
];

/// Sections of edk2's AmdSev build in an arbitrary order.
fn sections() -> impl Strategy<Value = Vec<Section>> {
    let all: Vec<Section> = KINDS
        .into_iter()
        .enumerate()
        .map(|(index, kind)| Section {
            gpa: 0x80_0000 + 0x1_0000 * u32::try_from(index).unwrap(),
            size: 0x1000,
            kind,
        })
        .collect();
    Just(all).prop_shuffle()
}

fn profiles() -> impl Strategy<Value = VcpuProfile> {
    let vmms = prop::sample::select(Vmm::ALL.to_vec());
    (vmms, any::<u32>(), any::<u64>()).prop_map(|(vmm, signature, features)| VcpuProfile {
        vmm,
        cpu_signature: CpuSignature(signature),
        guest_features: GuestFeatures(features | 1),
    })
}

fn inputs() -> impl Strategy<Value = MeasurementInputs> {
    (
        sections(),
        1..4_usize,
        any::<u8>(),
        1..=u32::MAX,
        any::<Option<[u8; 32]>>(),
    )
        .prop_map(|(sections, pages, filler, reset_eip, kernel)| {
            let firmware = build_firmware(&SyntheticFirmware {
                pages,
                filler,
                sections: &sections,
                reset_eip,
                hashes_table_gpa: 0x84_0c00,
            });
            let hashes = kernel
                .map(|digest| KernelHashes::from_digests(Sha256Digest::new(digest), None, "a=b"));
            MeasurementInputs::from_bytes(&firmware, hashes).unwrap()
        })
}

fn svsms() -> impl Strategy<Value = (SvsmInputs, SvsmProfile)> {
    let fpu = prop::sample::select(vec![
        SvsmFpu::BeforeInit2,
        SvsmFpu::Init2,
        SvsmFpu::SevSnpMeasure,
    ]);
    (
        sections(),
        1..4_usize,
        1..9_u64,
        0..0x1000_u32,
        any::<u32>(),
        fpu,
    )
        .prop_map(|(sections, pages, vars_pages, entry, signature, fpu)| {
            let firmware = build_firmware(&SyntheticFirmware {
                pages,
                filler: 3,
                sections: &sections,
                reset_eip: 1,
                hashes_table_gpa: 0x84_0c00,
            });
            let svsm = build_svsm(pages, 4, &sections, entry);
            let profile = SvsmProfile {
                cpu_signature: CpuSignature(signature),
                fpu,
            };
            let inputs = SvsmInputs::from_bytes(&firmware, vars_pages * 4096, &svsm).unwrap();
            (inputs, profile)
        })
}

/// Any vCPU counts up to 12, at least one.
fn counts() -> impl Strategy<Value = BTreeSet<VcpuCount>> {
    prop::collection::btree_set((1..=12_u32).prop_map(count), 1..5)
}

fn count(count: u32) -> VcpuCount {
    VcpuCount::try_from(count).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn extending_by_vcpus_equals_measuring_each_count(
        inputs in inputs(),
        profile in profiles(),
        first in 1..6_u32,
        further in 0..6_u32,
    ) {
        let range = count(first)..=count(first + further);
        let extended = measure_vcpu_range(&inputs, BootMethod::DirectKernel, &profile, range).unwrap();
        let direct: Vec<_> = (first..=first + further)
            .map(|vcpus| {
                let direct = measure_snp_launch(&inputs, &profile, count(vcpus)).unwrap();
                (count(vcpus), direct.digest)
            })
            .collect();
        prop_assert_eq!(extended, direct);
    }

    #[test]
    fn a_matrix_equals_measuring_each_shape(
        inputs in prop::collection::vec(inputs(), 1..3),
        profiles in prop::collection::vec(profiles(), 1..3),
        counts in counts(),
    ) {
        let rows = measure_matrix(&inputs, BootMethod::DirectKernel, &profiles, &counts).unwrap();
        prop_assert_eq!(rows.len(), inputs.len() * profiles.len() * counts.len());
        for row in rows {
            let (inputs, profile) = (&inputs[row.inputs], &profiles[row.profile]);
            let direct = measure_snp_launch(inputs, profile, row.vcpus).unwrap();
            prop_assert_eq!(row.digest, direct.digest);
        }
    }

    #[test]
    fn counts_of_svsms_and_of_sev_es_equal_measuring_each(
        (inputs, svsm) in svsms(),
        sections in sections(),
        profile in profiles(),
        counts in counts(),
    ) {
        for (vcpus, digest) in measure_svsm_counts(&inputs, &svsm, &counts).unwrap() {
            prop_assert_eq!(digest, measure_svsm(&inputs, &svsm, vcpus).unwrap().digest);
        }
        let firmware = build_firmware(&SyntheticFirmware {
            pages: 1,
            filler: 5,
            sections: &sections,
            reset_eip: 0x80_b004,
            hashes_table_gpa: 0x84_0c00,
        });
        let digests = measure_sev_es_counts(&firmware, None, &profile, &counts).unwrap();
        for (vcpus, digest) in digests {
            let direct = measure_sev_es(&firmware, None, &profile, vcpus).unwrap();
            prop_assert_eq!(digest, direct.digest);
        }
    }

    #[test]
    fn svsm_inputs_survive_json((inputs, _) in svsms()) {
        let json = serde_json::to_string(&inputs).unwrap();
        prop_assert_eq!(serde_json::from_str::<SvsmInputs>(&json).unwrap(), inputs);
    }

    #[test]
    fn svsm_parser_is_total_on_damaged_binaries(
        sections in sections(),
        end in 0..1_u64 << 33,
        damage in prop::collection::vec((0..0x700_usize, any::<u8>()), 0..8),
    ) {
        let mut svsm = build_svsm(1, 0, &sections, 0);
        for (from_end, value) in damage {
            let at = svsm.len() - 1 - from_end;
            svsm[at] = value;
        }
        let _ = parse_svsm(&svsm, end);
        let _ = parse_svsm(&svsm, end & !0xfff);
    }

    #[test]
    fn digest_is_that_of_the_last_region_and_regions_are_apart(
        inputs in inputs(),
        profile in profiles(),
    ) {
        let measurement = measure_snp_launch(&inputs, &profile, count(3)).unwrap();
        let last = measurement.trace.last().unwrap();
        prop_assert_eq!((last.kind, last.vcpu), (RegionKind::Vmsa, Some(2)));
        prop_assert_eq!(last.digest_after, measurement.digest);
        prop_assert_eq!(measurement.trace.len(), 1 + KINDS.len() + 3);
        let memory: u64 = measurement.trace[1..=KINDS.len()].iter().map(|region| region.length).sum();
        prop_assert_eq!(memory, 4096 * KINDS.len() as u64);
    }

    #[test]
    fn inputs_survive_json(inputs in inputs()) {
        let json = serde_json::to_string(&inputs).unwrap();
        prop_assert_eq!(serde_json::from_str::<MeasurementInputs>(&json).unwrap(), inputs);
    }

    #[test]
    fn every_byte_of_every_kernel_hash_matters(
        inputs in inputs(),
        profile in profiles(),
        byte in 0..32_usize,
        which in 0..3_usize,
    ) {
        let mut changed = inputs.clone();
        let Some(hashes) = &mut changed.kernel_hashes else { return Ok(()); };
        let digest = match which {
            0 => &mut hashes.cmdline,
            1 => &mut hashes.initrd,
            _ => &mut hashes.kernel,
        };
        let mut bytes = *digest.as_bytes();
        bytes[byte] ^= 1;
        *digest = Sha256Digest::new(bytes);
        let measure = |inputs| measure_snp_launch(inputs, &profile, count(1)).unwrap().digest;
        prop_assert_ne!(measure(&changed), measure(&inputs));
    }

    #[test]
    fn ovmf_parser_is_total_on_noise(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        let _ = parse_ovmf(&bytes);
    }

    #[test]
    fn ovmf_parser_and_measurement_are_total_on_damaged_firmware(
        sections in sections(),
        profile in profiles(),
        damage in prop::collection::vec((0..0x700_usize, any::<u8>()), 1..8),
    ) {
        let mut firmware = build_firmware(&SyntheticFirmware {
            pages: 1,
            filler: 0,
            sections: &sections,
            reset_eip: 1,
            hashes_table_gpa: 0x84_0c00,
        });
        for (from_end, value) in damage {
            let at = firmware.len() - 1 - from_end;
            firmware[at] = value;
        }
        if let Ok(firmware) = FirmwareInputs::from_bytes(&firmware) {
            let inputs = MeasurementInputs { firmware, kernel_hashes: None, cmdline: None, igvm_digest: None };
            let _ = measure_snp_launch(&inputs, &profile, count(2));
        }
    }

    #[test]
    fn hashes_table_parser_is_total(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = KernelHashes::parse_table(&bytes);
    }

    #[test]
    fn hashes_table_round_trips(digests in any::<[[u8; 32]; 3]>()) {
        let [cmdline, initrd, kernel] = digests.map(Sha256Digest::new);
        let hashes = KernelHashes { cmdline, initrd, kernel };
        prop_assert_eq!(KernelHashes::parse_table(&hashes.encode_table()), Ok(hashes));
    }
}

fn good() -> (MeasurementInputs, VcpuProfile) {
    let section = |gpa, kind| Section {
        gpa,
        size: 0x1000,
        kind,
    };
    let sections = [
        section(0x80_0000, SectionKind::SecMem),
        section(0x84_0000, SectionKind::KernelHashes),
    ];
    let firmware = build_firmware(&SyntheticFirmware {
        pages: 1,
        filler: 0,
        sections: &sections,
        reset_eip: 0x80_b004,
        hashes_table_gpa: 0x84_0c00,
    });
    let hashes = KernelHashes::from_bytes(b"kernel", None, "console=ttyS0");
    let profile = VcpuProfile {
        vmm: Vmm::Qemu,
        cpu_signature: CpuSignature(0x00a0_0f11),
        guest_features: GuestFeatures::default(),
    };
    (
        MeasurementInputs::from_bytes(&firmware, Some(hashes)).unwrap(),
        profile,
    )
}

/// The error after one change to a launch that is measurable.
fn refused(change: impl FnOnce(&mut MeasurementInputs, &mut VcpuProfile)) -> MeasureError {
    let (mut inputs, mut profile) = good();
    assert!(measure_snp_launch(&inputs, &profile, count(2)).is_ok());
    change(&mut inputs, &mut profile);
    measure_snp_launch(&inputs, &profile, count(2)).unwrap_err()
}

#[test]
fn launches_that_would_not_protect_the_kernel_are_refused() {
    assert_eq!(
        refused(|inputs, _| inputs.firmware.hashes_table_gpa = None),
        MeasureError::NoHashesTable
    );
    assert_eq!(
        refused(|inputs, _| inputs.firmware.sections.truncate(1)),
        MeasureError::NoKernelHashesSection
    );
    assert!(matches!(
        refused(|inputs, _| inputs.firmware.hashes_table_gpa = Some(0x84_0f80)),
        MeasureError::HashesTable(_)
    ));
}

#[test]
fn launches_that_no_vmm_would_make_are_refused() {
    assert_eq!(
        refused(|_, profile| profile.guest_features = GuestFeatures(0x20)),
        MeasureError::SnpNotActive { features: 0x20 }
    );
    assert_eq!(
        refused(|inputs, _| inputs.firmware.sections.clear()),
        MeasureError::NoSevMetadata
    );
    assert_eq!(
        refused(|inputs, _| inputs.firmware.reset_eip = None),
        MeasureError::NoResetAddress(NoResetAddressError { vcpus: 2 })
    );
    assert_eq!(
        refused(|inputs, _| inputs.firmware.sections[0].kind = SectionKind::Unknown(7)),
        MeasureError::UnknownSection { index: 0, kind: 7 }
    );
    assert!(matches!(
        refused(|inputs, _| inputs.firmware.sections[0].gpa = 0x84_0000),
        MeasureError::Sections(_)
    ));
}

#[test]
fn a_kernel_hashes_page_without_a_kernel_is_a_zero_page() {
    let (mut inputs, profile) = good();
    inputs.kernel_hashes = None;
    let mut context =
        LaunchContext::after_firmware(inputs.firmware.digest, inputs.firmware.base_gpa, 4096);
    for (kind, gpa) in [
        (RegionKind::SecMem, 0x80_0000),
        (RegionKind::KernelHashes, 0x84_0000),
    ] {
        context
            .update_without_contents(kind, assay_tee::page_info::PageType::Zero, gpa, 4096)
            .unwrap();
    }
    let expected = context.finish().into_trace();
    let measured = measure_snp_launch(&inputs, &profile, count(1))
        .unwrap()
        .trace;
    assert_eq!(measured[..3], expected[..]);
}
