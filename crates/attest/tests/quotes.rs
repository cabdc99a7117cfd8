//! TDX evidence of real processors: what must be accepted is, and each change is
//! noticed by the check that is for it. Skipped, loudly, where the vectors are
//! absent.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/quotes.rs"]
mod quotes;
#[path = "support/vectors.rs"]
mod vectors;

use assay_attest::tdx::{ExpectedRegister, QuoteEvidence, TcbStatus};
use assay_attest::{
    CheckName, CheckResult, Outcome, ReasonCode, ReferenceState, TrustDomain, Verdict,
};
use assay_tee::Sha384Digest;
use proptest::prelude::any;
use proptest::sample::Index;
use serde_json::Value;

use quotes::{QuoteCase, ROWS, debug_v4, good_v4, outdated_v5};
use vectors::vectors;

#[track_caller]
fn assert_refused(name: &str, verdict: &Verdict, check: CheckName, reason: ReasonCode) {
    assert_eq!(verdict.outcome, Outcome::Rejected, "{name}");
    let found = verdict
        .first_failure()
        .map(|check| (check.name, check.reason));
    assert_eq!(found, Some((check, Some(reason))), "{name}");
}

#[test]
fn a_genuine_quote_is_accepted() {
    let Some(vectors) = vectors() else { return };
    let verdict = good_v4(&vectors).appraise();
    assert!(verdict.is_accepted(), "{:#?}", verdict.first_failure());
    assert_eq!(verdict.trust_domain, Some(TrustDomain::Intel));
    assert_eq!(verdict.reference_value.as_deref(), Some("vector"));
    let names: Vec<_> = verdict.checks.iter().map(|check| check.name).collect();
    assert_eq!(names, CheckName::TDX);
    let claims = verdict.td_claims.as_ref().unwrap();
    let platform = claims.platform.as_ref().unwrap();
    assert_eq!(platform.tcb_status, TcbStatus::UpToDate);
    assert_eq!(platform.fmspc, "b0c06f000000");
    let text = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
}

/// Older than every level: no policy can name what has no status.
#[test]
fn a_platform_below_every_level_is_refused_by_every_policy() {
    let Some(vectors) = vectors() else { return };
    let mut case = outdated_v5(&vectors);
    case.policy.tcb_statuses.push(TcbStatus::OutOfDate);
    let verdict = case.appraise();
    let (check, reason) = (CheckName::TcbLevel, ReasonCode::TcbLevelMissed);
    assert_refused("v5", &verdict, check, reason);
    let passed = |name| verdict.check(name).unwrap().result == CheckResult::Pass;
    assert!(passed(CheckName::QuoteSignature) && passed(CheckName::SeamModule));
    assert_eq!(verdict.trust_domain, None);
}

#[test]
fn a_debug_quote_is_refused() {
    let Some(vectors) = vectors() else { return };
    let mut case = debug_v4(&vectors);
    let (check, reason) = (CheckName::TdAttributes, ReasonCode::DebugAllowed);
    assert_refused("debug", &case.appraise(), check, reason);
    // Its signature is good all the same.
    let verdict = case.appraise();
    let passed = |name| verdict.check(name).unwrap().result == CheckResult::Pass;
    assert!(passed(CheckName::QuoteSignature) && passed(CheckName::CertificateChain));
    // And no collateral or policy helps it.
    case.evidence.collateral = good_v4(&vectors).evidence.collateral;
    case.policy.tcb_statuses.push(TcbStatus::OutOfDate);
    assert_refused("debug", &case.appraise(), check, reason);
}

#[test]
fn a_flip_of_any_signed_byte_is_refused() {
    let Some(vectors) = vectors() else { return };
    for (name, mut case, signed) in [
        ("v4", good_v4(&vectors), 632),
        ("v5", outdated_v5(&vectors), 702),
    ] {
        let before = case.appraise();
        let signature = before.check(CheckName::QuoteSignature).unwrap();
        assert_eq!(signature.result, CheckResult::Pass, "{name}");
        for offset in 0..signed {
            case.evidence.quote[offset] ^= 1;
            let verdict = case.appraise();
            assert!(!verdict.is_accepted(), "{name}, offset {offset:#x}");
            let signature = verdict.check(CheckName::QuoteSignature).unwrap();
            assert_ne!(
                signature.result,
                CheckResult::Pass,
                "{name}, offset {offset:#x}"
            );
            case.evidence.quote[offset] ^= 1;
        }
    }
}

/// Behind the signed part too, but for the zeros at the end and the line ends of
/// the certificates, which are no part of them.
#[test]
fn a_flip_of_what_vouches_for_the_quote_is_refused() {
    let Some(vectors) = vectors() else { return };
    let mut case = good_v4(&vectors);
    let end = case.evidence.quote.len();
    let begin = b"-----BEGIN";
    let chain = (0..end)
        .find(|&at| case.evidence.quote[at..].starts_with(begin))
        .unwrap();
    for offset in (632..chain).step_by(3) {
        case.evidence.quote[offset] ^= 1;
        assert!(!case.appraise().is_accepted(), "offset {offset:#x}");
        case.evidence.quote[offset] ^= 1;
    }
    assert!(case.appraise().is_accepted());
}

