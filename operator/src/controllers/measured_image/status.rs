//! What is said about an image.

use assay_crds::conditions::ConditionState;
use assay_crds::v1alpha1::measured_image::{
    ArtifactStatus, BuildPhase, BuildStatus, DigestCounts, DigestState, LaunchDigestRow,
    LifecycleState, MeasuredImageReason as Reason,
};
use assay_crds::v1alpha1::{MeasuredImage, MeasuredImageStatus};
use assay_tee::LaunchShape;
use assay_tee::cpu::CpuModel;
use assay_workload::shapes::{MAX_ROWS, firmware_name, row, row_id, row_state, wanted};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::build_job::BuildProgress;
use super::observe::Observed;
use super::progress::{sentence, shown};
use crate::apply::ApplyError;
use crate::artifact::ArtifactState;
use crate::causes::chain;
use crate::controllers::{self, FailureReasons, own_conditions, same_conditions, state};
use crate::plan::{Note, Plan, Severity, transitions};

/// Conditions whose changes are events.
const NEWSWORTHY: [&str; 1] = ["Ready"];

/// What keeps an image from being ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocked {
    /// The cause.
    pub(super) reason: Reason,
    /// What is going on, or what to do about it.
    pub(super) message: String,
    /// Whether only a person can help.
    pub(super) stalled: bool,
}

pub(super) fn status(
    image: &MeasuredImage,
    observed: &Observed,
    blocked: Option<Blocked>,
    now: Timestamp,
) -> (MeasuredImageStatus, Vec<Note>) {
    let before = image.status.clone().unwrap_or_default();
    let (artifact, measurement_inputs) = match &observed.artifact {
        Some(ArtifactState::Measured(artifact)) => {
            (Some(artifact.status().clone()), artifact.inputs_status())
        }
        _ => (before.artifact.clone(), before.measurement_inputs.clone()),
    };
    let (rows, unmeasured) = match &artifact {
        Some(artifact) => rows(image, observed, artifact, &before.launch_digests),
        None => (Vec::new(), None),
    };
    let accepted = rows
        .iter()
        .filter(|row| row.state == DigestState::Accepted)
        .count();
    let digests = DigestCounts {
        accepted: i32::try_from(accepted).unwrap_or(i32::MAX),
        total: i32::try_from(rows.len()).unwrap_or(i32::MAX),
        summary: format!("{accepted}/{}", rows.len()),
    };
    let states = conditions(
        image,
        artifact.as_ref(),
        blocked,
        unknown_model(image).as_ref(),
        unmeasured,
        rows.len(),
    );
    let conditions = own_conditions(&before.conditions, &states, image.metadata.generation, now);
    let mut events = transitions(&before.conditions, &conditions, &NEWSWORTHY, severity);
    let build = build(image, observed);
    events.extend(phase_note(before.build, build));
    let status = MeasuredImageStatus {
        observed_generation: image.metadata.generation,
        artifact,
        measurement_inputs,
        launch_digests: rows,
        build,
        digests: Some(digests),
        used_by: i32::try_from(observed.used_by).unwrap_or(i32::MAX),
        conditions,
    };
    (status, events)
}

/// How far the build is, and where that is done, the one that checks it.
fn build(image: &MeasuredImage, observed: &Observed) -> Option<BuildStatus> {
    [&observed.build, &observed.rebuild]
        .into_iter()
        .find_map(|build| match build {
            BuildProgress::Running(running) => Some(shown(image, running)),
            _ => None,
        })
}

/// News of a build that has got further.
fn phase_note(before: Option<BuildStatus>, now: Option<BuildStatus>) -> Option<Note> {
    let now = now.filter(|now| now.phase > BuildPhase::Running)?;
    let is_news = before.is_none_or(|before| before.phase != now.phase);
    is_news.then(|| Note {
        warning: false,
        reason: Reason::Building.as_str().to_owned(),
        action: "Build".to_owned(),
        message: sentence(&BuildStatus::at(now.phase)),
    })
}

