//! The attack suite: each test is an attack that is known against verifiers of
//! SNP evidence (docs/verification.md), made with keys that an attacker may
//! have, and the check that stops it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/case.rs"]
mod case;

use assay_attest::policy::SigningKeyPolicy;
use assay_attest::{CheckName as C, ReasonCode as R, TrustAnchors};
use assay_psp_sim::KeyTemplate;
use assay_tee::report::SigningKey;
use assay_tee::{AttestationReport, GuestPolicy, Product, TcbVersion, Tee};
use sha2::{Digest as _, Sha384};

use case::{Case, PROVIDER, Setup, authority, tcb};

/// REPORT_DATA that binds a nonce and a session key.
fn binding(nonce: &str, key: &str) -> [u8; 64] {
    let mut report_data = [0; 64];
    let runtime_data = format!(r#"{{"nonce":"{nonce}","tee-pubkey":"{key}"}}"#);
    report_data[..48].copy_from_slice(&Sha384::digest(runtime_data));
    report_data
}

fn case_bound_to(nonce: &str, key: &str) -> Case {
    let report_data = binding(nonce, key);
    let mut case = Case::new(&Setup {
        report_data,
        ..Setup::default()
    });
    case.binding.report_data = report_data;
    assert_eq!(case.failures(), []);
    case
}

fn accept_every_key(case: &mut Case) {
    let csp_ids = vec![PROVIDER.to_owned()];
    case.policy.signing_keys = vec![SigningKeyPolicy::Vcek, SigningKeyPolicy::Vlek { csp_ids }];
}

/// The right image on a genuine processor, but started for somebody else.
#[test]
fn a_relayed_report_of_another_instance_is_refused() {
    let case = Case::new(&Setup {
        instance: b"the attacker's instance",
        ..Setup::default()
    });
    assert_eq!(case.failures(), [(C::HostData, R::HostDataMismatch)]);
}

/// A man in the middle puts his key where the guest's was.
#[test]
fn a_swapped_tee_key_is_refused() {
    let mut case = case_bound_to("nonce", "guest's");
    case.binding.report_data = binding("nonce", "attacker's");
    assert_eq!(case.failures(), [(C::ReportData, R::ReportDataMismatch)]);
}

#[test]
fn a_replayed_report_with_a_stale_nonce_is_refused() {
    let mut case = case_bound_to("yesterday's", "guest's");
    case.binding.report_data = binding("today's", "guest's");
    assert_eq!(case.failures(), [(C::ReportData, R::ReportDataMismatch)]);
}

/// Whoever has a provider's key says that a chip signed.
#[test]
fn a_vlek_as_vcek_is_refused() {
    let mut chips_only = Case::vlek();
    chips_only.policy.signing_keys = vec![SigningKeyPolicy::Vcek];
    let expected = [(C::KeyInformation, R::SigningKeyNotAllowed)];
    assert_eq!(chips_only.failures(), expected);

    let mut relabelled = Case::vlek();
    accept_every_key(&mut relabelled);
    relabelled.report(|report| {
        report.key_info = 0.into();
        report.chip_id = [1; 64];
    });
    let expected = [(C::EndorsementKey, R::EndorsementKeyMissing)];
    assert_eq!(relabelled.failures(), expected);

    // Even if the intermediate for providers certified it under that name.
    let mut renamed = Case::vlek();
    accept_every_key(&mut renamed);
    renamed.leaf(|template| "SEV-VCEK".clone_into(&mut template.common_name));
    renamed.report(|report| report.key_info = 0.into());
    let expected = [(C::EndorsementKey, R::CertificateExtensionsWrong)];
    assert_eq!(renamed.failures(), expected);
}

/// Whoever has a chip's key hides the chip.
#[test]
fn a_vcek_as_vlek_is_refused() {
    let mut case = Case::good();
    accept_every_key(&mut case);
    let relabel = |report: &mut AttestationReport| {
        report.key_info = (1 << 2).into();
        report.chip_id = [0; 64];
    };
    case.report(relabel);
    let expected = [(C::EndorsementKey, R::EndorsementKeyMissing)];
    assert_eq!(case.failures(), expected);

    case.leaf(|template| "SEV-VLEK".clone_into(&mut template.common_name));
    case.report(relabel);
    let expected = [(C::EndorsementKey, R::CertificateExtensionsWrong)];
    assert_eq!(case.failures(), expected);
}

/// The intermediate for providers certifies a chip.
#[test]
fn an_asvk_as_ask_is_refused() {
    let mut case = Case::good();
    let ask = case.evidence.certificates[1].clone();
    let vcek = authority(Product::Genoa)
        .issue_vlek(&case.template)
        .unwrap();
    case.endorsement = vcek.clone();
    case.evidence.certificates[0].clone_from(&vcek.chain().leaf);
    case.evidence.certificates[1].clone_from(&vcek.chain().intermediate);
    case.report(|_| {});
    let expected = [(C::CertificateChain, R::IntermediateMissing)];
    assert_eq!(case.failures(), expected);

    case.evidence.certificates.push(ask);
    let expected = [(C::CertificateChain, R::CertificateNameWrong)];
    assert_eq!(case.failures(), expected);
}

#[test]
fn a_masked_chip_key_is_refused() {
    let mut case = Case::good();
    case.report(|report| report.key_info = 2.into());
    case.evidence.report[0x2a0..0x330].fill(0);
    assert_eq!(case.failures(), [(C::KeyInformation, R::ChipKeyMasked)]);
}

#[test]
fn a_debug_policy_is_refused() {
    let case = Case::new(&Setup {
        guest_policy: GuestPolicy(GuestPolicy::default().0 | GuestPolicy::DEBUG),
        ..Setup::default()
    });
    assert_eq!(case.failures(), [(C::GuestPolicy, R::DebugAllowed)]);
}

/// Firmware was rolled back; the certificate is the one of before.
#[test]
fn an_old_tcb_with_a_new_certificate_is_refused() {
    let mut case = Case::good();
    let old = TcbVersion {
        snp: 21,
        ..tcb(Product::Genoa)
    };
    let old = old.encode(Product::Genoa).unwrap();
    case.report(|report| {
        report.reported_tcb = old;
        report.committed_tcb = old;
        report.current_tcb = old;
        report.launch_tcb = old;
    });
    assert_eq!(case.failures(), [(C::EndorsedTcb, R::EndorsedTcbMismatch)]);
}

/// The network is held up so that a revocation never arrives.
#[test]
fn a_stale_revocation_list_is_refused() {
    let mut case = Case::good();
    case.revocation_list(|list| list.next_update = "2026-06-30T00:00:00Z".parse().unwrap());
    let expected = [(C::RevocationList, R::RevocationListStale)];
    assert_eq!(case.failures(), expected);

    // Or an old list, still fresh, takes the place of a newer one.
    let mut case = Case::good();
    case.policy.products[0].minimum_revocation_list = Some(8);
    case.revocation_list(|_| {});
    let expected = [(C::RevocationList, R::RevocationListSuperseded)];
    assert_eq!(case.failures(), expected);
}

/// A process in the guest that reaches the device at a lower privilege.
#[test]
fn a_report_from_vmpl_2_is_refused() {
    let case = Case::new(&Setup {
        vmpl: 2,
        ..Setup::default()
    });
    assert_eq!(case.failures(), [(C::Vmpl, R::VmplNotAllowed)]);
}

#[test]
fn simulated_evidence_in_production_is_refused() {
    let mut case = Case::good();
    case.anchors = TrustAnchors::amd();
    assert_eq!(case.failures()[0], (C::TrustAnchor, R::RootUnknown));

    // A simulated root that is configured does not make it hardware.
    let mut case = Case::good();
    case.policy.tees = vec![Tee::Snp];
    assert_eq!(case.failures(), [(C::TrustDomain, R::TeeNotAllowed)]);

    // Without its root it does not pass for AMD's.
    let mut case = Case::good();
    case.policy.tees = vec![Tee::Snp];
    case.evidence.certificates.truncate(1);
    assert_eq!(case.failures(), [(C::TrustAnchor, R::RootMissing)]);
}

/// Old processors may have lost their keys: they must not speak for new ones.
#[test]
fn another_product_s_ark_is_refused() {
    let milan = Case::new(&Setup {
        product: Product::Milan,
        ..Setup::default()
    });
    // A Milan chip that says it is a Genoa, under an anchored root of Milan.
    let mut disguised = Case::good();
    disguised.anchors = TrustAnchors::with_simulated(authority(Product::Milan).anchor());
    let template = KeyTemplate::vcek(Product::Genoa, "chip", tcb(Product::Genoa));
    disguised.endorsement = authority(Product::Milan).issue_vcek(&template).unwrap();
    disguised.evidence.certificates = vec![
        disguised.endorsement.chain().leaf.clone(),
        disguised.endorsement.chain().intermediate.clone(),
        disguised.endorsement.chain().ark.clone(),
    ];
    disguised.report(|_| {});
    assert_eq!(disguised.failures(), [(C::TrustAnchor, R::RootMissing)]);

    // The other product's root beside a genuine chain changes nothing, and in
    // its place is none.
    let ark = milan.evidence.certificates[2].clone();
    let mut case = Case::good();
    case.evidence.certificates.push(ark.clone());
    assert_eq!(case.failures(), []);
    case.evidence.certificates[2] = ark;
    assert_eq!(case.failures(), [(C::TrustAnchor, R::RootMissing)]);

    // The endorsement key of a Milan for a report of a Genoa.
    let mut case = Case::good();
    case.leaf(|template| "Milan-B0".clone_into(&mut template.product_name));
    let expected = [(C::EndorsementKey, R::CertificateProductWrong)];
    assert_eq!(case.failures(), expected);
    assert_eq!(milan.endorsement.chain().kind, SigningKey::Vcek);
}
