//! The Job that builds an artifact, and what it reports.

use std::collections::BTreeMap;

use assay_crds::names;
use assay_crds::v1alpha1::MeasuredImage;
use assay_crds::v1alpha1::measured_image::{BuildCache, BuildJob, BuildSource};
use assay_image::recipe::{EXIT_NO_CACHE, EXIT_NO_CREDENTIALS, EXIT_UNBUILDABLE};
use assay_tee::Sha256Digest;
use assay_tee::canonical::encode_canonical;
use assay_workload::recipe::build_recipe;
use assay_workload::validate::bytes_of;
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, KeyToPath,
    PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, PodTemplateSpec,
    ResourceRequirements, SecretVolumeSource, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::progress::{PROGRESS_PORT, Running};
use crate::manifest::{child_metadata, is_controlled_by};
use crate::restricted::{container_security_context, mount, pod_security_context};

/// Longest prefix of the image's name in the Job's: with `-build-` and eight
/// digits it stays within 63 characters, which a Job's pods are labelled with.
const MAX_PREFIX_LEN: usize = 48;
/// Tries after the first: registries fail sometimes.
const BACKOFF_LIMIT: i32 = 2;
/// Seconds for all tries. The largest images build in minutes.
const DEADLINE_SECONDS: i64 = 3600;
/// The only container of the Job's pod.
const CONTAINER: &str = "build";
/// The guest agent in the builder's image.
const AGENT_PATH: &str = "/usr/lib/assay/assay-agent";
const RECIPE_DIR: &str = "/etc/assay/recipe";
const RECIPE_KEY: &str = "recipe.json";
const DOCKER_DIR: &str = "/etc/assay/docker";
/// Credentials to pull with, where they are others than to push with.
const PULL_DIR: &str = "/etc/assay/pull";
/// The volume that keeps images.
const CACHE_DIR: &str = "/cache";
/// Annotation of a Job with the digest of what a MeasuredImage says of its builds
/// besides what is built.
const SETTINGS_ANNOTATION: &str = "assay.dev/build-settings";
/// The node's disk, for images while they are worked on.
const SCRATCH_DIR: &str = "/scratch";
/// Where the kubelet reads a container's last words from.
const RESULT_PATH: &str = "/dev/termination-log";

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildProgress {
    /// There is no Job.
    Absent,
    /// A Job of that name is of an earlier MeasuredImage, and about to go.
    Foreign,
    /// The Job is being deleted.
    Ending,
    /// The Job runs.
    Running(Running),
    /// The Job ended, and this is what it said.
    Ended(BuildReport),
}

/// What a Job that ended said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildReport {
    /// The artifact's reference, by digest.
    Built(String),
    /// Why there is none.
    Failed(String),
}

/// The builder's last words (`assay build --result-file`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Words {
    reference: Option<String>,
    error: Option<String>,
}

/// Name of an image's Job and recipe ConfigMap: the same for the same source.
pub(super) fn job_name(image: &MeasuredImage, source: &BuildSource) -> String {
    let name = image.name_any();
    // A source has string keys only, so it always has a canonical form.
    let identity = encode_canonical(&(&name, source)).unwrap_or_default();
    let digest = Sha256Digest::of(&identity).to_hex();
    let prefix: String = name
        .replace('.', "-")
        .chars()
        .take(MAX_PREFIX_LEN)
        .collect();
    let digest = digest.get(..8).unwrap_or_default();
    format!("{}-build-{digest}", prefix.trim_end_matches('-'))
}