/// A listed CPU model that cannot be measured, whatever the artifact is.
fn unknown_model(image: &MeasuredImage) -> Option<Blocked> {
    let models = &image.spec.shapes.cpu_models;
    let error = models
        .iter()
        .find_map(|model| CpuModel::by_name(model).err())?;
    Some(Blocked {
        reason: Reason::UnknownCpuModel,
        message: format!("spec.shapes.cpuModels: {error}"),
        stalled: true,
    })
}

/// The rows of known CPU models, and what keeps some of them from being there.
///
/// While an artifact that was verified before is read again, as after a restart,
/// its rows stay: what they say is bound to its digest.
fn rows(
    image: &MeasuredImage,
    observed: &Observed,
    artifact: &ArtifactStatus,
    before: &[LaunchDigestRow],
) -> (Vec<LaunchDigestRow>, Option<Blocked>) {
    let lifecycle = image.spec.lifecycle.state;
    let firmware = firmware_name(&artifact.firmware.sha256);
    let mut shapes = wanted(&image.spec.shapes, &observed.requested);
    let mut problem = None;
    shapes.retain(|shape| CpuModel::by_name(&shape.cpu_model).is_ok());
    if shapes.len() > MAX_ROWS {
        let message = format!(
            "{} shapes are asked for, at most {MAX_ROWS} have room in the status: list fewer in \
             spec.shapes",
            shapes.len()
        );
        problem = Some(Blocked {
            reason: Reason::MeasureFailed,
            message,
            stalled: true,
        });
        shapes.truncate(MAX_ROWS);
    }
    let mut rows = Vec::with_capacity(shapes.len());
    for shape in &shapes {
        match digest_row(observed, &firmware, shape, before, lifecycle) {
            Ok(row) => rows.push(row),
            Err(why) => problem = problem.or(Some(why)),
        }
    }
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    (rows, problem)
}

fn digest_row(
    observed: &Observed,
    firmware: &str,
    shape: &LaunchShape,
    before: &[LaunchDigestRow],
    lifecycle: LifecycleState,
) -> Result<LaunchDigestRow, Blocked> {
    let (reason, message) = match &observed.artifact {
        Some(ArtifactState::Measured(artifact)) => match artifact.launch_digest(shape) {
            Ok(digest) => return Ok(row(firmware, shape, digest, lifecycle)),
            Err(error) => {
                return Err(Blocked {
                    reason: Reason::MeasureFailed,
                    message: chain(&error),
                    stalled: true,
                });
            }
        },
        Some(ArtifactState::Failed {
            reason, message, ..
        }) => (*reason, message.clone()),
        Some(ArtifactState::Pulling) | None => {
            (Reason::Pulling, "the artifact is being read".to_owned())
        }
    };
    let id = row_id(firmware, shape);
    match before.iter().find(|row| row.id == id) {
        Some(row) => Ok(LaunchDigestRow {
            state: row_state(lifecycle),
            ..row.clone()
        }),
        None => Err(Blocked {
            reason,
            message,
            stalled: false,
        }),
    }
}

fn conditions(
    image: &MeasuredImage,
    artifact: Option<&ArtifactStatus>,
    blocked: Option<Blocked>,
    unknown_model: Option<&Blocked>,
    unmeasured: Option<Blocked>,
    rows: usize,
) -> Vec<ConditionState> {
    let artifact_ready = match (&blocked, artifact) {
        (Some(why), _) if why.reason != Reason::SpecInvalid || artifact.is_none() => state(
            "ArtifactReady",
            false,
            why.reason.as_str(),
            why.message.clone(),
        ),
        (_, Some(artifact)) => state(
            "ArtifactReady",
            true,
            Reason::ArtifactVerified.as_str(),
            format!("every hash of {} was recomputed", artifact.reference),
        ),
        (_, None) => state(
            "ArtifactReady",
            false,
            Reason::Pulling.as_str(),
            "the artifact is not known yet",
        ),
    };
    let reproducible = reproducible(image, artifact, blocked.as_ref());
    let obstacle = blocked.or(unknown_model.cloned()).or(unmeasured);
    // No artifact mends the list of models, so there is no waiting for one.
    let measured = match unknown_model.or(obstacle.as_ref()) {
        None if rows == 0 => state(
            "Measured",
            true,
            Reason::DigestsComputed.as_str(),
            "no shape is asked for: name some in spec.shapes or use the image",
        ),
        None => state(
            "Measured",
            true,
            Reason::DigestsComputed.as_str(),
            format!("launch digests computed: {rows}"),
        ),
        Some(why) => state("Measured", false, why.reason.as_str(), why.message.clone()),
    };
    let revoked = (image.spec.lifecycle.state == LifecycleState::Revoked).then(|| Blocked {
        reason: Reason::Revoked,
        message: image
            .spec
            .lifecycle
            .reason
            .clone()
            .unwrap_or_else(|| "spec.lifecycle.state is Revoked".to_owned()),
        stalled: true,
    });
    let ready = match revoked.as_ref().or(obstacle.as_ref()) {
        Some(why) => state("Ready", false, why.reason.as_str(), why.message.clone()),
        None => state(
            "Ready",
            true,
            Reason::Published.as_str(),
            format!("launch digests published: {rows}"),
        ),
    };
    let why = revoked.or(obstacle);
    let mut all = vec![
        ready,
        artifact_ready,
        measured,
        abnormal("Reconciling", why.as_ref().filter(|why| !why.stalled)),
        abnormal("Stalled", why.as_ref().filter(|why| why.stalled)),
    ];
    all.extend(reproducible);
    all
}

