//! Launch digests of IGVM files that the `igvm` crate writes: known answers, and
//! the crate's own measurement as an oracle.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

#[path = "support/igvm_file.rs"]
mod igvm_file;

use std::collections::BTreeSet;

use assay_measure::igvm::{
    IgvmLaunch, MeasureIgvmError, ResetState, id_block_digest, measure_igvm_sev,
    measure_igvm_sev_es_counts, measure_igvm_snp, measure_igvm_snp_counts, qemu_refuses,
};
use assay_measure::trace::RegionKind;
use assay_tee::cpu::CpuModel;
use assay_tee::igvm::layout::HeaderType;
use assay_tee::igvm::{PlatformType, parse_igvm};
use assay_tee::page_info::PageType;
use assay_tee::vmsa::{KVM_VMSA_GPA, Vcpu, Vmm, Vmsa, build_vmsa};
use assay_tee::{GuestFeatures, LaunchDigest, Sha256Digest, VcpuCount};
use igvm::measurement::generate_snp_measurement;
use igvm::{Arch, IgvmDirectiveHeader, IgvmRevision};
use igvm_defs::{IGVM_VHS_PARAMETER, IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType};
use igvm_file::{
    Builder, OTHER, SNP, area, context, context_at, insert, normal, page, vmsa, vmsa_of_kvm,
    vp_count,
};
use proptest::prelude::*;
use zerocopy::IntoBytes as _;

fn count(number: u32) -> VcpuCount {
    VcpuCount::try_from(number).unwrap()
}

const fn qemu(vcpus: VcpuCount) -> IgvmLaunch {
    IgvmLaunch::Qemu { vcpus, reset: None }
}

fn try_digest(
    directives: &[IgvmDirectiveHeader],
    launch: &IgvmLaunch,
) -> Result<LaunchDigest, MeasureIgvmError> {
    let file = Builder::default().with(directives.to_vec()).build();
    measure_igvm_snp(&parse_igvm(&file).unwrap(), launch).map(|measurement| measurement.digest)
}

fn digest(directives: &[IgvmDirectiveHeader], launch: &IgvmLaunch) -> LaunchDigest {
    try_digest(directives, launch).unwrap()
}

/// The `igvm` crate's own measurement.
fn oracle(directives: &[IgvmDirectiveHeader]) -> LaunchDigest {
    let digest = generate_snp_measurement(&Builder::initialization(), directives, SNP).unwrap();
    LaunchDigest::new(digest)
}

fn snp_page(
    gpa: u64,
    flags: IgvmPageDataFlags,
    data_type: IgvmPageDataType,
    data: Vec<u8>,
) -> IgvmDirectiveHeader {
    page(gpa, SNP, flags, data_type, data)
}

/// The directives that a letter of the known answers stands for.
fn piece(letter: char) -> Vec<IgvmDirectiveHeader> {
    let plain = IgvmPageDataFlags::new();
    let parameters = |length| vec![area(0, length), vp_count(0), insert(0, 0x8000, SNP | OTHER)];
    match letter {
        'd' => vec![
            normal(0, vec![0x11; 4096]),
            normal(0x1000, vec![0x22; 4096]),
        ],
        'z' => vec![normal(0x2000, Vec::new())],
        'u' => vec![page(
            0x3000,
            SNP | OTHER,
            plain.with_unmeasured(true),
            IgvmPageDataType::NORMAL,
            vec![0x33; 4096],
        )],
        's' => vec![page(
            0x4000,
            SNP | OTHER,
            plain.with_shared(true),
            IgvmPageDataType::NORMAL,
            vec![0x44; 4096],
        )],
        'c' => vec![
            snp_page(0x5000, plain, IgvmPageDataType::SECRETS, Vec::new()),
            snp_page(0x6000, plain, IgvmPageDataType::CPUID_DATA, vec![0; 4096]),
        ],
        'p' => parameters(4096),
        'P' => parameters(8192),
        'v' => vec![context(0, &vmsa(0x1234))],
        other => panic!("no piece {other}"),
    }
}

fn pieces(letters: &str) -> Vec<IgvmDirectiveHeader> {
    letters.chars().flat_map(piece).collect()
}

