use assay_crds::v1alpha1::attestation_record::{CheckResult, CheckStatus, Diagnosis};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::controllers::attestation_gate::plan;
use crate::fixtures::{self, at};
use crate::plan::Requeue;

/// Everything that is known of a pod; by default all is well at 1,500 s.
struct World {
    pod: PodFacts,
    record: Option<AttestationRecord>,
    image: Option<MeasuredImage>,
    policy: Option<AttestationPolicy>,
    simulation: bool,
    now: Timestamp,
}

fn good() -> World {
    World {
        pod: PodFacts {
            name: "web-abc".to_owned(),
            uid: "uid-of-web-abc".to_owned(),
            deployment: Some("web".to_owned()),
        },
        record: Some(fixtures::record()),
        image: Some(fixtures::image()),
        policy: Some(fixtures::policy()),
        simulation: true,
        now: at(1_500),
    }
}

impl World {
    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut world = good();
        change(&mut world);
        world
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            pod: &self.pod,
            record: self.record.as_ref(),
            image: self.image.as_ref(),
            policy: self.policy.as_ref(),
            policy_hash: self
                .policy
                .as_ref()
                .and_then(|policy| policy.spec.hash().ok()),
            simulation: self.simulation,
        }
    }

    fn decide(&self) -> Decision {
        decide(&self.facts(), self.now)
    }
}

fn status(world: &mut World) -> &mut assay_crds::v1alpha1::AttestationRecordStatus {
    world.record.as_mut().unwrap().status.as_mut().unwrap()
}

fn rows(world: &mut World) -> &mut Vec<assay_crds::v1alpha1::measured_image::LaunchDigestRow> {
    &mut world
        .image
        .as_mut()
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .launch_digests
}

#[test]
fn a_fresh_acceptance_opens_the_gate_until_it_expires() {
    let decision = good().decide();
    assert!(decision.attested, "{decision:?}");
    assert_eq!(decision.recheck_at, Some(at(2_800)));
}

#[test]
fn one_fault_closes_the_gate() {
    use GateReason as Reason;
    type Change = fn(&mut World);
    let table: [(&str, Change, Reason); 22] = [
        (
            "no record",
            |w| w.record = None,
            Reason::AwaitingAttestation,
        ),
        (
            "record without status",
            |w| w.record.as_mut().unwrap().status = None,
            Reason::AwaitingAttestation,
        ),
        (
            "foreign UID",
            |w| w.record.as_mut().unwrap().spec.pod_ref.uid = "other".to_owned(),
            Reason::RecordMismatch,
        ),
        (
            "foreign pod",
            |w| w.record.as_mut().unwrap().spec.pod_ref.name = "other".to_owned(),
            Reason::RecordMismatch,
        ),
        (
            "foreign deployment",
            |w| w.record.as_mut().unwrap().spec.deployment_ref.name = "other".to_owned(),
            Reason::RecordMismatch,
        ),
        (
            "no deployment",
            |w| w.pod.deployment = None,
            Reason::RecordMismatch,
        ),
        (
            "rejected",
            |w| status(w).verdict = Verdict::Rejected,
            Reason::AttestationRejected,
        ),
        (
            "no expiry",
            |w| status(w).expires_at = None,
            Reason::RecordInvalid,
        ),
        (
            "no measurement",
            |w| status(w).measurement = None,
            Reason::RecordInvalid,
        ),
        (
            "no reference value",
            |w| status(w).reference_value = None,
            Reason::RecordInvalid,
        ),
        (
            "at the moment of expiry",
            |w| w.now = at(2_800),
            Reason::AttestationExpired,
        ),
        (
            "long expired",
            |w| status(w).expires_at = Some(Time(at(10))),
            Reason::AttestationExpired,
        ),
        ("no policy", |w| w.policy = None, Reason::PolicyMissing),
        (
            "changed policy",
            |w| {
                w.policy.as_mut().unwrap().spec.snp.products[0]
                    .minimum_tcb
                    .snp = 26;
            },
            Reason::PolicyChanged,
        ),
        (
            "another policy's hash",
            |w| status(w).policy_hash = "sha256:00".to_owned(),
            Reason::PolicyChanged,
        ),
        (
            "simulation disabled",
            |w| w.simulation = false,
            Reason::SimulationDisabled,
        ),
        ("no image", |w| w.image = None, Reason::ImageMissing),
        (
            "revoked image",
            |w| w.image.as_mut().unwrap().spec.lifecycle.state = LifecycleState::Revoked,
            Reason::ImageRevoked,
        ),
        (
            "no rows",
            |w| rows(w).clear(),
            Reason::ReferenceValueMissing,
        ),
        (
            "another digest in the row",
            |w| rows(w)[0].digest = "sha384:00".to_owned(),
            Reason::ReferenceValueMissing,
        ),
        (
            "the row of another TEE",
            |w| rows(w)[0].tee = TeeType::Snp,
            Reason::ReferenceValueMissing,
        ),
        (
            "revoked row",
            |w| rows(w)[0].state = DigestState::Revoked,
            Reason::ReferenceValueRevoked,
        ),
    ];
    for (name, change, reason) in table {
        let decision = World::with(change).decide();
        assert_eq!(
            (decision.attested, decision.reason),
            (false, reason),
            "{name}"
        );
        assert!(!decision.message.is_empty(), "{name}");
        assert_eq!(decision.recheck_at, None, "{name}");
    }
}

