//! What is said about a deployment.

use assay_crds::conditions::{ConditionState, ConditionStatus};
use assay_crds::names;
use assay_crds::v1alpha1::attestation_record::{ReleaseOutcome, SecretRelease};
use assay_crds::v1alpha1::confidential_deployment::{
    ConfidentialDeploymentReason as Reason, ReplicaSummary,
};
use assay_crds::v1alpha1::{ConfidentialDeployment, ConfidentialDeploymentStatus, TeeType};
use assay_workload::validate::{Rejection, Valid};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;

use super::observe::Observed;
use crate::apply::ApplyError;
use crate::controllers::attestation_gate::GateReason;
use crate::controllers::{self, FailureReasons, own_conditions, same_conditions, state};
use crate::manifest::Manifest;
use crate::plan::{Note, Plan, Severity, transitions};
use crate::pods::{failure, gate_condition, is_attested};

/// Conditions whose changes are events.
const NEWSWORTHY: [&str; 3] = ["Ready", "Attested", "SecretsReleased"];

/// Replicas, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    wanted: i32,
    existing: i32,
    updated: i32,
    ready: i32,
    available: i32,
    attested: i32,
    /// The Deployment's controller has seen the newest specification.
    observed: bool,
}

pub(super) fn status(
    deployment: &ConfidentialDeployment,
    observed: &Observed,
    verdict: Result<&Valid, &Rejection>,
    writes: &[Manifest],
    now: Timestamp,
) -> (ConfidentialDeploymentStatus, Vec<Note>) {
    let counts = count(deployment, observed);
    let attested = attested(&counts, observed);
    let secrets = secrets(deployment, &counts, observed);
    let available = available(&counts);
    let hardware = hardware(deployment, &counts);
    let rolling = !writes.is_empty()
        || !counts.observed
        || counts.updated < counts.wanted
        || counts.existing > counts.updated;
    let (mut ready, mut reconciling, mut stalled) = match verdict {
        Err(why) => (
            state("Ready", false, why.reason.as_str(), why.message.clone()),
            abnormal("Reconciling", !why.stalled, why.reason, &why.message),
            abnormal("Stalled", why.stalled, why.reason, &why.message),
        ),
        Ok(_) => (
            ready(&counts, rolling, &attested, &secrets),
            abnormal(
                "Reconciling",
                rolling,
                Reason::Progressing,
                "pods are being made or replaced",
            ),
            abnormal("Stalled", false, Reason::UpToDate, ""),
        ),
    };
    let current = writes.is_empty() && counts.observed;
    if is_waiting(&ready)
        && let Some((reason, message)) = trouble(observed, current)
    {
        if reason == Reason::ProgressDeadlineExceeded {
            reconciling = abnormal("Reconciling", false, reason, &message);
            stalled = abnormal("Stalled", true, reason, &message);
        }
        ready = state("Ready", false, reason.as_str(), message);
    }
    let states = [
        ready,
        attested,
        secrets,
        available,
        hardware,
        reconciling,
        stalled,
    ];
    let before = conditions_of(deployment);
    let conditions = own_conditions(before, &states, deployment.metadata.generation, now);
    let events = transitions(before, &conditions, &NEWSWORTHY, severity);
    let expected = verdict.ok().map(|valid| valid.expected_digest.to_string());
    let kept = deployment
        .status
        .as_ref()
        .and_then(|status| status.expected_digest.clone());
    let status = ConfidentialDeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: counts.existing,
        updated_replicas: counts.updated,
        ready_replicas: counts.ready,
        attested_replicas: counts.attested,
        summary: Some(ReplicaSummary {
            ready: format!("{}/{}", counts.ready, counts.wanted),
            attested: format!("{}/{}", counts.attested, counts.wanted),
        }),
        selector: Some(format!(
            "{}={}",
            names::DEPLOYMENT_LABEL,
            deployment.name_any()
        )),
        // While a change cannot be planned, what runs is what was.
        expected_digest: expected.or(kept.filter(|_| observed.workload.is_some())),
        oldest_attestation: observed.oldest_attestation.map(Time),
        conditions,
    };
    (status, events)
}

