//! What a decision changes about a pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;

use super::decide::{Decision, Facts, GateReason, decide};
use crate::plan::{Note, Requeue};
use crate::pods::{gate_condition, is_over};

/// What is done about one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GatePlan {
    /// The condition to write, when it differs.
    pub write: Option<GateWrite>,
    /// The event to publish, when the pod gained or lost its place.
    pub note: Option<Note>,
    /// When the decision changes by itself.
    pub requeue: Requeue,
}

/// The pod condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GateWrite {
    /// `True` or `False`.
    pub status: &'static str,
    /// Why.
    pub reason: GateReason,
    /// The same, for a person.
    pub message: String,
    /// When `status` last flipped.
    pub since: Timestamp,
}

/// Plans the condition of a pod.
pub fn plan(pod: &Pod, facts: &Facts<'_>, now: Timestamp) -> GatePlan {
    if is_over(pod) {
        return GatePlan {
            write: None,
            note: None,
            requeue: Requeue::Resync,
        };
    }
    let Decision {
        attested,
        reason,
        message,
        recheck_at,
    } = decide(facts, now);
    let status = if attested { "True" } else { "False" };
    let current = gate_condition(pod);
    let same = current.is_some_and(|current| {
        current.status == status
            && current.reason.as_deref() == Some(reason.as_str())
            && current.message.as_deref() == Some(message.as_str())
    });
    let since = current
        .filter(|current| current.status == status)
        .and_then(|current| current.last_transition_time.as_ref())
        .map_or(now, |time| time.0);
    let before = current.map(|current| (current.status.as_str(), current.reason.as_deref()));
    let note = news(before, status, reason).then(|| Note {
        warning: !attested,
        reason: reason.as_str().to_owned(),
        action: "Attested".to_owned(),
        message: message.clone(),
    });
    GatePlan {
        note: if same { None } else { note },
        write: (!same).then_some(GateWrite {
            status,
            reason,
            message,
            since,
        }),
        requeue: recheck_at.map_or(Requeue::Resync, Requeue::At),
    }
}

/// Whether the change is an event: gained, lost, or refused for another reason.
/// That a new pod waits for its first attestation is not.
fn news(before: Option<(&str, Option<&str>)>, status: &str, reason: GateReason) -> bool {
    match before {
        Some((old_status, old_reason)) => {
            old_status != status || (status == "False" && old_reason != Some(reason.as_str()))
        }
        None => reason != GateReason::AwaitingAttestation,
    }
}
