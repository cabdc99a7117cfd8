//! The gate: a pod's condition `assay.dev/Attested` says whether its guest's
//! latest attestation is accepted, fresh and unrevoked.
//!
//! It is the only thing between an attestation and the pod's readiness, and
//! works both ways: expiry, revocation, a changed policy or a vanished record
//! take the condition back. It releases nothing; the broker decides on evidence.

mod decide;
mod observe;
mod plan;

pub use self::decide::{Decision, Facts, GateReason, PodFacts, decide};
pub use self::plan::{GatePlan, GateWrite, plan};

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::context::Context;
use crate::controllers::apply_failure;
use crate::queue::Outcome;

/// Field manager of this controller.
pub const MANAGER: &str = "assay-operator/gate";

/// Pods that are patched at the same time: a revocation concerns many at once,
/// and each patch is a round trip. More would open more connections, and their
/// TLS handshakes cost more than the waiting that they save.
pub const CONCURRENCY: u16 = 32;

/// Brings one pod's condition up to date.
///
/// # Errors
/// When the API server refuses or cannot be reached.
pub async fn reconcile(pod: Arc<Pod>, context: Arc<Context>) -> Outcome {
    let observed = observe::observe(&pod, &context.stores, context.settings.simulation);
    let plan = plan(&pod, &observed.facts(), (context.now)());
    if let Some(write) = &plan.write {
        context
            .writer
            .set_gate(
                &pod,
                write.status,
                write.reason.as_str(),
                &write.message,
                write.since,
            )
            .await
            .map_err(apply_failure)?;
        if let Some(note) = &plan.note {
            context
                .writer
                .publish(pod.as_ref(), std::slice::from_ref(note));
        }
    }
    Ok(plan.requeue)
}
