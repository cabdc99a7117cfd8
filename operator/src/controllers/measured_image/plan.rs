//! What an image needs next.

use assay_crds::v1alpha1::measured_image::MeasuredImageReason as Reason;
use assay_crds::v1alpha1::{MeasuredImage, MeasuredImageStatus};
use jiff::Timestamp;

use super::build_job::{BuildProgress, BuildReport, build_job, build_recipe_config_map, job_name};
use super::observe::Observed;
use super::rebuild::{self, rebuild_job};
use super::status::{self, Blocked};
use super::validate::validate;
use crate::artifact::ArtifactState;
use crate::manifest::write_for;
use crate::plan::{Plan, Requeue};

/// Plans one image.
pub fn plan(
    image: &MeasuredImage,
    observed: &Observed,
    now: Timestamp,
) -> Plan<MeasuredImageStatus> {
    let mut writes = Vec::new();
    let blocked = match validate(image) {
        Err(message) => Some(Blocked {
            reason: Reason::SpecInvalid,
            message,
            stalled: true,
        }),
        Ok(()) => blocked(image, observed),
    };
    if let (
        Some(source),
        Some(Blocked {
            reason: Reason::Building | Reason::VerifyingRebuild,
            ..
        }),
    ) = (&image.spec.source.build, &blocked)
    {
        let recipe = build_recipe_config_map(image, source);
        writes.extend(write_for(&recipe, observed.recipe.as_deref(), None));
        if observed.build == BuildProgress::Absent {
            // A Job's template cannot change; one that exists is left alone.
            let job = build_job(image, source, &observed.builder_image, &observed.plain_http);
            writes.extend(write_for(&job, None, None));
        }
        if source.verify_rebuild && observed.rebuild == BuildProgress::Absent {
            let job = rebuild_job(image, source, &observed.builder_image, &observed.plain_http);
            writes.extend(write_for(&job, None, None));
        }
    }
    let requeue = match &observed.artifact {
        Some(ArtifactState::Failed { retry_at, .. }) => Requeue::At(*retry_at),
        _ => Requeue::Resync,
    };
    let waiting_on = blocked.as_ref().map(|blocked| blocked.message.clone());
    let (status, events) = status::status(image, observed, blocked, now);
    Plan {
        writes,
        deletes: Vec::new(),
        status,
        events,
        requeue,
        waiting_on,
    }
}

/// What keeps the artifact from being known, if anything.
fn blocked(image: &MeasuredImage, observed: &Observed) -> Option<Blocked> {
    let verified = image
        .status
        .as_ref()
        .is_some_and(|status| status.artifact.is_some());
    if let (Some(source), false) = (&image.spec.source.build, verified) {
        let job = job_name(image, source);
        let building = |message: String| {
            Some(Blocked {
                reason: Reason::Building,
                message,
                stalled: false,
            })
        };
        match &observed.build {
            BuildProgress::Absent => return building(format!("Job {job} is being made")),
            BuildProgress::Running => return building(format!("Job {job} is running")),
            BuildProgress::Foreign => {
                return Some(Blocked {
                    reason: Reason::Pulling,
                    message: format!("Job {job} of an earlier MeasuredImage is being deleted"),
                    stalled: false,
                });
            }
            BuildProgress::Ended(BuildReport::Failed(message)) => {
                return Some(Blocked {
                    reason: Reason::BuildFailed,
                    message: message.clone(),
                    stalled: true,
                });
            }
            BuildProgress::Ended(BuildReport::Built(reference)) => {
                if let Some(obstacle) = rebuild::obstacle_of(image, source, observed) {
                    return Some(obstacle);
                }
                if observed.artifact.is_none() {
                    return Some(Blocked {
                        reason: Reason::ArtifactInvalid,
                        message: format!(
                            "Job {job} reports {reference}, which is not by digest in \
                             {repository}; delete the Job to build again",
                            repository = source.output.repository
                        ),
                        stalled: true,
                    });
                }
            }
        }
    }
    match &observed.artifact {
        Some(ArtifactState::Failed {
            reason, message, ..
        }) if !verified || *reason == Reason::ArtifactInvalid => {
            let stalled = *reason == Reason::ArtifactInvalid;
            Some(Blocked {
                reason: *reason,
                message: message.clone(),
                stalled,
            })
        }
        Some(ArtifactState::Pulling) if !verified => Some(Blocked {
            reason: Reason::Pulling,
            message: "the artifact is being read".to_owned(),
            stalled: false,
        }),
        _ => None,
    }
}