/// As the SNP rows: one change, and the check that is for it is the first to fail.
#[test]
fn each_change_of_a_quote_is_noticed_by_its_check() {
    let Some(vectors) = vectors() else { return };
    for (check, reason, what, change) in ROWS {
        let mut case = good_v4(&vectors);
        change(&mut case);
        assert_refused(what, &case.appraise(), *check, *reason);
    }
}

#[test]
fn no_check_and_no_reason_of_tdx_is_without_a_row() {
    // A platform with an advisory and a status is not among the vectors; see
    // `an_advisory_refuses_if_the_policy_names_it`.
    let elsewhere = (CheckName::Advisories, ReasonCode::AdvisoryRefused);
    let checks: Vec<_> = CheckName::TDX
        .iter()
        .filter(|name| !ROWS.iter().any(|row| row.0 == **name) && **name != elsewhere.0)
        .collect();
    assert!(checks.is_empty(), "{checks:?}");
    let reasons: Vec<_> = ReasonCode::ALL
        .iter()
        .skip(ReasonCode::SNP.len())
        .filter(|reason| !ROWS.iter().any(|row| row.1 == **reason) && **reason != elsewhere.1)
        .collect();
    assert!(reasons.is_empty(), "{reasons:?}");
}

#[test]
fn registers_that_are_not_compared_are_named() {
    let Some(vectors) = vectors() else { return };
    let mut case = good_v4(&vectors);
    let result = |case: &QuoteCase, name| case.appraise().check(name).unwrap().clone();
    case.reference_values.0[0].rtmrs[3] = ExpectedRegister::Any;
    let some = result(&case, CheckName::Rtmrs);
    assert_eq!(some.result, CheckResult::Pass);
    assert_eq!(some.observed.as_deref(), Some("RTMR3 not compared"));
    case.reference_values.0[0].rtmrs = [ExpectedRegister::Any; 4];
    assert_eq!(
        result(&case, CheckName::Rtmrs).result,
        CheckResult::NotApplicable
    );
    case.reference_values.0[0].mr_td = ExpectedRegister::Any;
    let measurement = result(&case, CheckName::Measurement);
    assert_eq!(measurement.result, CheckResult::NotApplicable);
    assert!(case.appraise().is_accepted());
}

#[test]
fn a_revoked_td_is_refused_whatever_else_is_known() {
    let Some(vectors) = vectors() else { return };
    let mut case = good_v4(&vectors);
    let mut revoked = case.reference_values.0[0].clone();
    revoked.state = ReferenceState::Revoked;
    // Another TD with the same firmware is no reason to refuse this one.
    revoked.rtmrs[1] = ExpectedRegister::Value(Sha384Digest::new([9; 48]));
    case.reference_values.0.push(revoked.clone());
    assert!(case.appraise().is_accepted());
    revoked.rtmrs = [ExpectedRegister::Any; 4];
    case.reference_values.0.push(revoked);
    let (check, reason) = (CheckName::Measurement, ReasonCode::MeasurementRevoked);
    assert_refused("revoked", &case.appraise(), check, reason);
}

/// The chain of a quote is the quote's: collateral cannot bring another.
#[test]
fn collateral_brings_no_pck_chain() {
    let Some(vectors) = vectors() else { return };
    let mut case = good_v4(&vectors);
    let other = outdated_v5(&vectors).pck_chain();
    case.collateral(|json| json["pck_certificate_chain"] = Value::String(other));
    assert!(case.appraise().is_accepted());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever arrives gives a verdict, of every check, and no damaged quote or
    /// collateral an acceptance by another platform's word.
    #[test]
    fn damaged_evidence_gives_a_verdict(
        changes in proptest::collection::vec((any::<Index>(), 1_u8..), 0..4),
        cut in proptest::option::of(any::<Index>()),
        in_collateral: bool,
    ) {
        let Some(vectors) = vectors() else { return Ok(()) };
        let mut case = good_v4(&vectors);
        let QuoteEvidence { quote, collateral } = &mut case.evidence;
        let bytes = if in_collateral { collateral.as_mut().unwrap() } else { quote };
        for (at, bits) in &changes {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        if let Some(cut) = cut {
            let len = cut.index(bytes.len());
            bytes.truncate(len);
        }
        let verdict = case.appraise();
        proptest::prop_assert_eq!(verdict.checks.len(), CheckName::TDX.len());
        let accepted = verdict.is_accepted();
        proptest::prop_assert_eq!(accepted, verdict.first_failure().is_none());
        if accepted {
            proptest::prop_assert_eq!(verdict.td_claims, good_v4(&vectors).appraise().td_claims);
        }
    }
}
