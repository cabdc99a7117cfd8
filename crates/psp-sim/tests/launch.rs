//! Launch commands and guest requests, against answers computed elsewhere.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::OnceLock;

use assay_psp_sim::{Authority, Endorsement, KeyTemplate, LaunchError, PkiError, Processor};
use assay_tee::guest_message::{
    CertificateGuid, GuestMessageError, ReportRequest, ReportResponse,
    STATUS_INVALID_KEY_SELECTION, STATUS_INVALID_PARAMETERS,
};
use assay_tee::page_info::PageType;
use assay_tee::report::SigningKey;
use assay_tee::{AttestationReport, GuestPolicy, Product, Sha256Digest, TcbVersion};

const TCB: TcbVersion = TcbVersion {
    fmc: None,
    bootloader: 10,
    tee: 0,
    snp: 25,
    microcode: 200,
};

fn endorsement() -> &'static Endorsement {
    static ENDORSEMENT: OnceLock<Endorsement> = OnceLock::new();
    ENDORSEMENT.get_or_init(|| {
        Endorsement::generate("chip", TCB, "2026-01-01T00:00:00Z".parse().unwrap()).unwrap()
    })
}

fn processor() -> Processor {
    Processor::new(endorsement().clone()).unwrap()
}

/// Computed with Python's hashlib from the specification alone: PAGE_INFO is
/// digest, SHA-384 of the page or zeros, length 0x70, type, zeros, address.
const KNOWN_DIGEST: &str = "sha384:c52e03a4d3880d7c0cb319106b35279e7c64ce21eaa1c1a6bf1216d86f80b746ce451ccd2b1693866eb4488724370de4";

#[test]
fn launch_digest_is_that_of_the_specification() {
    let mut launch = processor().launch_start(GuestPolicy::default()).unwrap();
    let pages: Vec<u8> = (0..8192_u32)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    launch
        .launch_update(PageType::Normal, 0xffc0_0000, &pages)
        .unwrap();
    launch
        .launch_update(PageType::Zero, 0x80_0000, &[0; 8192])
        .unwrap();
    launch
        .launch_update(PageType::Secrets, 0x80_d000, &[1; 4096])
        .unwrap();
    launch
        .launch_update(PageType::Cpuid, 0x80_e000, &[2; 4096])
        .unwrap();
    launch
        .launch_update(PageType::Unmeasured, 0x81_0000, &[3; 4096])
        .unwrap();
    launch
        .launch_update(PageType::Vmsa, 0xffff_ffff_f000, &[4; 4096])
        .unwrap();
    let guest = launch.launch_finish(Sha256Digest::of(b"")).unwrap();
    assert_eq!(guest.launch_digest().to_string(), KNOWN_DIGEST);
}

#[test]
fn pages_that_are_none_are_refused() {
    let mut launch = processor().launch_start(GuestPolicy::default()).unwrap();
    for length in [0, 1, 4095, 4097] {
        let refused = launch.launch_update(PageType::Normal, 0, &vec![0; length]);
        assert!(
            matches!(refused, Err(LaunchError::PageLength { .. })),
            "{length}"
        );
    }
    let refused = launch.launch_update(PageType::Normal, 0x10, &[0; 4096]);
    assert!(matches!(refused, Err(LaunchError::Address { gpa: 0x10 })));
    let last = u64::MAX - 0xfff;
    assert!(
        launch
            .launch_update(PageType::Normal, last, &[0; 4096])
            .is_ok()
    );
    assert!(
        launch
            .launch_update(PageType::Normal, last, &[0; 8192])
            .is_err()
    );
}

#[test]
fn policies_that_the_processor_refuses_are_refused() {
    let good = GuestPolicy::default().0;
    for policy in [
        0,
        good | 1 << 26,
        good & !GuestPolicy::RESERVED_MUST_BE_ONE,
        good & !GuestPolicy::SMT,
        good | GuestPolicy::RAPL_DIS,
        good | GuestPolicy::CIPHERTEXT_HIDING_DRAM,
        good | 0x0200,
        good | 0x0138,
    ] {
        let refused = processor().launch_start(GuestPolicy(policy));
        assert!(
            matches!(refused, Err(LaunchError::Policy { .. })),
            "{policy:#x}"
        );
    }
    assert!(processor().launch_start(GuestPolicy(good | 0x0137)).is_ok());
}