/// Computed with the `igvm` crate 0.5.0 and an independent script, those of
/// other loaders with Coconut's igvmmeasure and the script.
#[test]
fn known_answers() {
    const IGVM: IgvmLaunch = IgvmLaunch::FileOrder;
    const ZERO: IgvmLaunch = IgvmLaunch::NativeZero;
    const IM: IgvmLaunch = IgvmLaunch::Igvmmeasure;
    const D: &str = "c9a6dd319eefba298eb01fda906366ab6f7f7e4bc469bc6002c2c8717d9374f5\
                     ef78976d8a3dc0b2780ef57f6f361542";
    const DZ: &str = "88177fb8adf2324a09cc13db20290f9fb4c8e2165f5876e428317777f0a247c9\
                      34511eab98224af1b60a8a30bfb12d56";
    const DP: &str = "930f1d3af961a40c00507c38dad3a3c161484fe5cb637ffb8356a230e8bb904f\
                      2ddcc416b5392793ca20ef07040950c5";
    const ALL: &str = "44600567a63f9b60538702124bd5109a3102b26e1785d718203f3589c4743e61\
                       4db5e0c6b33dc321c2ae159cbef1bdbe";
    for (letters, launch, expected) in [
        ("d", IGVM, D),
        ("d", IM, D),
        ("ds", IGVM, D),
        ("dz", IGVM, DZ),
        ("dz", IM, DZ),
        (
            "dz",
            ZERO,
            "4364b4b5d50a41c3ebe590fb7280c905c2f6f164d851426b43b02b2c076fabc5\
             5b2498d60bf952825b7b63cf27ecc134",
        ),
        (
            "du",
            IGVM,
            "b96312cf81d4f9ece80276b0811f8568eb317d29a94d6babcd6b88446581cccc\
             e836f5d84b9524d1eada0064a0c81b56",
        ),
        (
            "dc",
            IGVM,
            "a484d8c04b21e19efc9d01ab9728e3c18775ee2608eab5662a6d05d38a802445\
             e8bed678177e9a4405cb3a3a86968fe3",
        ),
        ("dp", IGVM, DP),
        ("dp", IM, DP),
        (
            "dP",
            IGVM,
            "8502133f9850d1ace910e84735a9e93a7b59f8c7e11420935e3c10f35fba1f2c\
             1c5a49660be3bafe28579846ed076166",
        ),
        ("dP", IM, DP),
        (
            "dv",
            IGVM,
            "cf436c09a903b218dc753ba19f7e0da749dbf708c6442e636773f1d5b253e70a\
             90d2529ff5a6b7a8eb44806d492799d4",
        ),
        ("dzucpv", IGVM, ALL),
        ("dzucpv", IM, ALL),
        (
            "dzucpv",
            ZERO,
            "936787a5bb98a38d813d9c170ae77c11e1a4c8d22d243686c4be5c26230ad116\
             f6b42ef8e712d87c785c8ccd0a14e4da",
        ),
    ] {
        let computed = digest(&pieces(letters), &launch).to_hex();
        assert_eq!(computed, expected, "{letters} with {launch:?}");
    }
    let shared = digest(&pieces("ds"), &IM).to_hex();
    assert!(shared.starts_with("ff569b49") && shared.ends_with("6512"));
}

/// An area comes before the pages that it follows, and the save area of every
/// virtual CPU comes last, with what KVM sets.
#[test]
fn qemu_loads_areas_first_and_save_areas_last() {
    let (area, context_0) = (pieces("P"), context(0, &vmsa(0x1234)));
    let context_1 = context(1, &vmsa(0x5678));
    let data = pieces("d");
    let file = [
        vec![context_1, context_0],
        data.clone(),
        area.clone(),
        pieces("zuc"),
    ]
    .concat();
    let by_kvm = [
        context(0, &vmsa_of_kvm(0x1234)),
        context(1, &vmsa_of_kvm(0x5678)),
    ];
    for vcpus in [1, 2] {
        let as_loaded = [
            area.clone(),
            data.clone(),
            pieces("zuc"),
            by_kvm[..vcpus as usize].to_vec(),
        ]
        .concat();
        assert_eq!(
            digest(&file, &qemu(count(vcpus))),
            oracle(&as_loaded),
            "{vcpus} virtual CPUs"
        );
    }
    let svsm = [area, data, pieces("zuc"), by_kvm[..1].to_vec()].concat();
    assert_eq!(digest(&file, &IgvmLaunch::QemuSvsm), oracle(&svsm));
}

