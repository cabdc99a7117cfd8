//! One controller for each kind, and one for the readiness of pods.

pub mod attestation_gate;
pub mod attestation_policy;
pub mod confidential_deployment;
pub mod measured_image;

use assay_crds::conditions::{ConditionState, ConditionStatus, merge};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::apply::ApplyError;
use crate::causes::chain;
use crate::queue::Failure;

pub(crate) fn apply_failure(error: ApplyError) -> Failure {
    Failure {
        reason: error.reason(),
        source: Box::new(error),
    }
}

/// The conditions of a status: ours alone, since server-side apply keeps the
/// others.
pub(crate) fn own_conditions(
    before: &[Condition],
    states: &[ConditionState],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = merge(before, states, generation, now);
    conditions.retain(|condition| states.iter().any(|state| state.type_ == condition.type_));
    conditions
}

/// Reasons of a kind's conditions when its children cannot be written.
pub(crate) struct FailureReasons {
    /// Another owner holds the child.
    pub(crate) conflict: &'static str,
    /// Anything else that only a person can mend.
    pub(crate) failed: &'static str,
    /// What is not abnormal.
    pub(crate) up_to_date: &'static str,
}

/// Overrules `planned` with a failure that only a person can mend: not Ready, not
/// Reconciling, Stalled.
pub(crate) fn blame(
    planned: &mut Vec<Condition>,
    before: &[Condition],
    reasons: &FailureReasons,
    error: &ApplyError,
    generation: Option<i64>,
    now: Timestamp,
) {
    let reason = match error {
        ApplyError::ChildConflict { .. } => reasons.conflict,
        _ => reasons.failed,
    };
    let message = chain(error);
    let states = [
        state("Ready", false, reason, message.clone()),
        state("Reconciling", false, reasons.up_to_date, ""),
        state("Stalled", true, reason, message),
    ];
    let blamed = own_conditions(before, &states, generation, now);
    planned.retain(|old| blamed.iter().all(|new| new.type_ != old.type_));
    planned.extend(blamed);
    planned.sort_by(|a, b| a.type_.cmp(&b.type_));
}

/// Whether the conditions of `types` in `before` are those in `after`.
pub(crate) fn same_conditions(before: &[Condition], after: &[Condition]) -> bool {
    after.iter().all(|condition| before.contains(condition))
}

/// One condition.
pub(crate) fn state(
    type_: &'static str,
    status: impl Into<ConditionStatus>,
    reason: &'static str,
    message: impl Into<String>,
) -> ConditionState {
    ConditionState {
        type_,
        status: status.into(),
        reason,
        message: message.into(),
    }
}
