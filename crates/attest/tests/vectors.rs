//! Real evidence: what must be accepted is, and what must not is refused for
//! the right reason. Skipped, loudly, where the vectors are absent.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/vectors.rs"]
mod vectors;

use assay_attest::policy::{GuestPolicyRules, RevocationListMode, SigningKeyPolicy};
use assay_attest::{Check, CheckName, CheckResult, ReasonCode, TrustDomain};
use assay_tee::Product;

use vectors::{Case, NOW, cloud_v2, debug_v2, good, load, roots, vectors, vlek};

#[track_caller]
fn assert_only_failure(name: &str, case: &Case, check: CheckName, reason: ReasonCode) {
    let verdict = case.appraise();
    assert!(!verdict.is_accepted(), "{name}");
    let failures: Vec<_> = verdict
        .checks
        .iter()
        .filter(|check| check.result == CheckResult::Fail)
        .map(|check| (check.name, check.reason))
        .collect();
    assert_eq!(failures, [(check, Some(reason))], "{name}");
}

#[test]
fn genuine_evidence_is_accepted() {
    let Some(vectors) = vectors() else { return };
    for (name, case) in good(&vectors) {
        let verdict = case.appraise();
        assert!(
            verdict.is_accepted(),
            "{name}: {:#?}",
            verdict.first_failure()
        );
        assert_eq!(verdict.trust_domain, Some(TrustDomain::Amd), "{name}");
        assert_eq!(verdict.reference_value.as_deref(), Some("vector"), "{name}");
        assert_eq!(verdict.checks.len(), CheckName::SNP.len(), "{name}");
    }
}

#[test]
fn genuine_evidence_needs_only_its_endorsement_key() {
    let Some(vectors) = vectors() else { return };
    for (name, mut case) in good(&vectors) {
        // AMD's intermediate for VLEKs is not part of the program.
        let needed = if name == "milan-v3-vlek" { 4 } else { 1 };
        case.evidence.certificates.truncate(needed);
        assert!(case.appraise().is_accepted(), "{name}");
        case.evidence.certificates.clear();
        let (check, reason) = (CheckName::EndorsementKey, ReasonCode::EndorsementKeyMissing);
        if name.contains("v2") {
            // Such reports do not even name the product.
            assert_only_failure(name, &case, CheckName::Product, ReasonCode::ProductUnknown);
        } else {
            assert_only_failure(name, &case, check, reason);
        }
    }
}