fn conditions_of(deployment: &ConfidentialDeployment) -> &[Condition] {
    deployment
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default()
}

fn count(deployment: &ConfidentialDeployment, observed: &Observed) -> Counts {
    let workload = observed.workload.as_deref();
    let spec = workload.and_then(|workload| workload.spec.as_ref());
    let status = workload.and_then(|workload| workload.status.as_ref());
    let generation = workload.and_then(|workload| workload.metadata.generation);
    let attested = observed.pods.iter().filter(|pod| is_attested(pod)).count();
    Counts {
        wanted: deployment
            .spec
            .replicas
            .or(spec.and_then(|spec| spec.replicas))
            .unwrap_or(1),
        existing: status.and_then(|status| status.replicas).unwrap_or(0),
        updated: status
            .and_then(|status| status.updated_replicas)
            .unwrap_or(0),
        ready: status.and_then(|status| status.ready_replicas).unwrap_or(0),
        available: status
            .and_then(|status| status.available_replicas)
            .unwrap_or(0),
        attested: i32::try_from(attested).unwrap_or(i32::MAX),
        observed: status.is_some_and(|status| status.observed_generation >= generation),
    }
}

fn attested(counts: &Counts, observed: &Observed) -> ConditionState {
    let mut closed: Vec<(&str, String, String)> = observed
        .pods
        .iter()
        .filter_map(|pod| Some((pod, gate_condition(pod)?)))
        .filter(|(_, gate)| gate.status != "True")
        .map(|(pod, gate)| {
            let reason = gate.reason.as_deref().unwrap_or_default();
            (
                reason,
                pod.name_any(),
                gate.message.clone().unwrap_or_default(),
            )
        })
        .collect();
    closed.sort();
    let awaiting = GateReason::AwaitingAttestation.as_str();
    let expired = GateReason::AttestationExpired.as_str();
    if let Some((reason, pod, message)) = closed
        .iter()
        .find(|(reason, ..)| *reason != awaiting && *reason != expired)
    {
        // Revocation, a changed policy and the like say more than "rejected".
        let text = if *reason == GateReason::AttestationRejected.as_str() {
            format!("pod {pod}: {message}")
        } else {
            format!("pod {pod}: {reason}: {message}")
        };
        return state(
            "Attested",
            false,
            Reason::AttestationRejected.as_str(),
            text,
        );
    }
    if let Some((_, pod, message)) = closed.iter().find(|(reason, ..)| *reason == expired) {
        let text = format!("pod {pod}: {message}");
        return state("Attested", false, Reason::AttestationExpired.as_str(), text);
    }
    if counts.attested < counts.wanted {
        let text = format!(
            "{} of {} guests have attested",
            counts.attested, counts.wanted
        );
        return state(
            "Attested",
            false,
            Reason::AwaitingAttestation.as_str(),
            text,
        );
    }
    let text = match counts.wanted {
        0 => "no guests are wanted".to_owned(),
        wanted => format!("{wanted} of {wanted} guests are attested and fresh"),
    };
    state("Attested", true, Reason::AllReplicasFresh.as_str(), text)
}

