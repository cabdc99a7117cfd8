//! The pod that launches one guest: unprivileged, without credentials, Ready
//! only while attested.

use std::collections::BTreeMap;

use assay_crds::names;
use assay_crds::v1alpha1::{ConfidentialDeployment, TeeType};
use assay_tee::BootMethod;
use assay_workload::validate::{STATUS_PORT_NAME, Valid};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    HTTPGetAction, ImageVolumeSource, LocalObjectReference, ObjectFieldSelector, PodReadinessGate,
    PodSpec, PodTemplateSpec, Probe, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use crate::restricted::{container_security_context, mount, pod_security_context};

use super::launch::Launch;
use super::observe::Observed;

/// Port of the pod on which the launcher serves `/healthz` and `/readyz`.
pub const STATUS_PORT: u16 = 9990;
/// Extended resource of one SNP address space identifier. Kata and Node Feature
/// Discovery publish it under this name already; another name for the same
/// identifiers would book a node twice.
pub const ESIDS_RESOURCE: &str = "sev-snp.amd.com/esids";
/// Node label of nodes that can run SNP guests.
pub const SNP_NODE_LABEL: &str = "assay.dev/snp";

/// Memory of the pod besides the guest's: QEMU itself (about 100 MiB resident),
/// page tables, the launcher, and the page cache of the artifact's files.
const OVERHEAD_MIB: u32 = 256;
/// CPU that is asked for per vCPU, in thousandths. A tenth of a core is what
/// virtual machines are usually packed by: a vCPU is a thread that mostly sleeps.
/// There is no CPU limit: a vCPU that is throttled while it holds a lock of the
/// guest's kernel stalls the whole guest.
const CPU_MILLIS_PER_VCPU: u32 = 100;
/// The artifact, an OCI image, is mounted here.
const ARTIFACT_DIR: &str = "/artifact";
/// The launch specification is mounted here.
const LAUNCH_DIR: &str = "/etc/assay/launch";
/// Sockets and files of the running guest; also its IGVM file, and a changed UKI
/// of a played hostile host.
const RUN_DIR: &str = "/run/assay";
/// Most memory below [`RUN_DIR`], without the UKI of an IGVM file.
const RUN_DIR_MIB: u32 = 512;
/// Seconds for the guest to power off.
const TERMINATION_GRACE_SECONDS: i64 = 30;
/// Seconds in which the launcher must have verified the artifact and started
/// QEMU; hashing a root disk of gigabytes takes a while.
const STARTUP_SECONDS: i32 = 300;

pub(super) fn build_pod_template(
    deployment: &ConfidentialDeployment,
    valid: &Valid,
    observed: &Observed,
    launch: &Launch,
) -> PodTemplateSpec {
    let name = deployment.name_any();
    let labels = [
        (names::DEPLOYMENT_LABEL, name.as_str()),
        (names::IMAGE_LABEL, deployment.spec.image_ref.name.as_str()),
        (names::REVISION_LABEL, launch.revision.as_str()),
    ];
    let annotation = (
        names::EXPECTED_DIGEST_ANNOTATION,
        valid.expected_digest.to_string(),
    );
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(owned(labels)),
            annotations: Some(owned([annotation])),
            ..ObjectMeta::default()
        }),
        spec: Some(build_pod(deployment, valid, observed, launch)),
    }
}