#[test]
fn a_report_says_what_was_launched_and_asked() {
    let host_data = Sha256Digest::of(b"instance");
    let launch = processor().launch_start(GuestPolicy::default()).unwrap();
    let guest = launch.launch_finish(host_data).unwrap();
    let request = ReportRequest::new([7; 64], 2).encode();
    let response = ReportResponse::parse(&guest.extended_guest_request(&request).unwrap()).unwrap();
    let report = AttestationReport::parse(&response.report).unwrap();
    assert_eq!((report.version.get(), report.vmpl.get()), (5, 2));
    assert_eq!(report.report_data, [7; 64]);
    assert_eq!(report.host_data, *host_data.as_bytes());
    assert_eq!(report.measurement, [0; 48]);
    assert_eq!(report.policy.get(), GuestPolicy::default().0);
    assert_eq!(
        Product::from_cpuid(report.cpuid_family, report.cpuid_model),
        Ok(Product::Genoa)
    );
    for raw in [
        report.reported_tcb,
        report.committed_tcb,
        report.current_tcb,
        report.launch_tcb,
    ] {
        assert_eq!(TcbVersion::parse(Product::Genoa, raw), Ok(TCB));
    }
    let chain = endorsement().chain();
    assert_eq!(
        response.certificates.get(CertificateGuid::VCEK),
        Some(&*chain.leaf)
    );
    assert_eq!(
        response.certificates.get(CertificateGuid::ARK),
        Some(&*chain.ark)
    );

    let plain = ReportResponse::parse(&guest.guest_request(&request).unwrap()).unwrap();
    assert!(plain.certificates.0.is_empty());
    let other = processor().launch_start(GuestPolicy::default()).unwrap();
    let other = other
        .launch_finish(host_data)
        .unwrap()
        .guest_request(&request)
        .unwrap();
    let other = ReportResponse::parse(&other).unwrap();
    let other = AttestationReport::parse(&other.report).unwrap();
    assert_ne!(other.report_id, report.report_id);
}

#[test]
fn requests_that_are_none_are_answered_by_a_status() {
    let launch = processor().launch_start(GuestPolicy::default()).unwrap();
    let guest = launch.launch_finish(Sha256Digest::of(b"")).unwrap();
    let select = |key_sel: u32| {
        let mut request = ReportRequest::new([0; 64], 0);
        request.key_sel = key_sel.into();
        request.encode().to_vec()
    };
    for (request, status) in [
        (vec![], STATUS_INVALID_PARAMETERS),
        (vec![0; 95], STATUS_INVALID_PARAMETERS),
        (vec![0xff; 96], STATUS_INVALID_PARAMETERS),
        (
            ReportRequest::new([0; 64], 4).encode().to_vec(),
            STATUS_INVALID_PARAMETERS,
        ),
        (select(2), STATUS_INVALID_KEY_SELECTION),
        (select(3), STATUS_INVALID_PARAMETERS),
    ] {
        let response = guest.extended_guest_request(&request).unwrap();
        let refused = ReportResponse::parse(&response);
        assert_eq!(refused, Err(GuestMessageError::Status { status }));
    }
}

/// Key selections and, for each product, what the processor answers: the VLEK
/// by default where one is loaded, without the chip's identity.
#[test]
fn a_processor_signs_with_the_key_that_is_selected() {
    let start = "2026-01-01T00:00:00Z".parse().unwrap();
    for product in Product::ALL {
        let tcb = TcbVersion {
            fmc: (product == Product::Turin).then_some(1),
            ..TCB
        };
        let authority = Authority::generate(product, start).unwrap();
        let vcek = KeyTemplate::vcek(product, "chip", tcb);
        let mut processor = Processor::new(authority.issue_vcek(&vcek).unwrap()).unwrap();
        let older = TcbVersion { snp: 24, ..tcb };
        for (template, loads) in [
            (KeyTemplate::vlek(product, "CN=provider", older), false),
            (KeyTemplate::vlek(product, "CN=provider", tcb), true),
        ] {
            let vlek = authority.issue_vlek(&template).unwrap();
            assert_eq!(processor.load_vlek(vlek).is_ok(), loads);
        }
        let launch = processor.launch_start(GuestPolicy::default()).unwrap();
        let guest = launch.launch_finish(Sha256Digest::of(b"")).unwrap();
        for (key_sel, kind, guid) in [
            (0, SigningKey::Vlek, CertificateGuid::VLEK),
            (1, SigningKey::Vcek, CertificateGuid::VCEK),
            (2, SigningKey::Vlek, CertificateGuid::VLEK),
        ] {
            let mut request = ReportRequest::new([7; 64], 0);
            request.key_sel = key_sel.into();
            let response = guest.extended_guest_request(&request.encode()).unwrap();
            let response = ReportResponse::parse(&response).unwrap();
            let report = AttestationReport::parse(&response.report).unwrap();
            assert_eq!(report.key_info().unwrap().signing_key, kind);
            assert_eq!(report.chip_id == [0; 64], kind == SigningKey::Vlek);
            assert!(
                response.certificates.get(guid).is_some(),
                "{product} {key_sel}"
            );
            let from_cpuid = Product::from_cpuid(report.cpuid_family, report.cpuid_model);
            assert_eq!(from_cpuid, Ok(product));
        }
    }
}

#[test]
fn endorsements_survive_pem_and_foreign_keys_are_refused() {
    let (key, chain) = (
        endorsement().key_pem().unwrap(),
        endorsement().chain_pem().unwrap(),
    );
    assert!(Endorsement::from_pem(&key, &chain).unwrap() == *endorsement());

    let start = "2026-01-01T00:00:00Z".parse().unwrap();
    let other = Endorsement::generate("other", TCB, start).unwrap();
    let foreign = Endorsement::from_pem(&other.key_pem().unwrap(), &chain);
    assert!(matches!(foreign, Err(PkiError::KeyMismatch)));
    let end = "-----END CERTIFICATE-----\n";
    let vcek_only = chain.split_inclusive(end).next().unwrap();
    let short = Endorsement::from_pem(&key, vcek_only);
    assert!(matches!(short, Err(PkiError::ChainLength { got: 1 })));
    assert!(matches!(
        Endorsement::from_pem(&chain, &chain),
        Err(PkiError::ParseKey)
    ));
}