/// What the records say about the secrets that the deployment names now.
fn secrets(
    deployment: &ConfidentialDeployment,
    counts: &Counts,
    observed: &Observed,
) -> ConditionState {
    let named = &deployment.spec.secrets;
    let releases: Vec<&[SecretRelease]> = observed
        .records
        .iter()
        .filter_map(|record| Some(record.status.as_ref()?.secrets.as_slice()))
        .collect();
    let refused = named.iter().enumerate().find_map(|(index, secret)| {
        releases
            .iter()
            .flat_map(|releases| releases.iter())
            .filter(|release| release.name == secret.name)
            .find_map(|release| Some((index, refusal(release.outcome)?, &release.message)))
    });
    if let Some((index, reason, message)) = refused {
        let message = message.as_deref().unwrap_or_default();
        let text = format!("spec.secrets[{index}].secretRef: {message}");
        return state("SecretsReleased", false, reason.as_str(), text);
    }
    let has_all = |releases: &&&[SecretRelease]| {
        named.iter().all(|secret| {
            releases.iter().any(|release| {
                release.name == secret.name && release.outcome == ReleaseOutcome::Released
            })
        })
    };
    let served = i32::try_from(releases.iter().filter(has_all).count());
    let served = served.unwrap_or(i32::MAX).min(counts.wanted);
    let text = match named.len() {
        0 => "the guests need no secrets".to_owned(),
        _ => format!("{served} of {} guests have their secrets", counts.wanted),
    };
    let all = named.is_empty() || served == counts.wanted;
    let reason = if all {
        Reason::AllSecretsReleased
    } else {
        Reason::AwaitingRelease
    };
    state("SecretsReleased", all, reason.as_str(), text)
}

fn refusal(outcome: ReleaseOutcome) -> Option<Reason> {
    match outcome {
        ReleaseOutcome::Released => None,
        ReleaseOutcome::SecretMissing => Some(Reason::SecretMissing),
        ReleaseOutcome::SecretKeyMissing => Some(Reason::SecretKeyMissing),
        ReleaseOutcome::ReleaseClassMismatch => Some(Reason::ReleaseClassMismatch),
        ReleaseOutcome::ValueTooLarge => Some(Reason::ValueTooLarge),
    }
}

fn available(counts: &Counts) -> ConditionState {
    let text = format!(
        "{} of {} guests are available",
        counts.available, counts.wanted
    );
    if counts.available >= counts.wanted {
        state("Available", true, Reason::AllReplicasReady.as_str(), text)
    } else {
        state("Available", false, Reason::ReplicasNotReady.as_str(), text)
    }
}

fn hardware(deployment: &ConfidentialDeployment, counts: &Counts) -> ConditionState {
    match deployment.spec.machine.tee {
        TeeType::SimulatedSnp => state(
            "HardwareBacked",
            false,
            Reason::Simulated.as_str(),
            "the guests are simulated: nothing protects them",
        ),
        TeeType::Snp if counts.attested > 0 => state(
            "HardwareBacked",
            true,
            Reason::Hardware.as_str(),
            "the guests have proved to run on SEV-SNP hardware",
        ),
        TeeType::Snp => state(
            "HardwareBacked",
            ConditionStatus::Unknown,
            Reason::AwaitingAttestation.as_str(),
            "no guest has proved yet what it runs on",
        ),
    }
}

fn ready(
    counts: &Counts,
    rolling: bool,
    attested: &ConditionState,
    secrets: &ConditionState,
) -> ConditionState {
    let text = format!(
        "{} of {} guests are ready, {} attested",
        counts.ready, counts.wanted, counts.attested
    );
    let refused = |cause: &ConditionState, waiting: Reason| {
        cause.status == ConditionStatus::False && cause.reason != waiting.as_str()
    };
    if refused(attested, Reason::AwaitingAttestation) {
        state("Ready", false, attested.reason, attested.message.clone())
    } else if refused(secrets, Reason::AwaitingRelease) {
        state("Ready", false, secrets.reason, secrets.message.clone())
    } else if rolling {
        state("Ready", false, Reason::Progressing.as_str(), text)
    } else if attested.status != ConditionStatus::True {
        state("Ready", false, attested.reason, text)
    } else if counts.ready < counts.wanted {
        state("Ready", false, Reason::ReplicasNotReady.as_str(), text)
    } else {
        state("Ready", true, Reason::AllReplicasReady.as_str(), text)
    }
}

/// Whether it is only a matter of time, as far as `ready` tells.
fn is_waiting(ready: &ConditionState) -> bool {
    [
        Reason::Progressing,
        Reason::AwaitingAttestation,
        Reason::ReplicasNotReady,
    ]
    .iter()
    .any(|reason| reason.as_str() == ready.reason)
}

