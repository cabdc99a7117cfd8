use assay_crds::v1alpha1::attestation_record::Verdict;
use jiff::ToSpan as _;

use super::*;
use crate::appraisal::decide_attestation;
use crate::collateral::tests::{list, service};
use crate::fixtures;

const DAY: i64 = 24;

/// A guest that brings along what `keep` leaves in place, and what the vendor says.
struct Case {
    submission: Submission,
    endorsements: Endorsements,
    appraisal: Appraisal,
}

fn case(number: Option<u64>) -> Case {
    let submission = fixtures::submission();
    let mut service = service();
    let endorsements = Endorsements {
        certificates: vec![],
        revocation_list: number.map(|number| {
            service.set_revocation_list(list(number));
            service.respond("/vcek/v1/Genoa/crl").unwrap().1
        }),
    };
    let decision = decide_attestation(
        &submission,
        &fixtures::nonce(),
        &fixtures::observed(),
        &endorsements,
        &fixtures::verifier(),
        fixtures::now(),
    );
    Case {
        appraisal: fixtures::appraised(decision.unwrap()),
        submission,
        endorsements,
    }
}

impl Case {
    fn plan(&self, existing: Option<&NodeTrust>) -> Option<NodeTrust> {
        plan_node_trust(
            fixtures::NAMESPACE,
            &self.submission,
            &self.endorsements,
            &self.appraisal,
            &fixtures::verifier(),
            existing,
        )
    }
}

#[test]
fn an_acceptance_tells_the_node_s_processor() {
    let case = case(Some(7));
    let trust = case.plan(None).unwrap();
    assert_eq!(trust.metadata.name.as_deref(), Some(fixtures::NODE));
    let status = trust.status.as_ref().unwrap();
    let claims = case.appraisal.claims.as_ref().unwrap();
    assert_eq!(status.product, "Genoa");
    assert_eq!(status.chip, claims.chip.to_string());
    assert!(status.trust_domain.starts_with("Simulated"), "{status:?}");
    assert_eq!(status.tcb.reported.microcode, 72);
    let list = status.revocation_list.as_ref().unwrap();
    assert_eq!(list.number, 7);
    assert!(list.this_update.0 < fixtures::now() && fixtures::now() < list.next_update.0);
    let endorsement = status.endorsement.as_ref().unwrap();
    assert_eq!(endorsement.tcb, status.tcb.reported);
    let chain = fixtures::endorsement().chain();
    let kept = certificates(&trust);
    assert_eq!(
        kept,
        [
            chain.leaf.clone(),
            chain.intermediate.clone(),
            chain.ark.clone()
        ]
    );
}

#[test]
fn who_shows_nothing_new_writes_nothing() {
    let mut case = case(Some(7));
    let first = case.plan(None).unwrap();
    case.appraisal.status.verified_at = Time(fixtures::now() + DAY.hours());
    case.appraisal.spec.pod_ref.name = "web-other".to_owned();
    assert_eq!(case.plan(Some(&first)), None);
    // Who brings less takes nothing away.
    case.submission.certificates.0.clear();
    case.endorsements = Endorsements::default();
    assert_eq!(case.plan(Some(&first)), None);

    // A newer list is new; an older one is not.
    let newer = self::case(Some(8)).plan(Some(&first)).unwrap();
    assert_eq!(self::case(Some(7)).plan(Some(&newer)), None);
    // As is what was changed by somebody else.
    let mut forged = first.clone();
    forged.status.as_mut().unwrap().product = "Milan".to_owned();
    assert_eq!(self::case(Some(7)).plan(Some(&forged)), Some(first));
}

#[test]
fn another_chip_or_tcb_takes_the_place_of_what_was_known() {
    let mut case = case(Some(7));
    let first = case.plan(None).unwrap();
    case.submission.certificates.0.clear();
    for change in [
        |case: &mut Case| {
            let claims = case.appraisal.claims.as_mut().unwrap();
            claims.chip = assay_tee::Sha256Digest::of(b"another chip");
        },
        |case: &mut Case| {
            let claims = case.appraisal.claims.as_mut().unwrap();
            claims.tcb.as_mut().unwrap().reported.microcode += 1;
        },
    ] {
        let mut case = Case {
            submission: case.submission.clone(),
            endorsements: case.endorsements.clone(),
            appraisal: case.appraisal.clone(),
        };
        change(&mut case);
        let planned = case.plan(Some(&first)).unwrap();
        let status = planned.status.unwrap();
        assert_eq!(status.endorsement, None, "it is of another key");
    }
}

#[test]
fn only_an_acceptance_of_a_pod_that_exists_counts() {
    let good = case(None);
    assert!(good.plan(None).is_some());
    for change in [
        |appraisal: &mut Appraisal| appraisal.status.verdict = Verdict::Rejected,
        |appraisal: &mut Appraisal| appraisal.witnessed = false,
        |appraisal: &mut Appraisal| appraisal.claims = None,
    ] {
        let mut case = case(None);
        change(&mut case.appraisal);
        assert_eq!(case.plan(None), None);
    }
}

#[test]
fn certificates_of_another_chip_are_not_kept() {
    let mut case = case(None);
    case.submission.evidence.report = {
        let mut report = case.submission.evidence.report.clone();
        // CHIP_ID (AMD 56860, table 23).
        report[0x1a0] ^= 1;
        report
    };
    let status = case.plan(None).unwrap().status.unwrap();
    assert_eq!(status.endorsement, None);
}
