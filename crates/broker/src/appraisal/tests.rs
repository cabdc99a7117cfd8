//! The good submission and its mutations, with the reason that each must have.

use super::*;
use crate::fixtures;
use assay_crds::v1alpha1::attestation_policy::CrlRules;
use assay_crds::v1alpha1::measured_image::DigestState;
use assay_protocol::jwe::TeePublicKey;
use jiff::ToSpan as _;

struct Case {
    submission: Submission,
    nonce: IssuedNonce,
    observed: Observed,
    verifier: VerifierIdentity,
    now: Timestamp,
}

fn good() -> Case {
    Case {
        submission: fixtures::submission(),
        nonce: fixtures::nonce(),
        observed: fixtures::observed(),
        verifier: fixtures::verifier(),
        now: fixtures::now(),
    }
}

fn decide(case: &Case) -> Appraisal {
    let Case {
        submission,
        nonce,
        observed,
        verifier,
        now,
    } = case;
    let endorsements = Endorsements::default();
    let decision =
        decide_attestation(submission, nonce, observed, &endorsements, verifier, *now).unwrap();
    fixtures::appraised(decision)
}

fn submitted(instance: &InstanceData, page: u8) -> Submission {
    let guest = fixtures::launch(page, instance);
    Submission::parse(&fixtures::attest(&guest, instance)).unwrap()
}

#[test]
fn a_good_guest_is_accepted() {
    let appraisal = decide(&good());
    assert!(appraisal.is_accepted(), "{:#?}", appraisal.status.checks);
    assert!(appraisal.authentic);
    assert!(appraisal.is_simulated());
    let status = appraisal.status;
    assert_eq!(status.reason, "Accepted");
    assert_eq!(status.tee, TeeType::SimulatedSnp);
    assert_eq!(status.reference_value.as_deref(), Some("one"));
    assert_eq!(
        status.expires_at,
        Some(Time(fixtures::now() + 1800.seconds()))
    );
    assert_eq!(status.checks.len(), 5 + CheckName::SNP.len());
    assert_eq!(
        InstanceData::host_data(status.evidence.instance_data.as_bytes()),
        InstanceData::host_data(&fixtures::instance().encode().unwrap())
    );
}

/// What the installation denies is denied under a policy that denies nothing, and
/// what a policy denies stays denied.
#[test]
fn the_installation_s_deny_list_is_added_to_the_policy_s() {
    let chip = decide(&good()).claims.unwrap().chip;
    let mut case = good();
    case.verifier.denied.chips.push(chip);
    let appraisal = decide(&case);
    assert_eq!(appraisal.status.reason, "ChipDenied");
    assert!(!appraisal.is_accepted());

    let other = Sha256Digest::of(b"another chip");
    let mut case = good();
    case.verifier.denied.chips.push(other);
    assert!(decide(&case).is_accepted());
    let policy = Arc::make_mut(case.observed.policy.as_mut().unwrap());
    policy.spec.snp.denied.chips.push(chip);
    let mut instance = fixtures::instance();
    instance.policy_hash = policy.spec.hash().unwrap();
    case.submission = submitted(&instance, 1);
    assert_eq!(decide(&case).status.reason, "ChipDenied");
}