fn build_pod(
    deployment: &ConfidentialDeployment,
    valid: &Valid,
    observed: &Observed,
    launch: &Launch,
) -> PodSpec {
    let scheduling = &deployment.spec.scheduling;
    let mut node_selector = scheduling.node_selector.clone();
    if deployment.spec.machine.tee == TeeType::Snp {
        node_selector.insert(SNP_NODE_LABEL.to_owned(), "true".to_owned());
    }
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        readiness_gates: Some(vec![PodReadinessGate {
            condition_type: names::ATTESTED_GATE.to_owned(),
        }]),
        termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
        security_context: Some(pod_security_context()),
        containers: vec![build_container(deployment, valid, observed)],
        volumes: Some(vec![
            Volume {
                name: "artifact".to_owned(),
                image: Some(ImageVolumeSource {
                    reference: Some(valid.artifact_reference.clone()),
                    pull_policy: Some("IfNotPresent".to_owned()),
                }),
                ..Volume::default()
            },
            Volume {
                name: "launch".to_owned(),
                config_map: Some(ConfigMapVolumeSource {
                    name: launch.config_map.name_any(),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
            Volume {
                name: "run".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    size_limit: Some(run_dir_limit(valid)),
                    ..EmptyDirVolumeSource::default()
                }),
                ..Volume::default()
            },
        ]),
        image_pull_secrets: valid
            .pull_secret
            .clone()
            .map(|name| vec![LocalObjectReference { name }]),
        node_selector: Some(node_selector).filter(|selector| !selector.is_empty()),
        tolerations: Some(scheduling.tolerations.clone()).filter(|list| !list.is_empty()),
        topology_spread_constraints: Some(scheduling.topology_spread_constraints.clone())
            .filter(|list| !list.is_empty()),
        priority_class_name: scheduling.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

fn run_dir_limit(valid: &Valid) -> Quantity {
    let uki = match valid.shape.boot {
        BootMethod::DirectKernel => 0,
        BootMethod::Igvm => valid.uki_bytes.div_ceil(1 << 20),
    };
    let uki = u32::try_from(uki).unwrap_or(u32::MAX);
    Quantity(mebibytes(RUN_DIR_MIB.saturating_add(uki)))
}

fn build_container(
    deployment: &ConfidentialDeployment,
    valid: &Valid,
    observed: &Observed,
) -> Container {
    let mut ports: Vec<ContainerPort> = deployment
        .spec
        .ports
        .iter()
        .map(|port| container_port(&port.name, port.container_port))
        .collect();
    ports.push(container_port(STATUS_PORT_NAME, STATUS_PORT));
    let ready = deployment.spec.readiness.as_ref().map_or_else(
        || status_probe("/readyz"),
        |readiness| HTTPGetAction {
            path: Some(readiness.http_get.path.clone()),
            port: IntOrString::String(readiness.http_get.port.clone()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        },
    );
    Container {
        name: "launcher".to_owned(),
        image: Some(observed.installation.launcher_image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec!["assay-launcher".to_owned()]),
        env: Some(vec![
            downward("ASSAY_POD_NAME", "metadata.name"),
            downward("ASSAY_POD_UID", "metadata.uid"),
            downward("ASSAY_NODE_NAME", "spec.nodeName"),
        ]),
        ports: Some(ports),
        resources: Some(build_resources(deployment, valid)),
        // The gate waits for the attestation; these only for the process.
        startup_probe: Some(Probe {
            http_get: Some(status_probe("/healthz")),
            period_seconds: Some(1),
            timeout_seconds: Some(5),
            failure_threshold: Some(STARTUP_SECONDS),
            ..Probe::default()
        }),
        liveness_probe: Some(Probe {
            http_get: Some(status_probe("/healthz")),
            period_seconds: Some(10),
            timeout_seconds: Some(5),
            failure_threshold: Some(6),
            ..Probe::default()
        }),
        readiness_probe: Some(Probe {
            http_get: Some(ready),
            period_seconds: Some(2),
            timeout_seconds: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        }),
        security_context: Some(container_security_context()),
        volume_mounts: Some(vec![
            mount("artifact", ARTIFACT_DIR, true),
            mount("launch", LAUNCH_DIR, true),
            mount("run", RUN_DIR, false),
        ]),
        ..Container::default()
    }
}

fn build_resources(deployment: &ConfidentialDeployment, valid: &Valid) -> ResourceRequirements {
    let memory = mebibytes(valid.memory_mib.saturating_add(OVERHEAD_MIB));
    let cpu = millis(valid.shape.vcpus.get().saturating_mul(CPU_MILLIS_PER_VCPU));
    let mut requests = quantities([("cpu", cpu), ("memory", memory.clone())]);
    let mut limits = quantities([("memory", memory)]);
    if deployment.spec.machine.tee == TeeType::Snp {
        // Of an extended resource request and limit must be equal.
        for amounts in [&mut requests, &mut limits] {
            amounts.insert(ESIDS_RESOURCE.to_owned(), Quantity("1".to_owned()));
        }
    }
    ResourceRequirements {
        requests: Some(requests),
        limits: Some(limits),
        ..ResourceRequirements::default()
    }
}

/// Written as the API server writes it back, or every comparison would differ.
fn mebibytes(mib: u32) -> String {
    if mib.is_multiple_of(1024) {
        format!("{}Gi", mib / 1024)
    } else {
        format!("{mib}Mi")
    }
}

fn millis(millis: u32) -> String {
    if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    }
}

fn quantities<const N: usize>(amounts: [(&str, String); N]) -> BTreeMap<String, Quantity> {
    amounts
        .into_iter()
        .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
        .collect()
}

fn owned<const N: usize, V: Into<String>>(pairs: [(&str, V); N]) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect()
}

fn container_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(port),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn status_probe(path: &str) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::String(STATUS_PORT_NAME.to_owned()),
        scheme: Some("HTTP".to_owned()),
        ..HTTPGetAction::default()
    }
}

fn downward(name: &str, field: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: field.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}
