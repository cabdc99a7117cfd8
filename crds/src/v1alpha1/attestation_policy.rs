//! `AttestationPolicy`: what evidence is acceptable, how fresh it must be, and
//! what is released on it.

use assay_tee::Sha256Digest;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TeeType;
use super::measured_image::LifecycleState;
use crate::conditions::reasons;
use crate::duration::Duration;

/// What evidence is acceptable. What is not named is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "assay.dev",
    version = "v1alpha1",
    kind = "AttestationPolicy",
    namespaced,
    plural = "attestationpolicies",
    shortname = "ap",
    category = "assay",
    status = "AttestationPolicyStatus",
    derive = "PartialEq",
    doc = "What evidence is acceptable, how fresh it must be, and what is released on it.",
    printcolumn(name = "TEEs", type_ = "string", json_path = ".spec.tees"),
    printcolumn(
        name = "Max-Age",
        type_ = "string",
        json_path = ".spec.freshness.maxAge"
    ),
    printcolumn(
        name = "Bound",
        type_ = "integer",
        json_path = ".status.boundDeployments",
        description = "ConfidentialDeployments that use this policy"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct AttestationPolicySpec {
    /// Trusted execution environments to accept. `SimulatedSNP` also needs the
    /// operator's consent, and protects nothing.
    #[schemars(length(max = 4))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.size() > 0").message("tees names no TEE, so no evidence would be accepted: name at least one, such as SNP")
    )]
    pub tees: Vec<TeeType>,
    /// What SEV-SNP evidence must show.
    pub snp: SnpPolicy,
    /// How often guests attest, and how long an accepted attestation holds.
    #[serde(default)]
    pub freshness: Freshness,
    /// What is released to an accepted guest. Nothing else is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["resource".to_owned()]))]
    #[schemars(length(max = 64))]
    pub release: Vec<ReleaseRule>,
}

impl AttestationPolicySpec {
    /// Digest of the canonical specification: what instance data and records
    /// name the policy by.
    ///
    /// # Errors
    /// Never for a value of this type; the encoder's error is passed on.
    pub fn hash(&self) -> Result<Sha256Digest, EncodeCanonicalError> {
        Ok(Sha256Digest::of(&encode_canonical(self)?))
    }
}

/// What SEV-SNP evidence must show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnpPolicy {
    /// Processor products to accept, each with its minimum TCB. A product
    /// without an entry is refused.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub products: Vec<ProductPolicy>,
    /// Which of the report's TCB versions must reach the minimum.
    #[serde(default = "default_tcb_against")]
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tcb_against: Vec<TcbKind>,
    /// Privilege levels that a report may come from, exactly.
    #[serde(default = "default_vmpls")]
    #[schemars(length(min = 1, max = 4), inner(range(min = 0, max = 3)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub vmpls: Vec<u32>,
    /// What the guest policy may allow.
    #[serde(default)]
    pub guest_policy: GuestPolicyRules,
    /// What the platform must show.
    #[serde(default)]
    pub platform: PlatformRules,
    /// Revocation lists of the processor's vendor.
    #[serde(default)]
    pub crl: CrlRules,
}

fn default_tcb_against() -> Vec<TcbKind> {
    vec![TcbKind::Reported, TcbKind::Committed, TcbKind::Launch]
}

fn default_vmpls() -> Vec<u32> {
    vec![0]
}

/// A processor product and the oldest firmware that is accepted on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProductPolicy {
    /// The product.
    pub name: Product,
    /// Every component must be at least this.
    #[serde(rename = "minimumTCB")]
    pub minimum_tcb: MinimumTcb,
}

/// Processor products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004.
    Genoa,
    /// EPYC 9005.
    Turin,
}