/// Only the run that is being collected when the area comes is overtaken.
#[test]
fn qemu_flushes_a_run_when_the_next_begins() {
    let far = normal(0x10_0000, vec![7; 4096]);
    let file = [pieces("d"), vec![far.clone()], pieces("p"), pieces("z")].concat();
    let as_loaded = [
        pieces("d"),
        pieces("p"),
        vec![far],
        pieces("z"),
        vec![context(0, &vmsa_of_kvm(1))],
    ]
    .concat();
    let file = [file, vec![context(0, &vmsa(1))]].concat();
    assert_eq!(digest(&file, &qemu(count(1))), oracle(&as_loaded));
}

fn reset(guest_features: Option<GuestFeatures>) -> ResetState {
    ResetState {
        cpu_signature: CpuModel::by_name("EPYC-Milan").unwrap().signature(),
        guest_features,
    }
}

#[test]
fn virtual_cpus_without_state_start_in_the_reset_state() {
    let milan = reset(None).cpu_signature;
    let started = build_vmsa(Vmm::Qemu, Vcpu::Boot, milan, GuestFeatures(1));
    let launch = |vcpus, reset| IgvmLaunch::Qemu {
        vcpus: count(vcpus),
        reset,
    };
    let one = pieces("dv");
    let as_loaded = [
        pieces("d"),
        vec![context(0, &vmsa_of_kvm(0x1234)), context(1, &started)],
    ]
    .concat();
    assert_eq!(
        digest(&one, &launch(2, Some(reset(None)))),
        oracle(&as_loaded)
    );

    let none = pieces("d");
    let debug_swap = GuestFeatures(0x21);
    let started = build_vmsa(Vmm::Qemu, Vcpu::Boot, milan, debug_swap);
    let as_loaded = [none.clone(), vec![context(0, &started)]].concat();
    let asked = Some(reset(Some(debug_swap)));
    assert_eq!(digest(&none, &launch(1, asked)), oracle(&as_loaded));

    let error = |directives: &[_], launch| try_digest(directives, &launch).unwrap_err();
    assert_eq!(
        error(&one, launch(2, None)),
        MeasureIgvmError::NoState { vcpu: 1 }
    );
    assert_eq!(
        error(&one, launch(1, Some(reset(None)))),
        MeasureIgvmError::ResetStateUnused
    );
    assert_eq!(
        error(&one, launch(2, asked)),
        MeasureIgvmError::FeaturesUnused
    );
    assert_eq!(
        error(&none, launch(1, Some(reset(Some(GuestFeatures(0x20)))))),
        MeasureIgvmError::Features {
            vcpu: 0,
            features: 0x20
        }
    );
    assert_eq!(
        error(&none, IgvmLaunch::QemuSvsm),
        MeasureIgvmError::NoBootProcessor
    );
}

#[test]
fn what_qemu_refuses_or_changes_has_no_digest() {
    let error = |directives: &[_]| try_digest(directives, &qemu(count(1))).unwrap_err();
    let changed = |change: fn(&mut Vmsa)| {
        let mut vmsa = vmsa(1);
        change(&mut vmsa);
        error(&[context(0, &vmsa)])
    };
    assert_eq!(
        error(&[context_at(0x1000, 0, &vmsa(1))]),
        MeasureIgvmError::VmsaGpa {
            vcpu: 0,
            gpa: 0x1000
        }
    );
    let offset = |error| match error {
        MeasureIgvmError::Register { vcpu: 0, source } => source.offset,
        other => panic!("expected a register, got {other:?}"),
    };
    assert_eq!(offset(changed(|vmsa| vmsa.virtual_tom = 1.into())), 0x3c8);
    assert_eq!(offset(changed(|vmsa| vmsa.vmpl = 1)), 0xca);
    assert_eq!(
        offset(changed(|vmsa| vmsa.gdtr.selector = 8.into())),
        0x60,
        "QEMU keeps address and limit of a table"
    );
    assert_eq!(
        changed(|vmsa| vmsa.sev_features = 0.into()),
        MeasureIgvmError::Features {
            vcpu: 0,
            features: 0
        }
    );
    assert_eq!(
        error(&[context(0, &vmsa(1)), context(0, &vmsa(2))]),
        MeasureIgvmError::DuplicateVcpu { vcpu: 0 }
    );
    let mut debug_swap = vmsa(2);
    debug_swap.sev_features = 0x21.into();
    assert_eq!(
        error(&[context(0, &vmsa(1)), context(1, &debug_swap)]),
        MeasureIgvmError::Features {
            vcpu: 1,
            features: 0x21
        }
    );
    assert_eq!(
        error(&pieces("dsv")),
        MeasureIgvmError::SharedPage { gpa: 0x4000 }
    );
    let large = IgvmPageDataFlags::new().with_is_2mb_page(true);
    let large = snp_page(0x20_0000, large, IgvmPageDataType::NORMAL, Vec::new());
    assert_eq!(
        error(&[large]),
        MeasureIgvmError::LargePage { gpa: 0x20_0000 }
    );
    let twice = [pieces("d"), vec![normal(0x1000, vec![1; 4096])]].concat();
    for launch in [qemu(count(1)), IgvmLaunch::FileOrder] {
        assert!(matches!(
            try_digest(&twice, &launch),
            Err(MeasureIgvmError::Overlap(overlap)) if overlap.first == 0x1000
        ));
    }
}