/// One change to the good case; the reason that the record must then have.
#[test]
fn every_mutation_has_its_reason() {
    type Change = fn(&mut Case);
    fn policy(case: &mut Case) -> &mut AttestationPolicy {
        Arc::make_mut(case.observed.policy.as_mut().unwrap())
    }
    fn image(case: &mut Case) -> &mut MeasuredImage {
        Arc::make_mut(case.observed.image.as_mut().unwrap())
    }
    fn deployment(case: &mut Case) -> &mut ConfidentialDeployment {
        Arc::make_mut(case.observed.deployment.as_mut().unwrap())
    }
    /// Another policy, and a guest that was launched under it.
    fn repolicy(case: &mut Case, change: fn(&mut AttestationPolicy)) {
        change(policy(case));
        let mut instance = fixtures::instance();
        instance.policy_hash = policy(case).spec.hash().unwrap();
        case.submission = submitted(&instance, 1);
    }
    let rows: Vec<(Change, &str)> = vec![
        (
            |c| c.submission = submitted(&fixtures::instance(), 9),
            "MeasurementUnknown",
        ),
        (
            |c| c.submission = submitted(&fixtures::instance(), 2),
            "MeasurementUnknown",
        ),
        (
            |c| deployment(c).spec.machine.vcpus = 2,
            "MeasurementUnknown",
        ),
        (
            |c| deployment(c).spec.machine.tee = TeeType::Snp,
            "TeeNotAllowed",
        ),
        (
            |c| {
                image(c).spec.lifecycle.state = LifecycleState::Revoked;
            },
            "ImageRevoked",
        ),
        (
            |c| {
                let status = image(c).status.as_mut().unwrap();
                status.launch_digests[0].state = DigestState::Revoked;
            },
            "MeasurementRevoked",
        ),
        (|c| image(c).status = None, "MeasurementUnknown"),
        (|c| c.observed.image = None, "ImageMissing"),
        (|c| c.observed.policy = None, "PolicyMissing"),
        (|c| policy(c).spec.release.clear(), "PolicyHashMismatch"),
        (|c| c.verifier.ca = "another".to_owned(), "VerifierMismatch"),
        (|c| c.verifier.anchors = TrustAnchors::amd(), "RootUnknown"),
        (
            |c| repolicy(c, |p| p.spec.tees = vec![TeeType::Snp]),
            "TeeNotAllowed",
        ),
        (
            |c| repolicy(c, |p| p.spec.snp.products.clear()),
            "ProductNotAllowed",
        ),
        (
            |c| repolicy(c, |p| p.spec.snp.products[0].minimum_tcb.snp = 24),
            "TcbTooOld",
        ),
        (
            |c| repolicy(c, |p| p.spec.snp.vmpls = vec![1]),
            "VmplNotAllowed",
        ),
        (
            |c| {
                repolicy(c, |p| {
                    p.spec.snp.crl = CrlRules::default();
                });
            },
            "RevocationListMissing",
        ),
        (|c| c.now += (365 * 30 * 24).hours(), "CertificateExpired"),
        (
            |c| c.submission.runtime_data.nonce.push('='),
            "ReportDataMismatch",
        ),
        (
            |c| {
                let key = &mut c.submission.runtime_data.tee_pubkey;
                let TeePublicKey::Ec { x, y, .. } = key else {
                    unreachable!()
                };
                std::mem::swap(x, y);
            },
            "ReportDataMismatch",
        ),
        (
            |c| c.submission.instance_document.push(' '),
            "HostDataMismatch",
        ),
        (
            |c| c.submission.evidence.report[0x90] ^= 1,
            "ReportSignatureInvalid",
        ),
        (
            |c| c.submission.evidence.report[0x330] ^= 1,
            "ReservedByteSet",
        ),
        (
            |c| c.submission.evidence.report.push(0),
            "ReportLengthInvalid",
        ),
        (
            |c| c.submission.certificates.0.clear(),
            "EndorsementKeyMissing",
        ),
        (|c| c.submission.certificates.0.truncate(1), "RootMissing"),
        (
            |c| {
                let mut record = fixtures::record();
                record.status.as_mut().unwrap().verified_at.0 += 1.seconds();
                c.observed.record = Some(record);
            },
            "NonceSuperseded",
        ),
    ];
    for (index, (change, reason)) in rows.into_iter().enumerate() {
        let mut case = good();
        change(&mut case);
        let appraisal = decide(&case);
        assert!(!appraisal.is_accepted(), "row {index}");
        assert_eq!(appraisal.status.reason, reason, "row {index}");
        assert_eq!(appraisal.status.expires_at, None, "row {index}");
        assert!(appraisal.status.checks.len() <= 64);
    }
}

/// Evidence of one pod's guest does not serve another pod.
#[test]
fn instance_data_of_another_pod_is_unidentified() {
    let mut case = good();
    let mut lineage = fixtures::lineage();
    lineage.pod.as_mut().unwrap().metadata.uid = Some("another".to_owned());
    case.observed.witness = Witness::ApiServer(Box::new(lineage));
    let Case {
        submission,
        nonce,
        observed,
        verifier,
        now,
    } = &case;
    let endorsements = Endorsements::default();
    let decision =
        decide_attestation(submission, nonce, observed, &endorsements, verifier, *now).unwrap();
    assert!(matches!(
        decision,
        Decision::Unidentified(IdentityError::PodUid { .. })
    ));
}