#[test]
fn a_policy_that_drops_the_tee_closes_the_gate_even_if_the_hash_were_right() {
    let world = World::with(|world| {
        let policy = world.policy.as_mut().unwrap();
        policy.spec.tees = vec![TeeType::Snp];
        let hash = policy.spec.hash().unwrap().to_string();
        status(world).policy_hash = hash;
    });
    assert_eq!(world.decide().reason, GateReason::TeeNotAllowed);
}

#[test]
fn a_deprecated_image_still_serves() {
    let world = World::with(|world| {
        world.image.as_mut().unwrap().spec.lifecycle.state = LifecycleState::Deprecated;
    });
    assert!(world.decide().attested);
}

#[test]
fn a_rejection_names_the_check_and_the_diagnosis() {
    let world = World::with(|world| {
        let status = status(world);
        status.verdict = Verdict::Rejected;
        status.reason = "MeasurementUnknown".to_owned();
        status.checks.push(CheckStatus {
            name: "Measurement".to_owned(),
            result: CheckResult::Fail,
            reason: Some("no reference value equals it".to_owned()),
            expected: Some("sha384:aa".to_owned()),
            observed: Some("sha384:bb".to_owned()),
        });
        status.diagnosis = Some(Diagnosis {
            type_: "VcpuCount".to_owned(),
            message: "equals web-1 with 4 vCPUs".to_owned(),
        });
    });
    assert_eq!(
        world.decide().message,
        "Measurement: no reference value equals it, expected sha384:aa, observed sha384:bb \
         (equals web-1 with 4 vCPUs)"
    );
}

#[test]
fn a_condition_is_written_once_and_keeps_its_time() {
    let world = good();
    let first = plan(&fixtures::pod(), &world.facts(), at(1_500));
    let write = first.write.unwrap();
    assert_eq!((write.status, write.since), ("True", at(1_500)));
    assert_eq!(first.requeue, Requeue::At(at(2_800)));
    assert!(!first.note.unwrap().warning);

    let applied = fixtures::pod_with_gate(
        write.status,
        write.reason.as_str(),
        &write.message,
        write.since,
    );
    let second = plan(&applied, &world.facts(), at(1_600));
    assert_eq!((second.write, second.note), (None, None));
    assert_eq!(second.requeue, Requeue::At(at(2_800)));

    let expired = plan(&applied, &world.facts(), at(2_800));
    let write = expired.write.unwrap();
    assert_eq!((write.status, write.since), ("False", at(2_800)));
    assert!(expired.note.unwrap().warning);

    // Another reason for the same status keeps the time of the flip.
    let closed = fixtures::pod_with_gate("False", "AttestationExpired", "", at(2_800));
    let missing = World::with(|world| world.image = None);
    let write = plan(&closed, &missing.facts(), at(2_600)).write.unwrap();
    assert_eq!(
        (write.reason, write.since),
        (GateReason::ImageMissing, at(2_800))
    );
}

#[test]
fn a_renewal_writes_nothing() {
    let world = good();
    let message = world.decide().message;
    let applied = fixtures::pod_with_gate("True", "Attested", &message, at(1_500));
    let renewed = World::with(|world| status(world).expires_at = Some(Time(at(3_400))));
    let plan = plan(&applied, &renewed.facts(), at(2_100));
    assert_eq!(plan.write, None);
    assert_eq!(plan.requeue, Requeue::At(at(3_400)));
}

#[test]
fn pods_that_are_over_are_left_alone() {
    let world = World::with(|world| world.record = None);
    let mut ended = fixtures::pod();
    ended.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    let mut leaving = fixtures::pod();
    leaving.metadata.deletion_timestamp = Some(Time(at(1)));
    for pod in [ended, leaving] {
        assert_eq!(plan(&pod, &world.facts(), at(1_500)).write, None);
    }
    let waiting = plan(&fixtures::pod(), &world.facts(), at(1_500));
    assert_eq!(
        waiting.write.unwrap().reason,
        GateReason::AwaitingAttestation
    );
    assert_eq!(waiting.note, None, "that a new pod waits is no news");
}
