//! What a pod says of itself.

use assay_crds::names;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// The gate's condition of a pod.
pub fn gate_condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == names::ATTESTED_GATE)
}

/// Whether the pod's gate is open.
pub fn is_attested(pod: &Pod) -> bool {
    gate_condition(pod).is_some_and(|condition| condition.status == "True")
}

/// Whether the pod has ended or is about to.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
}