/// What keeps guests from coming up, and where to look. What the Deployment says
/// of its progress counts while it is about the `current` specification.
fn trouble(observed: &Observed, current: bool) -> Option<(Reason, String)> {
    let pending = observed.pods.iter().filter(|pod| !is_attested(pod));
    let failing = pending.clone().filter_map(|pod| failure(pod)).min();
    let status = observed.workload.as_ref()?.status.as_ref()?;
    let exceeded = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "Progressing"
            && condition.reason.as_deref() == Some(Reason::ProgressDeadlineExceeded.as_str())
    });
    if !(exceeded && current) {
        return failing.map(|message| (Reason::PodFailing, message));
    }
    let message = failing.unwrap_or_else(|| match pending.map(|pod| pod.name_any()).min() {
        Some(pod) => format!(
            "pod {pod} runs and has not attested; look at kubectl logs {pod}: firmware that \
             refuses what it is to boot says nothing"
        ),
        None => "look at kubectl describe deployment".to_owned(),
    });
    let message = format!("the rollout makes no progress: {message}");
    Some((Reason::ProgressDeadlineExceeded, message))
}

/// A condition that is True when something is out of the ordinary (kstatus).
fn abnormal(type_: &'static str, holds: bool, reason: Reason, message: &str) -> ConditionState {
    if holds {
        state(type_, true, reason.as_str(), message)
    } else {
        state(type_, false, Reason::UpToDate.as_str(), "")
    }
}

/// Waiting is no news, or good to know when it is for somebody else; what is
/// refused should be looked at. Of a refusal of evidence or of a secret the
/// condition Attested or SecretsReleased tells, not Ready again.
fn severity(condition: &Condition) -> Severity {
    let among = |reasons: &[Reason]| {
        reasons
            .iter()
            .any(|reason| reason.as_str() == condition.reason)
    };
    let refused = among(&[
        Reason::AttestationRejected,
        Reason::AttestationExpired,
        Reason::SecretMissing,
        Reason::SecretKeyMissing,
        Reason::ReleaseClassMismatch,
        Reason::ValueTooLarge,
    ]);
    if among(&[
        Reason::Progressing,
        Reason::AwaitingAttestation,
        Reason::ReplicasNotReady,
        Reason::AwaitingRelease,
        Reason::AllSecretsReleased,
    ]) || (refused && condition.type_ == "Ready")
    {
        Severity::Quiet
    } else if condition.status == "True"
        || among(&[
            Reason::ImageMissing,
            Reason::ImageNotReady,
            Reason::PolicyMissing,
            Reason::BrokerNotReady,
        ])
    {
        Severity::Normal
    } else {
        Severity::Warning
    }
}

/// Puts a failure that only a person can mend into the status.
pub(super) fn blame(
    deployment: &ConfidentialDeployment,
    plan: &mut Plan<ConfidentialDeploymentStatus>,
    error: &ApplyError,
    now: Timestamp,
) {
    const REASONS: FailureReasons = FailureReasons {
        conflict: Reason::ChildConflict.as_str(),
        failed: Reason::ApplyFailed.as_str(),
        up_to_date: Reason::UpToDate.as_str(),
    };
    let before = conditions_of(deployment);
    let generation = deployment.metadata.generation;
    let planned = &mut plan.status.conditions;
    controllers::blame(planned, before, &REASONS, error, generation, now);
    plan.events = transitions(before, planned, &NEWSWORTHY, severity);
}

/// Whether the deployment has this status already.
pub(super) fn is_current(
    deployment: &ConfidentialDeployment,
    next: &ConfidentialDeploymentStatus,
) -> bool {
    deployment.status.as_ref().is_some_and(|status| {
        let bare = |status: &ConfidentialDeploymentStatus| ConfidentialDeploymentStatus {
            conditions: Vec::new(),
            ..status.clone()
        };
        same_conditions(&status.conditions, &next.conditions) && bare(status) == bare(next)
    })
}
