//! `ConfidentialDeployment`: replicas of a measured image as guests in ordinary
//! pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BootMethod, LocalReference, TeeType};
use crate::conditions::reasons;

/// Replicas of a measured image, each a guest in a pod of its own. A pod is
/// Ready only while its guest's latest attestation is accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "assay.dev",
    version = "v1alpha1",
    kind = "ConfidentialDeployment",
    namespaced,
    shortname = "cdep",
    category = "assay",
    status = "ConfidentialDeploymentStatus",
    derive = "PartialEq",
    doc = "Replicas of a measured image, each a confidential guest in a pod of its own.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name is longer than 63 characters, but it becomes a label and the name of a Service: create the ConfidentialDeployment under a shorter name"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector",
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.summary.ready"),
    printcolumn(
        name = "Attested",
        type_ = "string",
        json_path = ".status.summary.attested"
    ),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.imageRef.name"),
    printcolumn(name = "TEE", type_ = "string", json_path = ".spec.machine.tee"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ConfidentialDeploymentSpec {
    /// Number of guests. Leave it out where an autoscaler owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0").message("replicas is negative: say 0 to stop every guest, or leave it out where an autoscaler owns it"))]
    pub replicas: Option<i32>,
    /// The MeasuredImage to run.
    #[x_kube(validation = Rule::new("self.name.size() <= 63").message("imageRef.name is longer than 63 characters, but it becomes a label: use a MeasuredImage with a shorter name"))]
    pub image_ref: LocalReference,
    /// The AttestationPolicy that guests must satisfy.
    pub policy_ref: LocalReference,
    /// The machine of each guest. Every choice here is measured or enforced.
    pub machine: Machine,
    /// Ports of the guest that are reachable at the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[schemars(length(max = 16))]
    pub ports: Vec<Port>,
    /// A Service for the guests' ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSpec>,
    /// What must answer before a guest takes traffic, in addition to its
    /// attestation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
    /// Secrets that the broker releases to attested guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[schemars(length(max = 32))]
    pub secrets: Vec<SecretMount>,
    /// The guest's serial console.
    #[serde(default)]
    pub console: ConsoleSpec,
    /// Where pods may run.
    #[serde(default)]
    pub scheduling: Scheduling,
}

/// The machine of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.simulation) || self.tee == 'SimulatedSNP'").message("machine.simulation is for tee SimulatedSNP alone"),
    validation = Rule::new("!has(self.boot) || self.boot != 'IGVM' || !has(self.simulation) || !has(self.simulation.fault) || self.simulation.fault != 'TamperedKernel'").message("machine.simulation.fault TamperedKernel is about the hashes table, which a guest with boot IGVM has none of: say TamperedKernelRehashed"),
)]
pub struct Machine {
    /// Number of vCPUs. Measured.
    #[schemars(range(min = 1, max = 512))]
    pub vcpus: u32,
    /// Memory of the guest, such as `512Mi`. The pod asks for this and what
    /// QEMU itself needs.
    pub memory: Quantity,
    /// CPU model by QEMU's name, such as `EPYC-v4`. Measured; `host` is refused
    /// because its digest depends on the node.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self != 'host' && self != 'max'").message("machine.cpuModel must name a model, such as EPYC-v4: the launch digest depends on it"))]
    pub cpu_model: String,
    /// The trusted execution environment.
    pub tee: TeeType,
    /// How the guest's firmware gets the UKI. Measured: each way has launch digests
    /// of its own.
    #[serde(default, skip_serializing_if = "BootMethod::is_direct_kernel")]
    pub boot: BootMethod,
    /// Options of a simulated launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulation: Option<SimulationSpec>,
}

/// Options of a simulated launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulationSpec {
    /// A hostile host to play.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<SimulatedFault>,
}

/// A hostile host, played by the launcher of a simulated guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SimulatedFault {
    /// One byte of the UKI is changed under the original hashes table: the
    /// firmware refuses to boot it.
    TamperedKernel,
    /// One byte of the UKI is changed and the hashes table recomputed, or with
    /// boot IGVM the file made of it: the guest boots, and its launch digest
    /// differs.
    TamperedKernelRehashed,
}

/// A TCP port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Name, for Service and probes.
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Port inside the guest, and of the pod. 9990 is the launcher's own.
    #[schemars(range(min = 1, max = 65535))]
    #[x_kube(validation = Rule::new("self != 9990").message("port 9990 of the pod is the launcher's status port"))]
    pub container_port: u16,
}

/// A Service for the guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Its ports.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub ports: Vec<ServicePortSpec>,
}