#[test]
fn files_for_other_platforms_are_refused() {
    let mut builder = Builder::default().with(pieces("d"));
    builder.snp = IgvmPlatformType::NATIVE;
    let file = builder.build();
    assert_eq!(
        measure_igvm_snp(&parse_igvm(&file).unwrap(), &IgvmLaunch::FileOrder),
        Err(MeasureIgvmError::NoPlatform {
            wanted: PlatformType::SevSnp,
            platforms: "native, TDX".to_owned()
        })
    );
}

#[test]
fn headers_that_qemu_does_not_know_are_named() {
    let device_tree = IgvmDirectiveHeader::DeviceTree(IGVM_VHS_PARAMETER {
        parameter_area_index: 0,
        byte_offset: 0,
    });
    let directives = [
        pieces("d"),
        vec![area(0, 4096), vp_count(0), device_tree],
        vec![insert(0, 0x8000, SNP)],
    ]
    .concat();
    let file = Builder::default().with(directives).build();
    let file = parse_igvm(&file).unwrap();
    assert_eq!(
        qemu_refuses(&file),
        BTreeSet::from([HeaderType::DEVICE_TREE])
    );
    assert_eq!(id_block_digest(&file), None);
}

#[test]
fn regions_are_traced_run_by_run() {
    let file = Builder::default().with(pieces("dzuPcv")).build();
    let measurement = measure_igvm_snp(&parse_igvm(&file).unwrap(), &qemu(count(1))).unwrap();
    let regions: Vec<_> = measurement
        .trace
        .iter()
        .map(|region| (region.kind, region.page_type, region.gpa, region.length))
        .collect();
    assert_eq!(
        regions,
        [
            (RegionKind::IgvmPages, PageType::Normal, 0, 0x2000),
            (RegionKind::IgvmPages, PageType::Normal, 0x2000, 0x1000),
            (
                RegionKind::IgvmParameters,
                PageType::Unmeasured,
                0x8000,
                0x2000
            ),
            (RegionKind::IgvmPages, PageType::Unmeasured, 0x3000, 0x1000),
            (RegionKind::Secrets, PageType::Secrets, 0x5000, 0x1000),
            (RegionKind::Cpuid, PageType::Cpuid, 0x6000, 0x1000),
            (RegionKind::Vmsa, PageType::Vmsa, KVM_VMSA_GPA, 0x1000),
        ]
    );
    let last = measurement.trace.last().unwrap();
    assert_eq!(last.digest_after, measurement.digest);
    assert_eq!(last.vcpu, Some(0));
}