/// Whether two builds gave one artifact, where that is asked for. An artifact gets
/// into the status no other way.
fn reproducible(
    image: &MeasuredImage,
    artifact: Option<&ArtifactStatus>,
    blocked: Option<&Blocked>,
) -> Option<ConditionState> {
    let source = image.spec.source.build.as_ref()?;
    if !source.verify_rebuild {
        return None;
    }
    Some(match (artifact, blocked) {
        (Some(artifact), _) => state(
            "Reproducible",
            true,
            Reason::Reproduced.as_str(),
            format!("two builds gave {}", artifact.reference),
        ),
        (None, Some(why)) => state(
            "Reproducible",
            false,
            why.reason.as_str(),
            why.message.clone(),
        ),
        (None, None) => state(
            "Reproducible",
            false,
            Reason::Pulling.as_str(),
            "the artifact is being read",
        ),
    })
}

/// A condition that is True when something is out of the ordinary (kstatus).
fn abnormal(type_: &'static str, why: Option<&Blocked>) -> ConditionState {
    match why {
        Some(why) => state(type_, true, why.reason.as_str(), why.message.clone()),
        None => state(type_, false, Reason::UpToDate.as_str(), ""),
    }
}

/// Building is good to know, a revocation and every obstacle should be looked
/// at.
fn severity(ready: &Condition) -> Severity {
    let under_way = [
        Reason::Building,
        Reason::BuildSuspended,
        Reason::VerifyingRebuild,
    ]
    .map(Reason::as_str);
    if ready.reason == Reason::Pulling.as_str() {
        Severity::Quiet
    } else if ready.status == "True" || under_way.contains(&ready.reason.as_str()) {
        Severity::Normal
    } else {
        Severity::Warning
    }
}

/// Puts a failure that only a person can mend into the status.
pub(super) fn blame(
    image: &MeasuredImage,
    plan: &mut Plan<MeasuredImageStatus>,
    error: &ApplyError,
    now: Timestamp,
) {
    const REASONS: FailureReasons = FailureReasons {
        conflict: Reason::ChildConflict.as_str(),
        failed: Reason::ApplyFailed.as_str(),
        up_to_date: Reason::UpToDate.as_str(),
    };
    let status = image.status.as_ref();
    let before = status.map_or(&[][..], |status| &status.conditions);
    let generation = image.metadata.generation;
    let planned = &mut plan.status.conditions;
    controllers::blame(planned, before, &REASONS, error, generation, now);
    plan.events = transitions(before, planned, &NEWSWORTHY, severity);
}

/// Whether the image has this status already.
pub(super) fn is_current(image: &MeasuredImage, next: &MeasuredImageStatus) -> bool {
    image.status.as_ref().is_some_and(|status| {
        let bare = |status: &MeasuredImageStatus| MeasuredImageStatus {
            conditions: Vec::new(),
            ..status.clone()
        };
        same_conditions(&status.conditions, &next.conditions) && bare(status) == bare(next)
    })
}
