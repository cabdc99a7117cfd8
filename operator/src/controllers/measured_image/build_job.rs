//! The Job that builds an artifact, and what it reports.

use std::collections::BTreeMap;

use assay_crds::names;
use assay_crds::v1alpha1::MeasuredImage;
use assay_crds::v1alpha1::measured_image::BuildSource;
use assay_image::recipe::{EXIT_NO_CREDENTIALS, EXIT_UNBUILDABLE};
use assay_tee::Sha256Digest;
use assay_tee::canonical::encode_canonical;
use assay_workload::recipe::build_recipe;
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, KeyToPath, Pod, PodSpec,
    PodTemplateSpec, ResourceRequirements, SecretVolumeSource, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use serde::Deserialize;

use crate::manifest::child_metadata;
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
    /// The Job runs.
    Running,
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

pub(super) fn build_job(
    image: &MeasuredImage,
    source: &BuildSource,
    builder_image: &str,
    plain_http: &[String],
) -> Job {
    let name = job_name(image, source);
    let image_name = image.name_any();
    let labels = [(names::IMAGE_LABEL, image_name.as_str())];
    Job {
        metadata: child_metadata(image, name.clone(), &labels),
        spec: Some(JobSpec {
            backoff_limit: Some(BACKOFF_LIMIT),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            // Neither sources nor Secrets mend themselves.
            pod_failure_policy: Some(PodFailurePolicy {
                rules: vec![PodFailurePolicyRule {
                    action: "FailJob".to_owned(),
                    on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                        container_name: Some(CONTAINER.to_owned()),
                        operator: "In".to_owned(),
                        values: [EXIT_UNBUILDABLE, EXIT_NO_CREDENTIALS]
                            .map(i32::from)
                            .into(),
                    }),
                    on_pod_conditions: None,
                }],
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some([(names::IMAGE_LABEL.to_owned(), image_name.clone())].into()),
                    ..ObjectMeta::default()
                }),
                spec: Some(build_pod(&name, source, builder_image, plain_http)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
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
    source: &BuildSource,
    builder_image: &str,
    plain_http: &[String],
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
        &format!("oci://{builder_image}"),
        "--result-file",
        RESULT_PATH,
    ]
    .map(str::to_owned)
    .into();
    for host in plain_http {
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
    if let Some(secret) = &source.output.secret_ref {
        args.extend([
            "--docker-config".to_owned(),
            format!("{DOCKER_DIR}/config.json"),
        ]);
        mounts.push(mount("docker", DOCKER_DIR, true));
        volumes.push(Volume {
            name: "docker".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.name.clone()),
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
        });
    }
    let amounts = |pairs: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
            .collect()
    };
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("Never".to_owned()),
        security_context: Some(pod_security_context()),
        containers: vec![Container {
            name: CONTAINER.to_owned(),
            image: Some(builder_image.to_owned()),
            image_pull_policy: Some("IfNotPresent".to_owned()),
            command: Some(vec!["assay".to_owned()]),
            args: Some(args),
            termination_message_path: Some(RESULT_PATH.to_owned()),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            resources: Some(ResourceRequirements {
                requests: Some(amounts(&[("cpu", "250m"), ("memory", "256Mi")])),
                limits: Some(amounts(&[("memory", memory_limit(source))])),
                ..ResourceRequirements::default()
            }),
            security_context: Some(container_security_context()),
            volume_mounts: Some(mounts),
            ..Container::default()
        }],
        volumes: Some(volumes),
        ..PodSpec::default()
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

/// What the pods of a Job that ended said; the youngest that says something.
pub(super) fn parse_report(succeeded: bool, job: &Job, pods: &[Pod]) -> BuildReport {
    let mut said: Vec<(Option<jiff::Timestamp>, i32, &str)> = pods
        .iter()
        .flat_map(|pod| {
            pod.status
                .iter()
                .flat_map(|status| status.container_statuses.iter().flatten())
        })
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref())
        .map(|end| {
            let finished = end.finished_at.as_ref().map(|time| time.0);
            (
                finished,
                end.exit_code,
                end.message.as_deref().unwrap_or_default().trim(),
            )
        })
        .filter(|(_, code, _)| (*code == 0) == succeeded)
        .collect();
    said.sort();
    let last = said.last().map(|(_, _, message)| *message);
    let unbuildable = said
        .last()
        .is_some_and(|(_, code, _)| *code == i32::from(EXIT_UNBUILDABLE));
    let name = job.name_any();
    if succeeded {
        let result = last.and_then(|message| serde_json::from_str::<Words>(message).ok());
        return match result.and_then(|result| result.reference) {
            Some(reference) => BuildReport::Built(reference),
            None => BuildReport::Failed(format!(
                "Job {name} is complete, but its result is lost; delete the Job to build again"
            )),
        };
    }
    let words = match last {
        Some(message) => match serde_json::from_str::<Words>(message)
            .ok()
            .and_then(|r| r.error)
        {
            Some(error) => error,
            // Without a result these are the last lines of the log.
            None if !message.is_empty() => message.to_owned(),
            None => "the builder said nothing".to_owned(),
        },
        None => job
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .find(|condition| condition.type_ == "Failed")
            .and_then(|condition| condition.message.clone())
            .unwrap_or_else(|| "no pod of the Job is left".to_owned()),
    };
    BuildReport::Failed(if unbuildable {
        format!("{words}; spec.source is immutable: create another MeasuredImage with other inputs")
    } else {
        format!("{words}; delete Job {name} to build again")
    })
}
