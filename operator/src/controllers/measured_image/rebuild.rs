//! The second build of an artifact, by which the first is checked.
//!
//! Both Jobs start together and have the same recipe; the second prefers another
//! node, pulls everything itself, and pushes nothing. The artifact is used once both name the same digest.

use assay_crds::names;
use assay_crds::v1alpha1::MeasuredImage;
use assay_crds::v1alpha1::measured_image::{BuildSource, MeasuredImageReason as Reason};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    Affinity, PodAffinityTerm, PodAntiAffinity, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;

use super::build_job::{
    BuildProgress, BuildReport, Builder, build_job, job_name, settings_annotation,
};
use super::observe::Observed;
use super::progress::{sentence, shown};
use super::status::Blocked;

/// Well-known label of a node's name.
const NODE: &str = "kubernetes.io/hostname";

/// Name of the Job that builds an image's artifact again.
pub(super) fn rebuild_job_name(image: &MeasuredImage, source: &BuildSource) -> String {
    // As long as the first's, which has the whole of the identity.
    let name = job_name(image, source);
    match name.rsplit_once("-build-") {
        Some((prefix, identity)) => format!("{prefix}-again-{identity}"),
        None => format!("{name}-again"),
    }
}

pub(super) fn rebuild_job(image: &MeasuredImage, source: &BuildSource, builder: &Builder) -> Job {
    let mut alone = image.clone();
    if let Some(settings) = &mut alone.spec.build_job {
        settings.cache = None;
    }
    let mut job = build_job(&alone, source, builder);
    job.metadata.annotations = Some(settings_annotation(image));
    job.metadata.name = Some(rebuild_job_name(image, source));
    if let Some(spec) = job
        .spec
        .as_mut()
        .and_then(|spec| spec.template.spec.as_mut())
    {
        for container in &mut spec.containers {
            for arg in container.args.iter_mut().flatten() {
                if arg == "--push" {
                    "--digest-only".clone_into(arg);
                }
            }
        }
        spec.affinity = Some(Affinity {
            pod_anti_affinity: Some(PodAntiAffinity {
                preferred_during_scheduling_ignored_during_execution: Some(vec![
                    WeightedPodAffinityTerm {
                        weight: 100,
                        pod_affinity_term: PodAffinityTerm {
                            label_selector: Some(LabelSelector {
                                match_labels: Some(
                                    [(names::IMAGE_LABEL.to_owned(), image.name_any())].into(),
                                ),
                                ..LabelSelector::default()
                            }),
                            topology_key: NODE.to_owned(),
                            ..PodAffinityTerm::default()
                        },
                    },
                ]),
                ..PodAntiAffinity::default()
            }),
            ..Affinity::default()
        });
    }
    job
}

/// What keeps an artifact that `source` built from being used: nothing where no
/// second build is asked for, or where it gave the same.
pub(super) fn obstacle(
    image: &MeasuredImage,
    source: &BuildSource,
    reference: &str,
    rebuild: &BuildProgress,
) -> Option<Blocked> {
    if !source.verify_rebuild {
        return None;
    }
    let (first, job) = (job_name(image, source), rebuild_job_name(image, source));
    let (reason, stalled, message) = match rebuild {
        BuildProgress::Absent => (
            Reason::VerifyingRebuild,
            false,
            format!("Job {job} is being made"),
        ),
        BuildProgress::Running(running) => match &running.blocked {
            None => (
                Reason::VerifyingRebuild,
                false,
                format!(
                    "Job {job} builds the artifact again: {}",
                    sentence(&shown(image, running))
                ),
            ),
            Some(why) => (Reason::BuildBlocked, false, format!("Job {job}: {why}")),
        },
        BuildProgress::Ending => (
            Reason::VerifyingRebuild,
            false,
            format!("Job {job} is being ended"),
        ),
        BuildProgress::Foreign => (
            Reason::VerifyingRebuild,
            false,
            format!("Job {job} of an earlier MeasuredImage is being deleted"),
        ),
        BuildProgress::Ended(BuildReport::Failed(message)) => {
            (Reason::RebuildFailed, true, message.clone())
        }
        BuildProgress::Ended(BuildReport::Built(again)) if again == reference => return None,
        BuildProgress::Ended(BuildReport::Built(again)) => (
            Reason::NotReproducible,
            true,
            format!(
                "Job {first} built {reference}, and Job {job} {again} from the same recipe: the \
                 artifact is not used. Compare them with `assay verify-image {reference}`, and \
                 delete both Jobs to build again"
            ),
        ),
    };
    Some(Blocked {
        reason,
        message,
        stalled,
    })
}

/// [`obstacle`] of what was observed, once the first build ended well.
pub(super) fn obstacle_of(
    image: &MeasuredImage,
    source: &BuildSource,
    observed: &Observed,
) -> Option<Blocked> {
    match &observed.build {
        BuildProgress::Ended(BuildReport::Built(reference)) => {
            obstacle(image, source, reference, &observed.rebuild)
        }
        _ => None,
    }
}