/// A VCEK without a report: its chain holds, and it is not the report's key.
#[test]
fn another_chip_of_the_product_is_refused_by_the_key_alone() {
    let Some(vectors) = vectors() else { return };
    let mut case = load(&vectors, Product::Turin, "turin-v5", "vcek.der");
    case.evidence.certificates[0] =
        std::fs::read(vectors.join("snp/turin-vcek-only/vcek.der")).unwrap();
    let verdict = case.appraise();
    assert_eq!(verdict.trust_domain, Some(TrustDomain::Amd));
    let failed = |check: &&Check| check.result == CheckResult::Fail;
    let names: Vec<_> = verdict
        .checks
        .iter()
        .filter(failed)
        .map(|check| check.name)
        .collect();
    let expected = [
        CheckName::EndorsedTcb,
        CheckName::ChipIdentity,
        CheckName::ReportSignature,
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_flip_of_any_byte_is_refused() {
    let Some(vectors) = vectors() else { return };
    for (name, mut case) in good(&vectors) {
        // Every byte of one report; of the others a sample that hits every field.
        let step = if name == "genoa-v5" { 1 } else { 23 };
        for offset in (0..case.evidence.report.len()).step_by(step) {
            case.evidence.report[offset] ^= 0x01;
            assert!(!case.appraise().is_accepted(), "{name}, offset {offset:#x}");
            case.evidence.report[offset] ^= 0x01;
        }
        assert!(case.appraise().is_accepted(), "{name}");
    }
}

#[test]
fn a_flip_behind_the_signed_part_breaks_only_the_rule_on_reserved_bytes() {
    let Some(vectors) = vectors() else { return };
    let mut case = load(&vectors, Product::Genoa, "genoa-v5", "vcek.der");
    case.evidence.report[0x330] ^= 1;
    assert_only_failure(
        "0x330",
        &case,
        CheckName::ReservedBytes,
        ReasonCode::ReservedByteSet,
    );
}

#[test]
fn policies_refuse_what_they_name() {
    let Some(vectors) = vectors() else { return };
    let strict_cloud = load(&vectors, Product::Milan, "milan-v2-cloud", "vcek.der");
    let (check, reason) = (CheckName::PlatformInfo, ReasonCode::AliasCheckMissing);
    assert_only_failure("cloud", &strict_cloud, check, reason);

    let mut debug = debug_v2(&vectors);
    debug.policy.guest_policy = GuestPolicyRules::default();
    assert_only_failure(
        "debug",
        &debug,
        CheckName::GuestPolicy,
        ReasonCode::DebugAllowed,
    );

    let mut expired = vlek(&vectors);
    expired.now = NOW.parse().unwrap();
    let (check, reason) = (CheckName::CertificateDates, ReasonCode::CertificateExpired);
    assert_only_failure("expired", &expired, check, reason);

    let mut vmpl = vlek(&vectors);
    vmpl.policy.vmpls = vec![0];
    assert_only_failure("vmpl", &vmpl, CheckName::Vmpl, ReasonCode::VmplNotAllowed);

    let mut provider = vlek(&vectors);
    provider.policy.signing_keys = vec![
        SigningKeyPolicy::Vcek,
        SigningKeyPolicy::Vlek {
            csp_ids: vec!["CN=x".to_owned()],
        },
    ];
    let (check, reason) = (CheckName::DenyList, ReasonCode::ProviderNotAllowed);
    assert_only_failure("provider", &provider, check, reason);

    let mut kind = vlek(&vectors);
    kind.policy.signing_keys = vec![SigningKeyPolicy::Vcek];
    let (check, reason) = (CheckName::KeyInformation, ReasonCode::SigningKeyNotAllowed);
    assert_only_failure("kind", &kind, check, reason);

    let mut rolled_back = cloud_v2(&vectors);
    rolled_back.policy.products[0].minimum_tcb.microcode = 0x74;
    let (check, reason) = (CheckName::MinimumTcb, ReasonCode::TcbTooOld);
    assert_only_failure("provisional firmware", &rolled_back, check, reason);
}

#[test]
fn chains_that_are_not_the_products_are_refused() {
    let Some(vectors) = vectors() else { return };
    let genoa = load(&vectors, Product::Genoa, "genoa-v5", "vcek.der");
    let milan = roots(&vectors, Product::Milan);
    let [milan_ask, milan_ark, _] = <[Vec<u8>; 3]>::try_from(milan).unwrap();

    // The bundle's order is ASK, ARK, ASVK.
    let mut other_chip = genoa.clone();
    other_chip.evidence.certificates[0] =
        std::fs::read(vectors.join("snp/milan-v3-a/vcek.der")).unwrap();
    let verdict = other_chip.appraise();
    let key = verdict.check(CheckName::EndorsementKey).unwrap();
    assert_eq!(key.reason, Some(ReasonCode::CertificateProductWrong));

    let mut provider = vlek(&vectors);
    provider.evidence.certificates.pop();
    let (check, reason) = (CheckName::CertificateChain, ReasonCode::IntermediateMissing);
    assert_only_failure("no ASVK", &provider, check, reason);

    // Another product's certificates are passed over, not put in place.
    let mut hints = genoa.clone();
    hints.evidence.certificates.truncate(1);
    hints.evidence.certificates.extend([milan_ask, milan_ark]);
    assert!(hints.appraise().is_accepted());

    for file in ["vcek-legacy-hwid.der", "vcek-octet-hwid.der"] {
        let mut case = cloud_v2(&vectors);
        case.evidence.certificates[0] =
            std::fs::read(vectors.join("snp/negative-chain").join(file)).unwrap();
        let verdict = case.appraise();
        let chain = verdict.check(CheckName::CertificateChain).unwrap();
        assert_eq!(
            chain.reason,
            Some(ReasonCode::CertificateSignatureInvalid),
            "{file}"
        );
        // Both forms of the chip's identity can be read.
        let key = verdict.check(CheckName::EndorsementKey).unwrap();
        assert_eq!(key.result, CheckResult::Pass, "{file}");
    }
}

#[test]
fn real_revocation_lists_are_understood() {
    let Some(vectors) = vectors() else { return };
    let mut case = load(&vectors, Product::Genoa, "genoa-v5", "vcek.der");
    case.policy.revocation_list = RevocationListMode::Required;
    case.now = "2025-10-01T00:00:00Z".parse().unwrap();
    let check = CheckName::RevocationList;
    assert_only_failure("absent", &case, check, ReasonCode::RevocationListMissing);

    let list = std::fs::read(vectors.join("crl/genoa.crl.der")).unwrap();
    case.evidence.revocation_list = Some(list.clone());
    let verdict = case.appraise();
    assert!(verdict.is_accepted(), "{:#?}", verdict.first_failure());

    assert_eq!(verdict.revocation_list_number, Some(4));

    case.policy.products[0].minimum_revocation_list = Some(5);
    assert_only_failure("old", &case, check, ReasonCode::RevocationListSuperseded);
    case.policy.products[0].minimum_revocation_list = Some(4);

    case.now = NOW.parse().unwrap();
    assert_only_failure("stale", &case, check, ReasonCode::RevocationListStale);

    case.now = "2025-10-01T00:00:00Z".parse().unwrap();
    let other = std::fs::read(vectors.join("crl/milan.crl.der")).unwrap();
    case.evidence.revocation_list = Some(other);
    assert_only_failure(
        "other root",
        &case,
        check,
        ReasonCode::RevocationListInvalid,
    );

    let mut changed = list;
    let last = changed.len() - 1;
    changed[last] ^= 1;
    case.evidence.revocation_list = Some(changed);
    assert_only_failure("changed", &case, check, ReasonCode::RevocationListInvalid);
}