#[test]
fn only_evidence_that_binds_session_and_instance_is_authentic() {
    let mut wrong_measurement = good();
    wrong_measurement.submission = submitted(&fixtures::instance(), 9);
    assert!(decide(&wrong_measurement).authentic);
    let changes: [fn(&mut Case); 5] = [
        |c| c.submission.evidence.report[0x50] ^= 1,
        |c| c.submission.runtime_data.nonce.push('='),
        |c| c.submission.instance_document.push(' '),
        |c| c.verifier.anchors = TrustAnchors::amd(),
        // Simulated evidence about a guest that hardware is to protect.
        |c| {
            let policy = Arc::make_mut(c.observed.policy.as_mut().unwrap());
            policy.spec.tees = vec![TeeType::Snp, TeeType::SimulatedSnp];
            let deployment = Arc::make_mut(c.observed.deployment.as_mut().unwrap());
            deployment.spec.machine.tee = TeeType::Snp;
        },
    ];
    for change in changes {
        let mut case = good();
        change(&mut case);
        assert!(!decide(&case).authentic);
    }
}

#[test]
fn an_unknown_digest_is_explained() {
    let mut other_shape = good();
    other_shape.submission = submitted(&fixtures::instance(), 2);
    let diagnosis = decide(&other_shape).status.diagnosis.unwrap();
    assert_eq!(diagnosis.type_, "OtherShape");
    assert!(
        diagnosis.message.contains("2 vCPUs of EPYC-v4"),
        "{}",
        diagnosis.message
    );
    let mut unknown = good();
    unknown.submission = submitted(&fixtures::instance(), 9);
    assert_eq!(decide(&unknown).status.diagnosis.unwrap().type_, "Unknown");
    assert_eq!(decide(&good()).status.diagnosis, None);
}

/// The pod of an earlier acceptance may attest again with a later nonce.
#[test]
fn attesting_again_is_accepted() {
    let mut case = good();
    case.observed.record = Some(fixtures::record());
    assert!(decide(&case).is_accepted());
}

/// Where nobody says that the pod exists, evidence counts and the record says so.
#[test]
fn without_a_witness_the_evidence_decides() {
    let mut case = good();
    case.observed.witness = Witness::Nobody;
    let appraisal = decide(&case);
    assert!(appraisal.is_accepted() && !appraisal.witnessed);
    let mut checks = appraisal.status.checks.iter();
    let identity = checks.find(|check| check.name == "InstanceIdentity");
    let identity = identity.unwrap();
    assert_eq!(identity.result, CheckResult::NotApplicable);
    let observed = identity.observed.as_ref().unwrap();
    assert!(observed.ends_with("as the host says"), "{observed}");
}

/// Whoever is no guest must not use up what the vendor answers.
#[test]
fn chips_that_the_policy_does_not_name_are_not_asked_about() {
    let mut case = good();
    let report = AttestationReport::read_layout(&case.submission.evidence.report).unwrap();
    let (own, other) = (
        Sha256Digest::of(&report.chip_id),
        Sha256Digest::of(b"another"),
    );
    for (witness, chips, worth) in [
        (
            Witness::ApiServer(Box::new(fixtures::lineage())),
            Some(other),
            true,
        ),
        (Witness::default(), Some(own), false),
        (Witness::Nobody, None, true),
        (Witness::Nobody, Some(own), true),
        (Witness::Nobody, Some(other), false),
    ] {
        case.observed.witness = witness;
        let policy = Arc::make_mut(case.observed.policy.as_mut().unwrap());
        policy.spec.snp.allowed_chips = chips.map(|chip| vec![chip]);
        let found = is_worth_endorsing(&case.submission, &case.observed);
        assert_eq!(found, worth, "{:?} {chips:?}", case.observed.witness);
    }
    case.observed.policy = None;
    assert!(!is_worth_endorsing(&case.submission, &case.observed));
}
