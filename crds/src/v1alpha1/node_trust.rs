//! `NodeTrust`: what attested guests showed of the processor under a node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TeeType;

/// Which node. The object has its name, and goes when the Node does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "assay.dev",
    version = "v1alpha1",
    kind = "NodeTrust",
    plural = "nodetrusts",
    shortname = "nt",
    category = "assay",
    status = "NodeTrustStatus",
    derive = "PartialEq",
    doc = "What accepted guests showed of the processor under a node. The broker writes it, and finds here the certificates that a node's next guests do not bring along. No decision believes it: certificates count only if they chain to the vendor's root.",
    printcolumn(name = "Product", type_ = "string", json_path = ".status.product"),
    printcolumn(name = "TEE", type_ = "string", json_path = ".status.tee"),
    printcolumn(
        name = "SNP",
        type_ = "integer",
        json_path = ".status.tcb.reported.snp"
    ),
    printcolumn(
        name = "Microcode",
        type_ = "integer",
        json_path = ".status.tcb.reported.microcode"
    ),
    printcolumn(
        name = "CRL until",
        type_ = "string",
        json_path = ".status.revocationList.nextUpdate"
    ),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.verifiedAt"),
    printcolumn(
        name = "Chip",
        type_ = "string",
        json_path = ".status.chip",
        priority = "1"
    ),
    printcolumn(
        name = "Trust domain",
        type_ = "string",
        json_path = ".status.trustDomain",
        priority = "1"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct NodeTrustSpec {
    /// Name of the Node.
    pub node_name: String,
}

/// What the last accepted guest that showed something new showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTrustStatus {
    /// The TEE. `SimulatedSNP` protects nothing.
    pub tee: TeeType,
    /// Root of trust: `AMD`, or `Simulated` and the digest of the configured
    /// development root.
    pub trust_domain: String,
    /// The processor's product line: Milan, Genoa or Turin.
    pub product: String,
    /// SHA-256 of CHIP_ID, as `allowedChips` of a policy names it.
    pub chip: String,
    /// The versions of the platform's firmware.
    pub tcb: PlatformTcb,
    /// What endorses the chip at the reported TCB; absent where guests bring a
    /// provider's key (VLEK).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endorsement: Option<EndorsementCache>,
    /// The vendor's revocation list that was in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_list: Option<RevocationListStatus>,
    /// When a guest was accepted that showed all this for the first time. A guest
    /// that shows the same changes nothing.
    pub verified_at: Time,
    /// The AttestationRecord that this is from, which goes with its pod.
    pub record_ref: RecordReference,
}

/// The versions of a platform's firmware, as a report has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformTcb {
    /// REPORTED_TCB: what the endorsement key is derived from.
    pub reported: TcbVersion,
    /// COMMITTED_TCB: what the platform cannot go back behind.
    pub committed: TcbVersion,
    /// CURRENT_TCB: what runs.
    pub current: TcbVersion,
}

/// Security version numbers of the parts of a platform's firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcbVersion {
    /// The FMC; on Turin only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 255))]
    pub fmc: Option<u8>,
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
}

impl From<assay_tee::TcbVersion> for TcbVersion {
    fn from(version: assay_tee::TcbVersion) -> Self {
        let assay_tee::TcbVersion {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        } = version;
        Self {
            fmc,
            boot_loader: bootloader,
            tee,
            snp,
            microcode,
        }
    }
}

/// Certificates of a chip at a TCB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndorsementCache {
    /// The TCB that the certificate is for: the reported one.
    pub tcb: TcbVersion,
    /// The certificate of the VCEK, then those of its authorities as far as guests
    /// needed them, DER in base64.
    #[schemars(length(max = 3), inner(length(max = 8192)))]
    pub certificates: Vec<String>,
}

/// A revocation list, by what dates it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevocationListStatus {
    /// Its CRL number.
    pub number: i64,
    /// When the vendor made it.
    pub this_update: Time,
    /// When it ends.
    pub next_update: Time,
}

/// An AttestationRecord by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordReference {
    /// Namespace of the record.
    pub namespace: String,
    /// Name of the record: that of its pod.
    pub name: String,
}
