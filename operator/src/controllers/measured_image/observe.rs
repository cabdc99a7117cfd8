//! What is read about an image.

use std::collections::BTreeSet;
use std::sync::Arc;

use assay_crds::names;
use assay_crds::v1alpha1::measured_image::SourceType;
use assay_crds::v1alpha1::{MeasuredImage, TeeType};
use assay_launcher::spec::{LAUNCH_SPEC_KEY, LaunchSpec};
use assay_tee::cpu::CpuModel;
use assay_tee::{LaunchShape, Tee};
use assay_workload::shapes;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};

use super::build_job::{
    BuildProgress, BuildReport, Builder, ended, job_name, parse_report, pods_of,
};
use super::progress::running;
use super::rebuild::{obstacle, rebuild_job_name};
use crate::artifact::ArtifactState;
use crate::context::{Context, find};
use crate::manifest::is_controlled_by;
use crate::pull_secret::PullSecret;
use crate::queue::Failure;

/// Label that the Job controller puts on a Job's pods.
const JOB_NAME_LABEL: &str = "batch.kubernetes.io/job-name";

/// What was read.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The recipe of the build.
    pub recipe: Option<Arc<ConfigMap>>,
    /// The build.
    pub build: BuildProgress,
    /// The second build, where one is asked for.
    pub rebuild: BuildProgress,
    /// The Jobs of both.
    pub jobs: Vec<Arc<Job>>,
    /// The artifact, once its reference is known.
    pub artifact: Option<ArtifactState>,
    /// Shapes that deployments ask for or still run.
    pub requested: BTreeSet<LaunchShape>,
    /// ConfidentialDeployments that name the image.
    pub used_by: usize,
    /// The installation's builder.
    pub builder: Builder,
}

/// Reads; when an artifact has to be pulled, `when_read` is called afterwards.
pub(super) async fn observe(
    image: &MeasuredImage,
    context: &Context,
    now: Timestamp,
    when_read: impl FnOnce() + Send + 'static,
) -> Result<Observed, Failure> {
    let stores = &context.stores;
    let namespace = image.namespace().unwrap_or_default();
    let source = image.spec.source.build.as_ref();
    let job_name = source.map(|source| job_name(image, source));
    let has_artifact = image
        .status
        .as_ref()
        .is_some_and(|status| status.artifact.is_some());

    let find_job = |name: &String| find(&stores.jobs, &namespace, name);
    let first = job_name.as_ref().filter(|_| !has_artifact);
    let first = first.and_then(find_job);
    let second = source.filter(|source| source.verify_rebuild && !has_artifact);
    let second = second.map(|source| rebuild_job_name(image, source));
    let second = second.as_ref().and_then(find_job);
    let build = progress(image, first.as_deref(), &namespace, context).await?;
    let rebuild = progress(image, second.as_deref(), &namespace, context).await?;
    let secret = image.spec.pull_secret().map(|secret| PullSecret {
        namespace: namespace.clone(),
        name: secret.name.clone(),
    });
    let (requested, used_by) = requested(image, context);
    Ok(Observed {
        recipe: job_name.and_then(|name| find(&stores.config_maps, &namespace, &name)),
        artifact: artifact_reference(image, &build, &rebuild)
            .map(|reference| context.artifacts.state(&reference, secret, now, when_read)),
        build,
        rebuild,
        jobs: first.into_iter().chain(second).collect(),
        requested,
        used_by,
        builder: Builder {
            image: context.settings.builder_image.clone(),
            plain_http: context.settings.plain_http_registry.clone(),
        },
    })
}

async fn progress(
    image: &MeasuredImage,
    job: Option<&Job>,
    namespace: &str,
    context: &Context,
) -> Result<BuildProgress, Failure> {
    let Some(job) = job else {
        return Ok(BuildProgress::Absent);
    };
    if !is_controlled_by(
        &job.metadata,
        image.metadata.uid.as_deref().unwrap_or_default(),
    ) {
        return Ok(BuildProgress::Foreign);
    }
    if job.metadata.deletion_timestamp.is_some() {
        return Ok(BuildProgress::Ending);
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("{JOB_NAME_LABEL}={}", job.name_any()));
    let pods = pods.list(&selector).await.map_err(|source| Failure {
        reason: "ListBuildPods",
        source: Box::new(source),
    })?;
    let pods = pods_of(job, pods.items);
    Ok(match ended(job) {
        None => BuildProgress::Running(running(&pods).await),
        Some(succeeded) => BuildProgress::Ended(parse_report(succeeded, job, &pods)),
    })
}

/// Shapes of deployments that name the image, and of revisions that still run:
/// a launch ConfigMap lives as long as a ReplicaSet or pod needs it.
fn requested(image: &MeasuredImage, context: &Context) -> (BTreeSet<LaunchShape>, usize) {
    let (namespace, name) = (image.namespace(), image.name_any());
    let stores = &context.stores;
    let allowed = |shape: &LaunchShape| {
        let consent = shape.tee != Tee::SimulatedSnp || context.settings.simulation;
        // Of an unknown model the deployment that asks for it is told.
        consent && CpuModel::by_name(&shape.cpu_model).is_ok()
    };
    let deployments = stores.deployments.state_filter(|deployment| {
        deployment.namespace() == namespace && deployment.spec.image_ref.name == name
    });
    let launches = stores.config_maps.state_filter(|map| {
        map.namespace() == namespace
            && map.labels().contains_key(names::REVISION_LABEL)
            && map.labels().get(names::IMAGE_LABEL) == Some(&name)
    });
    let asked = deployments.iter().filter_map(|deployment| {
        let machine = &deployment.spec.machine;
        let tee: TeeType = machine.tee;
        shapes::shape(
            tee.into(),
            machine.boot.into(),
            machine.vcpus,
            &machine.cpu_model,
        )
    });
    let running = launches.iter().filter_map(|map| {
        let document = map.data.as_ref()?.get(LAUNCH_SPEC_KEY)?;
        serde_json::from_str::<LaunchSpec>(document)
            .ok()
            .map(|launch| launch.shape)
    });
    (
        asked.chain(running).filter(allowed).collect(),
        deployments.len(),
    )
}

/// The reference of an image's artifact, as far as it is known: given, verified
/// before, or reported by the build, and by the second where one is asked for.
pub(super) fn artifact_reference(
    image: &MeasuredImage,
    build: &BuildProgress,
    rebuild: &BuildProgress,
) -> Option<String> {
    match image.spec.source.type_ {
        SourceType::Oci => image
            .spec
            .source
            .oci
            .as_ref()
            .map(|oci| oci.reference.clone()),
        SourceType::Build => {
            let source = image.spec.source.build.as_ref()?;
            let verified = image
                .status
                .as_ref()
                .and_then(|status| status.artifact.as_ref());
            let reported = match build {
                BuildProgress::Ended(BuildReport::Built(reference)) => {
                    let obstacle = obstacle(image, source, reference, rebuild);
                    obstacle.is_none().then_some(reference)
                }
                _ => None,
            };
            let reference = verified.map(|artifact| &artifact.reference).or(reported)?;
            let (repository, _) = reference.split_once('@')?;
            (repository == source.output.repository).then(|| reference.clone())
        }
    }
}
