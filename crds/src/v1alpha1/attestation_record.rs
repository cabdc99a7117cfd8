//! `AttestationRecord`: what one guest proved, re-verifiable by anyone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LocalReference, TeeType};

/// Whose guest it is. Written by the verifier; owned by the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "assay.dev",
    version = "v1alpha1",
    kind = "AttestationRecord",
    namespaced,
    shortname = "ar",
    category = "assay",
    status = "AttestationRecordStatus",
    derive = "PartialEq",
    doc = "What one guest proved: the evidence, every check, and the verdict.",
    printcolumn(
        name = "Deployment",
        type_ = "string",
        json_path = ".spec.deploymentRef.name"
    ),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "TEE", type_ = "string", json_path = ".status.tee"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Verified", type_ = "date", json_path = ".status.verifiedAt"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(
        name = "Measurement",
        type_ = "string",
        json_path = ".status.measurement",
        priority = "1"
    ),
    printcolumn(
        name = "Diagnosis",
        type_ = "string",
        json_path = ".status.diagnosis.message",
        priority = "1"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct AttestationRecordSpec {
    /// The pod.
    pub pod_ref: PodReference,
    /// The node that the guest was launched on, as its instance data says.
    pub node_name: String,
    /// The ConfidentialDeployment.
    pub deployment_ref: LocalReference,
    /// The MeasuredImage that the deployment named when the guest attested.
    pub image_ref: LocalReference,
    /// The AttestationPolicy that was applied.
    pub policy_ref: LocalReference,
}

/// A pod by name and UID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodReference {
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
}

/// What the verifier found, the last time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttestationRecordStatus {
    /// The verdict.
    pub verdict: Verdict,
    /// `Accepted`, or the reason code of the first check that failed.
    pub reason: String,
    /// The TEE. `SimulatedSNP` evidence protects nothing.
    pub tee: TeeType,
    /// Root of trust: `AMD`, or `Simulated` and the digest of the configured
    /// development root.
    pub trust_domain: String,
    /// The launch digest in the report, `sha384:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement: Option<String>,
    /// Id of the reference value that it equals: a row of the MeasuredImage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_value: Option<String>,
    /// The policy that was applied, by the digest of its specification.
    pub policy_hash: String,
    /// When the evidence was appraised.
    pub verified_at: Time,
    /// When the verdict stops to hold. Absent in a rejection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Every check, in the order of appraisal.
    #[schemars(length(max = 64))]
    pub checks: Vec<CheckStatus>,
    /// What explains a launch digest that no reference value equals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// The evidence, to be verified again by other tools.
    pub evidence: EvidenceStatus,
    /// What the processor's vendor published and the appraisal used beside the
    /// evidence. Absent where the evidence brought everything along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endorsements: Option<EndorsementsStatus>,
    /// Latest verdicts, newest first, without evidence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub history: Vec<HistoryEntry>,
    /// The latest challenges that evidence of the guest answered, newest first:
    /// none of them is answered again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub used_nonces: Vec<UsedNonce>,
    /// What came of the guest's latest request for each secret of the
    /// deployment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[schemars(length(max = 32))]
    pub secrets: Vec<SecretRelease>,
    /// States: Ready, SecretsReleased.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// Every check passed.
    Accepted,
    /// At least one check failed.
    Rejected,
}

/// One check of the appraisal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckStatus {
    /// Name of the check.
    pub name: String,
    /// What came of it.
    pub result: CheckResult,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What the evidence shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CheckResult {
    /// It passed.
    Pass,
    /// It failed.
    Fail,
    /// It could not be made, because an earlier one failed.
    Skipped,
    /// The policy or the evidence's version does not have it.
    NotApplicable,
}

/// What explains an unknown launch digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// Kind of cause, CamelCase.
    #[serde(rename = "type")]
    pub type_: String,
    /// A sentence for a person.
    pub message: String,
}

/// The evidence, as it was received.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvidenceStatus {
    /// The attestation report, base64.
    pub report: String,
    /// The certificate table of the extended report, base64.
    pub certificates: String,
    /// The instance data whose SHA-256 is HOST_DATA.
    pub instance_data: String,
    /// The challenge, base64.
    pub nonce: String,
    /// The canonical runtime data whose digest is in REPORT_DATA.
    pub runtime_data: String,
    /// How that digest is made, where it is not the SHA-384 of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_by: Option<ReportBinding>,
}

/// How REPORT_DATA follows from the runtime data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReportBinding {
    /// SHA-512 of the coordinates of its key and its nonce, as COCONUT-SVSM does.
    #[serde(rename = "SVSM")]
    Svsm,
}

/// What the processor's vendor published, as it was used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndorsementsStatus {
    /// Certificates that the evidence lacked, DER in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub certificates: Vec<String>,
    /// The root's revocation list, DER in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_list: Option<String>,
    /// Its CRL number, if the root signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_list_number: Option<i64>,
}

/// An earlier verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// When the evidence was appraised.
    pub verified_at: Time,
    /// The verdict.
    pub verdict: Verdict,
    /// As in the status.
    pub reason: String,
}

/// A challenge that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsedNonce {
    /// The random part of the challenge, base64.
    pub id: String,
    /// When the challenge was issued.
    pub issued_at: Time,
}

/// What came of a request for a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRelease {
    /// Name of the entry of the deployment's `secrets`.
    pub name: String,
    /// What came of it.
    pub outcome: ReleaseOutcome,
    /// What is wrong and how to mend it. Absent once it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What came of a request for a secret by a guest that may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReleaseOutcome {
    /// It was released.
    Released,
    /// The Secret does not exist.
    SecretMissing,
    /// The Secret has no such key.
    SecretKeyMissing,
    /// The Secret is for hardware-backed guests only.
    ReleaseClassMismatch,
    /// The value is too large.
    ValueTooLarge,
}

impl ReleaseOutcome {
    /// As the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Released => "Released",
            Self::SecretMissing => "SecretMissing",
            Self::SecretKeyMissing => "SecretKeyMissing",
            Self::ReleaseClassMismatch => "ReleaseClassMismatch",
            Self::ValueTooLarge => "ValueTooLarge",
        }
    }
}