/// A port of the Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortSpec {
    /// Name of an entry of `ports`.
    #[schemars(length(min = 1, max = 15))]
    pub name: String,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// What must answer before a guest takes traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// An HTTP GET that must answer with a status below 400.
    pub http_get: HttpGet,
}

/// An HTTP GET.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Path, such as `/healthz`.
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/"))]
    pub path: String,
    /// Name of an entry of `ports`.
    pub port: String,
}

/// A Secret's value that becomes a file of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretMount {
    /// Name of the resource, as the policy's `release` names it.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The value.
    pub secret_ref: SecretKeyReference,
    /// Where it appears in the guest.
    pub target: SecretTarget,
}

/// A value of a Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the value.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A file of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretTarget {
    /// Absolute path below `/run/secrets`, a file system in memory.
    #[schemars(
        length(max = 256),
        regex(pattern = "^/run/secrets/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")
    )]
    #[x_kube(validation = Rule::new("!self.split('/').exists(p, p == '..' || p == '.')").message("target.path must not contain . or .. segments"))]
    pub path: String,
}

/// The guest's serial console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsoleSpec {
    /// What of it reaches the pod's log, which the host can read.
    #[serde(default)]
    pub mode: ConsoleMode,
}

/// What of the console reaches the pod's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConsoleMode {
    /// Nothing.
    #[default]
    None,
    /// Everything. For development.
    Full,
}

/// Where pods may run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// How pods spread over the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
}

/// What is known of the guests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfidentialDeploymentStatus {
    /// Generation of the specification that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Pods of the newest revision.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Pods that are Ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods whose attestation is accepted and fresh.
    #[serde(default)]
    pub attested_replicas: i32,
    /// The same as `ready/wanted`, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<ReplicaSummary>,
    /// Label selector of the pods, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The launch digest that guests of the newest revision must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_digest: Option<String>,
    /// When the oldest attestation of a counted pod was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_attestation: Option<Time>,
    /// States: Ready, Attested, SecretsReleased, Available, HardwareBacked,
    /// Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// Replicas as people read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSummary {
    /// `ready/wanted`.
    pub ready: String,
    /// `attested/wanted`.
    pub attested: String,
}

reasons! {
    /// Why a ConfidentialDeployment is as it is.
    ConfidentialDeploymentReason {
        /// The MeasuredImage does not exist.
        ImageMissing,
        /// The MeasuredImage has no digest for this shape yet.
        ImageNotReady,
        /// The MeasuredImage is revoked.
        ImageRevoked,
        /// The MeasuredImage is in a form that this version does not read.
        ImageInvalid,
        /// The AttestationPolicy does not exist.
        PolicyMissing,
        /// The AttestationPolicy is in a form that this version does not read.
        PolicyInvalid,
        /// The policy does not accept the machine's TEE.
        TeeNotAllowed,
        /// This installation refuses simulated guests.
        SimulationDisabled,
        /// The specification contradicts itself; the message names the field.
        SpecInvalid,
        /// The broker has not published its certificate authority yet.
        BrokerNotReady,
        /// Pods are being made or replaced.
        Progressing,
        /// Guests have not attested yet.
        AwaitingAttestation,
        /// A guest's attestation was rejected; the message says which and why.
        AttestationRejected,
        /// Attestations have expired.
        AttestationExpired,
        /// Every guest is attested and fresh.
        AllReplicasFresh,
        /// A Secret that guests need does not exist; the message names it.
        SecretMissing,
        /// A Secret that guests need lacks the key; the message names both.
        SecretKeyMissing,
        /// A Secret is for hardware-backed guests only, and these are simulated.
        ReleaseClassMismatch,
        /// A Secret's value is too large to be released.
        ValueTooLarge,
        /// Guests have not fetched all their secrets yet.
        AwaitingRelease,
        /// Every guest has its secrets.
        AllSecretsReleased,
        /// Every guest is Ready.
        AllReplicasReady,
        /// Not every guest answers yet.
        ReplicasNotReady,
        /// A pod cannot start its guest, or its guest does not boot; the message
        /// says which and where to look.
        PodFailing,
        /// The rollout has made no progress for too long.
        ProgressDeadlineExceeded,
        /// Real hardware protects the guests.
        Hardware,
        /// The guests are simulated: nothing protects them.
        Simulated,
        /// An object that the deployment needs exists and is somebody else's.
        ChildConflict,
        /// The API server refuses what the deployment needs.
        ApplyFailed,
        /// Nothing is left to do.
        UpToDate,
    }
}
