//! What an image needs next.

use std::time::Duration;

use assay_crds::v1alpha1::measured_image::{BuildSource, MeasuredImageReason as Reason};
use assay_crds::v1alpha1::{MeasuredImage, MeasuredImageStatus};
use jiff::Timestamp;

use super::build_job::{
    BuildProgress, BuildReport, build_job, build_recipe_config_map, ended, is_outdated, job_name,
};
use super::observe::Observed;
use super::progress::{sentence, shown};
use super::rebuild::{self, rebuild_job};
use super::status::{self, Blocked};
use super::validate::validate;
use crate::artifact::ArtifactState;
use crate::manifest::{Orphan, is_controlled_by, write_for};
use crate::plan::{Plan, Requeue};

/// How often a build that runs is asked how far it is.
const POLL: Duration = Duration::from_secs(5);

/// Plans one image.
pub fn plan(
    image: &MeasuredImage,
    observed: &Observed,
    now: Timestamp,
) -> Plan<MeasuredImageStatus> {
    let mut writes = Vec::new();
    let deletes = unwanted_jobs(image, observed);
    let blocked = match validate(image) {
        Err(message) => Some(Blocked {
            reason: Reason::SpecInvalid,
            message,
            stalled: true,
        }),
        Ok(()) => ended_early(image, observed, &deletes).or_else(|| blocked(image, observed)),
    };
    if let (
        true,
        Some(source),
        Some(Blocked {
            reason: Reason::Building | Reason::BuildBlocked | Reason::VerifyingRebuild,
            ..
        }),
    ) = (deletes.is_empty(), &image.spec.source.build, &blocked)
    {
        let recipe = build_recipe_config_map(image, source);
        writes.extend(write_for(&recipe, observed.recipe.as_deref(), None));
        if observed.build == BuildProgress::Absent {
            // A Job's template cannot change; one that exists is left alone.
            let job = build_job(image, source, &observed.builder);
            writes.extend(write_for(&job, None, None));
        }
        if source.verify_rebuild && observed.rebuild == BuildProgress::Absent {
            let job = rebuild_job(image, source, &observed.builder);
            writes.extend(write_for(&job, None, None));
        }
    }
    let running = |build: &BuildProgress| matches!(build, BuildProgress::Running(_));
    let requeue = match &observed.artifact {
        Some(ArtifactState::Failed { retry_at, .. }) => Requeue::At(*retry_at),
        None if running(&observed.build) || running(&observed.rebuild) => {
            Requeue::At(now.saturating_add(POLL).unwrap_or(now))
        }
        _ => Requeue::Resync,
    };
    let waiting_on = blocked.as_ref().map(|blocked| blocked.message.clone());
    let (status, events) = status::status(image, observed, blocked, now);
    Plan {
        writes,
        deletes,
        status,
        events,
        requeue,
        waiting_on,
    }
}

/// Jobs to end: all that run where nothing is to be built, and those that run or
/// failed under other settings. What was built is used.
fn unwanted_jobs(image: &MeasuredImage, observed: &Observed) -> Vec<Orphan> {
    let uid = image.metadata.uid.as_deref().unwrap_or_default();
    let jobs = observed.jobs.iter().filter(|job| {
        is_controlled_by(&job.metadata, uid) && job.metadata.deletion_timestamp.is_none()
    });
    let unwanted = jobs.filter(|job| match ended(job) {
        Some(true) => false,
        Some(false) => is_outdated(image, job),
        None => is_suspended(image) || is_outdated(image, job),
    });
    unwanted.map(|job| Orphan::of(job.as_ref())).collect()
}

fn is_suspended(image: &MeasuredImage) -> bool {
    image.spec.build_job.as_ref().is_some_and(|job| job.suspend)
}

/// Why a build that would be under way is not.
fn ended_early(image: &MeasuredImage, observed: &Observed, ended: &[Orphan]) -> Option<Blocked> {
    let source = image.spec.source.build.as_ref()?;
    let is_built = |status: &MeasuredImageStatus| status.artifact.is_some();
    let verified = image.status.as_ref().is_some_and(is_built);
    if !verified && is_suspended(image) && is_pending(source, observed) {
        return Some(Blocked {
            reason: Reason::BuildSuspended,
            message: "spec.buildJob.suspend is true: nothing is built until it is false".to_owned(),
            stalled: true,
        });
    }
    let names: Vec<&str> = ended.iter().map(|job| job.name.as_str()).collect();
    (!names.is_empty()).then(|| Blocked {
        reason: Reason::Building,
        message: format!(
            "spec.buildJob or spec.pullSecretRef has changed: Job {} is ended, and another made",
            names.join(" and Job ")
        ),
        stalled: false,
    })
}

/// Whether a Job runs, or would be made.
fn is_pending(source: &BuildSource, observed: &Observed) -> bool {
    let pending = |build: &BuildProgress| {
        matches!(
            build,
            BuildProgress::Absent | BuildProgress::Ending | BuildProgress::Running(_)
        )
    };
    let built = matches!(observed.build, BuildProgress::Ended(BuildReport::Built(_)));
    pending(&observed.build) || (built && source.verify_rebuild && pending(&observed.rebuild))
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
            BuildProgress::Ending => return building(format!("Job {job} is being ended")),
            BuildProgress::Running(running) => {
                return match &running.blocked {
                    None => {
                        let sentence = sentence(&shown(image, running));
                        building(format!("Job {job}: {sentence}"))
                    }
                    Some(why) => Some(Blocked {
                        reason: Reason::BuildBlocked,
                        message: format!("Job {job}: {why}"),
                        stalled: false,
                    }),
                };
            }
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