/// SEV hashes contents one after another, zeros for pages without; SEV-ES adds
/// the save areas.
#[test]
fn sev_and_sev_es_hash_the_measured_bytes() {
    let mut vmsa_es = vmsa(0x1234);
    vmsa_es.sev_features = 0.into();
    let mut by_kvm = vmsa_of_kvm(0x1234);
    by_kvm.sev_features = 0.into();
    let directives = [pieces("dPzu"), vec![context(0, &vmsa_es)]].concat();
    let revision = IgvmRevision::V2 {
        arch: Arch::X64,
        page_size: 4096,
    };
    let build = |snp, directives: Vec<_>| {
        let builder = Builder {
            revision,
            snp,
            other: IgvmPlatformType::NATIVE,
            directives: Vec::new(),
        };
        builder.with(directives).build()
    };
    let memory = [[0x11; 4096], [0x22; 4096], [0; 4096]].concat();

    let file = build(IgvmPlatformType::SEV, pieces("dPzu"));
    let measurement = measure_igvm_sev(&parse_igvm(&file).unwrap()).unwrap();
    assert_eq!(measurement.digest, Sha256Digest::of(&memory));
    let regions: Vec<_> = measurement
        .trace
        .iter()
        .map(|region| (region.gpa, region.length, region.contents))
        .collect();
    let zeros = Sha256Digest::of(&[0; 4096]);
    assert_eq!(
        regions,
        [
            (Some(0), 0x2000, Sha256Digest::of(&memory[..0x2000])),
            (Some(0x2000), 0x1000, zeros),
        ]
    );
    let file = build(IgvmPlatformType::SEV, pieces("dc"));
    assert_eq!(
        measure_igvm_sev(&parse_igvm(&file).unwrap()),
        Err(MeasureIgvmError::SnpPage {
            gpa: 0x5000,
            platform: PlatformType::Sev
        })
    );

    let file = build(IgvmPlatformType::SEV_ES, directives);
    let file = parse_igvm(&file).unwrap();
    let counts = BTreeSet::from([count(1)]);
    let one = [memory.as_slice(), by_kvm.as_bytes()].concat();
    assert_eq!(
        measure_igvm_sev_es_counts(&file, None, &counts),
        Ok(vec![(count(1), Sha256Digest::of(&one))])
    );
    let milan = reset(None);
    let started = build_vmsa(Vmm::Qemu, Vcpu::Boot, milan.cpu_signature, GuestFeatures(0));
    let two = [one.as_slice(), started.as_bytes()].concat();
    let counts = BTreeSet::from([count(1), count(2)]);
    assert_eq!(
        measure_igvm_sev_es_counts(&file, Some(&milan), &counts),
        Ok(vec![
            (count(1), Sha256Digest::of(&one)),
            (count(2), Sha256Digest::of(&two))
        ])
    );
}

/// One thing that a random file does; memory goes upwards, so nothing overlaps.
#[derive(Debug, Clone)]
enum Action {
    Page {
        skip: u64,
        mask: u32,
        data_type: IgvmPageDataType,
        unmeasured: bool,
        data: Option<Vec<u8>>,
    },
    Area {
        skip: u64,
        mask: u32,
        pages: u64,
    },
    Context {
        rip: u64,
    },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let mask = prop::sample::select(vec![SNP, SNP, SNP | OTHER, OTHER]);
    let skip = prop::sample::select(vec![0_u64, 0, 0, 0, 1, 512]);
    let data_type = prop::sample::select(vec![
        IgvmPageDataType::NORMAL,
        IgvmPageDataType::NORMAL,
        IgvmPageDataType::NORMAL,
        IgvmPageDataType::SECRETS,
        IgvmPageDataType::CPUID_DATA,
        IgvmPageDataType::CPUID_XF,
    ]);
    let data = prop::option::of(prop::collection::vec(any::<u8>(), 1..40));
    let page = (skip.clone(), mask.clone(), data_type, any::<bool>(), data).prop_map(
        |(skip, mask, data_type, unmeasured, data)| Action::Page {
            skip,
            mask,
            data_type,
            unmeasured,
            data,
        },
    );
    let area =
        (skip, mask, 0_u64..4).prop_map(|(skip, mask, pages)| Action::Area { skip, mask, pages });
    let context = any::<u64>().prop_map(|rip| Action::Context { rip });
    prop::collection::vec(prop_oneof![6 => page, 2 => area, 1 => context], 0..30)
}

