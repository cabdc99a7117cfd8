//! What a pod says of itself.

use assay_crds::names;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use kube::ResourceExt as _;

/// Reasons for which a container waits on its ordinary way.
const ORDINARY_WAITS: [&str; 2] = ["ContainerCreating", "PodInitializing"];

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

/// What keeps the pod's launcher from running, and where to look; none while all
/// goes well, as far as the kubelet can tell.
pub fn failure(pod: &Pod) -> Option<String> {
    let containers = pod.status.as_ref()?.container_statuses.as_deref()?;
    containers
        .iter()
        .find_map(|container| container_failure(&pod.name_any(), container))
}

fn container_failure(pod: &str, container: &ContainerStatus) -> Option<String> {
    let last = container.last_state.as_ref();
    if let Some(end) = last
        .and_then(|last| last.terminated.as_ref())
        .filter(|end| end.exit_code != 0)
    {
        return Some(format!(
            "pod {pod}: the launcher ended with status {} and was restarted, {} times so far; \
             look at kubectl logs --previous {pod}",
            end.exit_code, container.restart_count
        ));
    }
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting
        .reason
        .as_deref()
        .filter(|reason| !ORDINARY_WAITS.contains(reason))?;
    let message = waiting.message.as_deref().unwrap_or("no message");
    Some(format!(
        "pod {pod}: {reason}: {message}; look at kubectl describe pod {pod}"
    ))
}

/// Whether the pod has ended or is about to.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
}
