//! ConfidentialDeployment: an ordinary Deployment whose pods launch guests, and
//! what those pods need.
//!
//! Rollouts, scaling and self-healing stay with Kubernetes. What this adds: the
//! launch specification of the measured shape, a readiness gate on every pod,
//! and the broker's right to read exactly the Secrets that are named.
//!
//! It never tears down what runs because something it depends on is missing: the
//! gate decides what takes traffic, the status says what is wrong.

mod launch;
mod observe;
mod plan;
mod pod_template;
mod status;

#[cfg(test)]
mod tests;

pub use self::plan::{check_plan, plan};
pub use self::pod_template::{ESIDS_RESOURCE, SNP_NODE_LABEL, STATUS_PORT};

use std::sync::Arc;

use assay_crds::v1alpha1::ConfidentialDeployment;

use crate::context::Context;
use crate::controllers::apply_failure;
use crate::plan::Requeue;
use crate::queue::Outcome;

/// Field manager of this controller.
pub const MANAGER: &str = "assay-operator/confidential-deployment";
/// Deployments that are reconciled at the same time.
pub const CONCURRENCY: u16 = 16;

/// Pod and ConfigMap label: the launch specification's revision.
pub use assay_crds::names::REVISION_LABEL;

/// Brings one deployment's children and status up to date.
///
/// # Errors
/// When the API server refuses or cannot be reached, or a child's name is taken.
pub async fn reconcile(deployment: Arc<ConfidentialDeployment>, context: Arc<Context>) -> Outcome {
    if deployment.metadata.deletion_timestamp.is_some() {
        // Its children go with it; what is made now would outlive it.
        return Ok(Requeue::Resync);
    }
    let observed = observe::observe(&deployment, &context);
    let mut plan = plan::plan(&deployment, &observed, (context.now)());
    #[cfg(debug_assertions)]
    check_plan(&plan);

    let applied = context.writer.apply(&plan).await;
    if let Some(error) = applied.as_ref().err().filter(|error| error.is_permanent()) {
        status::blame(&deployment, &mut plan, error, (context.now)());
    }
    if !status::is_current(&deployment, &plan.status) {
        let written = context
            .writer
            .patch_status(deployment.as_ref(), &plan.status)
            .await;
        written.map_err(apply_failure)?;
        context.writer.publish(deployment.as_ref(), &plan.events);
    }
    applied.map_err(apply_failure)?;
    if let Some(waiting_on) = &plan.waiting_on {
        tracing::debug!(waiting_on, "waiting");
    }
    Ok(plan.requeue)
}
