//! One controller for each kind, and one for the readiness of pods.

pub mod attestation_gate;
pub mod attestation_policy;
pub mod confidential_deployment;
pub mod measured_image;

use assay_crds::conditions::{ConditionState, ConditionStatus, merge};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::apply::ApplyError;
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