/// The directives of random actions, in their order.
fn to_directives(actions: &[Action]) -> Vec<IgvmDirectiveHeader> {
    let mut directives = Vec::new();
    let (mut gpa, mut areas, mut vcpus) = (0, 0, 0);
    for action in actions {
        match action {
            Action::Page {
                skip,
                mask,
                data_type,
                unmeasured,
                data,
            } => {
                gpa += skip * 4096;
                let flags = IgvmPageDataFlags::new().with_unmeasured(*unmeasured);
                let data = data.clone().unwrap_or_default();
                directives.push(page(gpa, *mask, flags, *data_type, data));
                gpa += 4096;
            }
            Action::Area { skip, mask, pages } => {
                gpa += skip * 4096;
                directives.push(area(areas, pages * 4096));
                directives.push(insert(areas, gpa, *mask));
                areas += 1;
                gpa += pages * 4096;
            }
            Action::Context { rip } => {
                directives.push(context(vcpus, &vmsa(*rip)));
                vcpus += 1;
            }
        }
    }
    // The crate refuses files without data.
    directives.push(normal(gpa + 0x10_0000, vec![1]));
    directives
}

/// The directives in the order in which QEMU has them measured, said in another
/// way than in the crate: pages wait for the next page that does not continue
/// them, areas do not wait, save areas wait for the end.
fn as_qemu_loads(directives: &[IgvmDirectiveHeader]) -> Vec<IgvmDirectiveHeader> {
    let (mut loaded, mut waiting, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut before: Option<(usize, &IgvmDirectiveHeader)> = None;
    for (index, directive) in directives.iter().enumerate() {
        match directive {
            IgvmDirectiveHeader::PageData {
                compatibility_mask, ..
            } if compatibility_mask & SNP == 0 => {}
            IgvmDirectiveHeader::PageData { .. } => {
                let continued = before.is_some_and(|(before_index, before)| {
                    before_index + 1 == index && continues(before, directive)
                });
                if !continued {
                    loaded.append(&mut waiting);
                }
                waiting.push(directive.clone());
                before = Some((index, directive));
            }
            IgvmDirectiveHeader::SnpVpContext { vp_index, vmsa, .. } => {
                last.push(context(*vp_index, &vmsa_of_kvm(vmsa.rip)));
            }
            other => loaded.push(other.clone()),
        }
    }
    [loaded, waiting, last].concat()
}

fn continues(before: &IgvmDirectiveHeader, after: &IgvmDirectiveHeader) -> bool {
    let key = |directive: &IgvmDirectiveHeader| match directive {
        IgvmDirectiveHeader::PageData {
            gpa,
            compatibility_mask,
            flags,
            data_type,
            data,
        } => (
            *gpa,
            (*compatibility_mask, *flags, *data_type, data.is_empty()),
        ),
        other => panic!("{other:?} is no page"),
    };
    let ((before_gpa, before), (after_gpa, after)) = (key(before), key(after));
    before_gpa + 4096 == after_gpa && before == after
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn file_order_is_what_the_igvm_crate_measures(actions in actions()) {
        let directives = to_directives(&actions);
        prop_assert_eq!(digest(&directives, &IgvmLaunch::FileOrder), oracle(&directives));
    }

    #[test]
    fn qemu_is_the_igvm_crate_in_qemus_order(actions in actions()) {
        let directives = to_directives(&actions);
        let loaded = as_qemu_loads(&directives);
        let contexts = loaded
            .iter()
            .filter(|directive| matches!(directive, IgvmDirectiveHeader::SnpVpContext { .. }))
            .count();
        prop_assume!(contexts > 0);
        let vcpus = count(u32::try_from(contexts).unwrap());
        prop_assert_eq!(digest(&directives, &qemu(vcpus)), oracle(&loaded));
    }

    #[test]
    fn counts_are_the_launches_one_by_one(actions in actions(), most in 1_u32..9) {
        let directives = to_directives(&actions);
        let reset = Some(reset(None));
        let file = Builder::default().with(directives.clone()).build();
        let file = parse_igvm(&file).unwrap();
        let counts = (1..=most).map(count).collect();
        match measure_igvm_snp_counts(&file, reset.as_ref(), &counts) {
            Err(error) => prop_assert_eq!(error, MeasureIgvmError::ResetStateUnused),
            Ok(digests) => {
                let (vcpus, last) = *digests.last().unwrap();
                let launch = IgvmLaunch::Qemu { vcpus, reset };
                prop_assert_eq!(digest(&directives, &launch), last);
                prop_assert_eq!(digests.len(), counts.len());
            }
        }
    }
}