pub(super) fn build_recipe_config_map(image: &MeasuredImage, source: &BuildSource) -> ConfigMap {
    let recipe = encode_canonical(&build_recipe(source)).unwrap_or_default();
    let recipe = String::from_utf8(recipe).unwrap_or_default();
    ConfigMap {
        metadata: child_metadata(image, job_name(image, source), &[]),
        data: Some([(RECIPE_KEY.to_owned(), recipe)].into()),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// The installation's builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builder {
    /// Image of the builder.
    pub image: String,
    /// Registry hosts that speak plain HTTP.
    pub plain_http: Vec<String>,
}

/// Says of a Job under which settings it builds.
pub(super) fn settings_annotation(image: &MeasuredImage) -> BTreeMap<String, String> {
    BTreeMap::from([(SETTINGS_ANNOTATION.to_owned(), settings(image))])
}

/// Digest of what an image says of its builds besides what is built.
fn settings(image: &MeasuredImage) -> String {
    let job = image.spec.build_job.clone().unwrap_or_default();
    let job = BuildJob {
        suspend: false,
        ..job
    };
    // Strings and numbers always have a canonical form.
    let settings = encode_canonical(&(job, &image.spec.pull_secret_ref)).unwrap_or_default();
    let digest = Sha256Digest::of(&settings).to_hex();
    digest.get(..16).unwrap_or_default().to_owned()
}

/// Whether a Job runs, or ran, under other settings than the image has now. Of a Job
/// of an earlier version of this program that cannot be said.
pub(super) fn is_outdated(image: &MeasuredImage, job: &Job) -> bool {
    job.annotations()
        .get(SETTINGS_ANNOTATION)
        .is_some_and(|other| *other != settings(image))
}

pub(super) fn build_job(image: &MeasuredImage, source: &BuildSource, builder: &Builder) -> Job {
    let name = job_name(image, source);
    let image_name = image.name_any();
    let labels = [(names::IMAGE_LABEL, image_name.as_str())];
    let mut metadata = child_metadata(image, name.clone(), &labels);
    metadata.annotations = Some(settings_annotation(image));
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(BACKOFF_LIMIT),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            pod_failure_policy: Some(failure_policy()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some([(names::IMAGE_LABEL.to_owned(), image_name.clone())].into()),
                    ..ObjectMeta::default()
                }),
                spec: Some(build_pod(&name, image, source, builder)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

fn failure_policy() -> PodFailurePolicy {
    let disrupted = PodFailurePolicyOnPodConditionsPattern {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
    };
    let hopeless = PodFailurePolicyOnExitCodesRequirement {
        container_name: Some(CONTAINER.to_owned()),
        operator: "In".to_owned(),
        values: [EXIT_UNBUILDABLE, EXIT_NO_CREDENTIALS, EXIT_NO_CACHE]
            .map(i32::from)
            .into(),
    };
    PodFailurePolicy {
        rules: vec![
            // A node that is drained is no fault of the build's.
            PodFailurePolicyRule {
                action: "Ignore".to_owned(),
                on_exit_codes: None,
                on_pod_conditions: Some(vec![disrupted]),
            },
            // Neither sources nor Secrets nor volumes mend themselves.
            PodFailurePolicyRule {
                action: "FailJob".to_owned(),
                on_exit_codes: Some(hopeless),
                on_pod_conditions: None,
            },
        ],
    }
}

/// Images are on the scratch disk. In memory are the hash tree, the UKI, and the
/// files that were compressed here.
fn memory_limit(source: &BuildSource) -> &'static str {
    if source.compression.is_none() {
        "1Gi"
    } else {
        "4Gi"
    }
}

fn build_pod(
    config_map: &str,
    image: &MeasuredImage,
    source: &BuildSource,
    builder: &Builder,
) -> PodSpec {
    let mut args: Vec<String> = [
        "build",
        "--recipe",
        &format!("{RECIPE_DIR}/{RECIPE_KEY}"),
        "--agent",
        AGENT_PATH,
        "--push",
        "--scratch",
        SCRATCH_DIR,
        "--builder-id",
        &format!("oci://{}", builder.image),
        "--result-file",
        RESULT_PATH,
        "--progress-port",
        &PROGRESS_PORT.to_string(),
    ]
    .map(str::to_owned)
    .into();
    for host in &builder.plain_http {
        args.extend(["--plain-http".to_owned(), host.clone()]);
    }
    let mut volumes = vec![
        Volume {
            name: "recipe".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: config_map.to_owned(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "scratch".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
    ];
    let mut mounts = vec![
        mount("recipe", RECIPE_DIR, true),
        mount("scratch", SCRATCH_DIR, false),
    ];
    let secrets = [
        (&source.output.secret_ref, "docker", DOCKER_DIR),
        (&image.spec.pull_secret_ref, "pull", PULL_DIR),
    ];
    for (secret, volume, directory) in secrets {
        if let Some(secret) = secret {
            let option = match volume {
                "pull" => "--pull-docker-config",
                _ => "--docker-config",
            };
            args.extend([option.to_owned(), format!("{directory}/config.json")]);
            mounts.push(mount(volume, directory, true));
            volumes.push(credentials(volume, &secret.name));
        }
    }
    let job = image.spec.build_job.clone().unwrap_or_default();
    if let Some(cache) = &job.cache {
        args.extend(cache_args(cache));
        mounts.push(mount("cache", CACHE_DIR, false));
        volumes.push(Volume {
            name: "cache".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: cache.claim_name.clone(),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("Never".to_owned()),
        security_context: Some(PodSecurityContext {
            // A cache has many files, which have their group since the first build.
            fs_group_change_policy: job.cache.is_some().then(|| "OnRootMismatch".to_owned()),
            ..pod_security_context()
        }),
        containers: vec![Container {
            name: CONTAINER.to_owned(),
            image: Some(builder.image.clone()),
            image_pull_policy: Some("IfNotPresent".to_owned()),
            command: Some(vec!["assay".to_owned()]),
            args: Some(args),
            termination_message_path: Some(RESULT_PATH.to_owned()),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            resources: Some(resources(source, &job)),
            security_context: Some(container_security_context()),
            volume_mounts: Some(mounts),
            ..Container::default()
        }],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn cache_args(cache: &BuildCache) -> Vec<String> {
    let mut args = vec!["--cache".to_owned(), CACHE_DIR.to_owned()];
    let limit = cache.size_limit.as_ref();
    if let Some(limit) = limit.and_then(|limit| bytes_of(&limit.0)) {
        args.extend(["--cache-limit".to_owned(), limit.to_string()]);
    }
    args
}

/// A volume with the registry credentials of a Secret.
fn credentials(volume: &str, secret: &str) -> Volume {
    Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            // The kubelet would wait for a missing one without a word; the
            // builder ends and says so.
            optional: Some(true),
            items: Some(vec![KeyToPath {
                key: ".dockerconfigjson".to_owned(),
                path: "config.json".to_owned(),
                mode: None,
            }]),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn resources(source: &BuildSource, job: &BuildJob) -> ResourceRequirements {
    let asked = job.resources.clone().unwrap_or_default();
    let amounts = |defaults: &[(&str, &str)], asked: BTreeMap<String, Quantity>| {
        let defaults = defaults
            .iter()
            .map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned())));
        defaults.chain(asked).collect::<BTreeMap<_, _>>()
    };
    ResourceRequirements {
        requests: Some(amounts(
            &[("cpu", "250m"), ("memory", "256Mi")],
            asked.requests,
        )),
        limits: Some(amounts(&[("memory", memory_limit(source))], asked.limits)),
        ..ResourceRequirements::default()
    }
}

/// Whether a Job ended, and how.
pub(super) fn ended(job: &Job) -> Option<bool> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let holds = |type_: &str| {
        conditions
            .iter()
            .any(|c| c.type_ == type_ && c.status == "True")
    };
    if holds("Complete") {
        Some(true)
    } else if holds("Failed") {
        Some(false)
    } else {
        None
    }
}

/// The pods of this very Job, and not of an earlier one of its name.
pub(super) fn pods_of(job: &Job, mut pods: Vec<Pod>) -> Vec<Pod> {
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    pods.retain(|pod| is_controlled_by(&pod.metadata, uid));
    pods
}

/// What a container said at its end.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Said<'a> {
    finished: Option<jiff::Timestamp>,
    exit_code: i32,
    reason: &'a str,
    message: &'a str,
}

fn said(pods: &[Pod]) -> impl Iterator<Item = Said<'_>> {
    let statuses = pods.iter().filter_map(|pod| pod.status.as_ref());
    let containers = statuses.flat_map(|status| status.container_statuses.iter().flatten());
    containers
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref())
        .map(|end| Said {
            finished: end.finished_at.as_ref().map(|time| time.0),
            exit_code: end.exit_code,
            reason: end.reason.as_deref().unwrap_or_default(),
            message: end.message.as_deref().unwrap_or_default().trim(),
        })
}

/// What the pods of a Job that ended said; the youngest that says something.
pub(super) fn parse_report(succeeded: bool, job: &Job, pods: &[Pod]) -> BuildReport {
    let last = said(pods)
        .filter(|said| (said.exit_code == 0) == succeeded)
        .max();
    let name = job.name_any();
    if succeeded {
        let words = last.and_then(|said| serde_json::from_str::<Words>(said.message).ok());
        return match words.and_then(|words| words.reference) {
            Some(reference) => BuildReport::Built(reference),
            None => BuildReport::Failed(format!(
                "Job {name} is complete, but its result is lost; delete the Job to build again"
            )),
        };
    }
    let again = format!("delete Job {name} to build again");
    BuildReport::Failed(match last {
        Some(said) if said.reason == "OOMKilled" => {
            "the builder ran out of memory; set more in spec.buildJob.resources.limits.memory, \
             which starts another build"
                .to_owned()
        }
        Some(said) if said.exit_code == i32::from(EXIT_UNBUILDABLE) => format!(
            "{}; spec.source is immutable: create another MeasuredImage with other inputs",
            last_words(&said)
        ),
        Some(said) => format!("{}; {again}", last_words(&said)),
        None => format!("{}; {again}", without_words(job, pods)),
    })
}

fn last_words(said: &Said<'_>) -> String {
    let words = serde_json::from_str::<Words>(said.message).ok();
    match words.and_then(|words| words.error) {
        Some(error) => error,
        // Without a result these are the last lines of the log.
        None if !said.message.is_empty() => format!(
            "the builder ended with status {} and these lines:\n{}\n",
            said.exit_code, said.message
        ),
        None => format!(
            "the builder ended with status {} and said nothing",
            said.exit_code
        ),
    }
}

/// Why a Job failed none of whose containers ended: a pod was evicted, or the time is
/// up.
fn without_words(job: &Job, pods: &[Pod]) -> String {
    let of_pod = pods.iter().find_map(|pod| {
        let status = pod.status.as_ref()?;
        let reason = status.reason.as_ref()?;
        Some(format!(
            "its pod is gone: {reason}: {}",
            status.message.as_deref().unwrap_or_default()
        ))
    });
    let mut conditions = job
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let of_job = conditions
        .find(|condition| condition.type_ == "Failed")
        .and_then(|condition| condition.message.clone());
    of_pod
        .or(of_job)
        .unwrap_or_else(|| "no pod of the Job is left".to_owned())
}