/// Security versions of the platform's firmware, compared one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MinimumTcb {
    /// The boot loader.
    #[schemars(range(max = 255))]
    pub boot_loader: u8,
    /// The secure processor's operating system.
    #[schemars(range(max = 255))]
    pub tee: u8,
    /// The SNP firmware.
    #[schemars(range(max = 255))]
    pub snp: u8,
    /// The microcode.
    #[schemars(range(max = 255))]
    pub microcode: u8,
    /// The FMC; on Turin only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 255))]
    pub fmc: Option<u8>,
}

/// The TCB versions of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TcbKind {
    /// REPORTED_TCB, which the endorsement key is derived from.
    Reported,
    /// COMMITTED_TCB, below which the platform cannot be rolled back.
    Committed,
    /// LAUNCH_TCB, when the guest was launched.
    Launch,
    /// CURRENT_TCB.
    Current,
}

/// Whether something is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Permission {
    /// It may be.
    Allowed,
    /// It must not be.
    Forbidden,
}

/// What the guest policy may allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestPolicyRules {
    /// Debugging by the hypervisor: it can read the guest's memory.
    #[serde(default = "forbidden")]
    pub debug: Permission,
    /// A migration agent.
    #[serde(default = "forbidden")]
    pub migration_agent: Permission,
    /// Simultaneous multithreading.
    #[serde(default = "allowed")]
    pub smt: Permission,
}

impl Default for GuestPolicyRules {
    fn default() -> Self {
        Self {
            debug: forbidden(),
            migration_agent: forbidden(),
            smt: allowed(),
        }
    }
}

fn forbidden() -> Permission {
    Permission::Forbidden
}

fn allowed() -> Permission {
    Permission::Allowed
}

/// Whether a platform property is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Requirement {
    /// It must be there.
    #[default]
    Require,
    /// It does not matter.
    Any,
}

/// What the platform must show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformRules {
    /// ALIAS_CHECK_COMPLETE: memory aliasing was ruled out at boot
    /// (CVE-2024-21944).
    #[serde(default)]
    pub alias_check: Requirement,
}

/// Revocation lists of the processor's vendor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CrlRules {
    /// Whether a fresh list is needed.
    #[serde(default)]
    pub mode: CrlMode,
}

/// Whether a fresh revocation list is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CrlMode {
    /// Without a fresh list, evidence is refused.
    #[default]
    Require,
    /// Lists are not consulted. Every record says so.
    NotRequired,
}

/// How often guests attest, and how long it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.interval) < duration(self.maxAge)").message("freshness.interval must be shorter than freshness.maxAge"))]
pub struct Freshness {
    /// Guests attest again after this time.
    #[serde(default = "default_interval")]
    pub interval: Duration,
    /// An accepted attestation that is older than this no longer holds: the pod
    /// leaves its Services.
    #[serde(default = "default_max_age")]
    pub max_age: Duration,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            interval: default_interval(),
            max_age: default_max_age(),
        }
    }
}

fn default_interval() -> Duration {
    Duration::from_secs(600)
}

fn default_max_age() -> Duration {
    Duration::from_secs(1800)
}

/// Something that is released to accepted guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseRule {
    /// Name of an entry of a ConfidentialDeployment's `secrets`.
    #[schemars(length(min = 1, max = 63))]
    pub resource: String,
    /// States of the guest's image in which it is released.
    #[serde(default = "default_image_states")]
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("!self.exists(s, s == 'Revoked')").message("nothing is released to a revoked image")
    )]
    pub image_states: Vec<LifecycleState>,
}

fn default_image_states() -> Vec<LifecycleState> {
    vec![LifecycleState::Active, LifecycleState::Deprecated]
}

/// What is known of the policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttestationPolicyStatus {
    /// Generation of the specification that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Digest of the canonical specification, `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_hash: Option<String>,
    /// ConfidentialDeployments that use this policy.
    #[serde(default)]
    pub bound_deployments: i32,
    /// States: Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

reasons! {
    /// Why an AttestationPolicy is as it is.
    AttestationPolicyReason {
        /// It is in force.
        InForce,
        /// It names the simulated TEE, which this installation refuses.
        SimulationDisabled,
    }
}
