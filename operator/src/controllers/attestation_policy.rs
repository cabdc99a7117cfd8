//! AttestationPolicy: its hash, and who uses it. The broker appraises by it.

mod observe;
mod plan;

use std::sync::Arc;

use assay_crds::v1alpha1::AttestationPolicy;

use crate::context::Context;
use crate::controllers::apply_failure;
use crate::queue::Outcome;

/// Field manager of this controller.
pub const MANAGER: &str = "assay-operator/attestation-policy";
/// Policies that are reconciled at the same time.
pub const CONCURRENCY: u16 = 4;

/// Brings one policy's status up to date.
///
/// # Errors
/// When the API server refuses or cannot be reached.
pub async fn reconcile(policy: Arc<AttestationPolicy>, context: Arc<Context>) -> Outcome {
    let observed = observe::observe(&policy, &context.stores, context.settings.simulation);
    let plan = plan::plan(&policy, &observed, (context.now)());
    if !plan::is_current(&policy, &plan.status) {
        context
            .writer
            .patch_status(policy.as_ref(), &plan.status)
            .await
            .map_err(apply_failure)?;
        context.writer.publish(policy.as_ref(), &plan.events);
    }
    Ok(plan.requeue)
}
