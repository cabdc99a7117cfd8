//! MeasuredImage: from a source to an artifact, and from an artifact to launch
//! digests.
//!
//! Building is a Job without any credentials of the cluster. What it reports is
//! believed only as a name: the operator pulls the artifact itself and recomputes
//! every hash from its bytes. Measuring takes milliseconds and happens in the
//! reconciliation.

mod build_job;
mod observe;
mod plan;
mod progress;
mod rebuild;
mod status;
mod validate;

#[cfg(test)]
mod tests;

pub use self::build_job::{BuildProgress, BuildReport, Builder};
pub use self::plan::plan;
pub use self::progress::Running;

use std::sync::Arc;

use assay_crds::v1alpha1::MeasuredImage;
use kube::runtime::reflector::ObjectRef;

use crate::context::Context;
use crate::controllers::apply_failure;
use crate::plan::Requeue;
use crate::queue::{Outcome, Queue};

/// Field manager of this controller.
pub const MANAGER: &str = "assay-operator/measured-image";
/// Images that are reconciled at the same time.
pub const CONCURRENCY: u16 = 8;

/// Brings one image's Job and status up to date.
///
/// # Errors
/// When the API server refuses or cannot be reached, or a child's name is taken.
pub async fn reconcile(
    image: Arc<MeasuredImage>,
    context: Arc<Context>,
    queue: Queue<MeasuredImage>,
) -> Outcome {
    if image.metadata.deletion_timestamp.is_some() {
        // Its children go with it; what is made now would outlive it.
        return Ok(Requeue::Resync);
    }
    let now = (context.now)();
    let again = ObjectRef::from_obj(image.as_ref());
    let observed = observe::observe(&image, &context, now, move || queue.push(again)).await?;
    let mut plan = plan(&image, &observed, now);

    let applied = context.writer.apply(&plan).await;
    if let Some(error) = applied.as_ref().err().filter(|error| error.is_permanent()) {
        status::blame(&image, &mut plan, error, now);
    }
    if !status::is_current(&image, &plan.status) {
        let written = context
            .writer
            .patch_status(image.as_ref(), &plan.status)
            .await;
        written.map_err(apply_failure)?;
        context.writer.publish(image.as_ref(), &plan.events);
    }
    applied.map_err(apply_failure)?;
    if let Some(waiting_on) = &plan.waiting_on {
        tracing::debug!(waiting_on, "waiting");
    }
    Ok(plan.requeue)
}
