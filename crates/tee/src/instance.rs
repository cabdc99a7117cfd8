//! Instance data: what one guest is told about itself by its host.
//!
//! The launcher writes it as canonical JSON and passes it by fw_cfg; its
//! SHA-256 is HOST_DATA, so the processor binds it into every report without
//! changing the launch digest. It is unmeasured: the guest must refuse a
//! document that its own report does not bind, and the verifier must compare
//! what it claims with what it knows.

use serde::{Deserialize, Serialize};

use crate::Sha256Digest;
use crate::canonical::{EncodeCanonicalError, encode_canonical};

/// Name of the fw_cfg item that carries the document.
pub const INSTANCE_FW_CFG_NAME: &str = "opt/dev.assay/instance";

/// Directory below which released resources may be placed.
pub const RESOURCE_ROOT: &str = "/run/secrets";

/// What one guest is told about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceData {
    /// Version of this document: [`InstanceData::VERSION`].
    pub version: u32,
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the ConfidentialDeployment.
    pub deployment: String,
    /// The pod that runs the guest.
    pub pod: PodIdentity,
    /// Name of the node.
    pub node: String,
    /// SHA-256 of the canonical AttestationPolicy specification.
    pub policy_hash: Sha256Digest,
    /// The verifier to attest to.
    pub verifier: VerifierEndpoint,
    /// Network configuration of the guest's only interface.
    pub network: Network,
    /// Resources to ask for once attested.
    pub resources: Vec<ResourceRequest>,
    /// Seconds between attestations.
    pub attestation_interval_seconds: u32,
}

impl InstanceData {
    /// The version that this crate reads and writes.
    pub const VERSION: u32 = 1;

    /// The canonical bytes whose digest is HOST_DATA.
    ///
    /// # Errors
    /// Never for a value of this type; the encoder's error is passed on.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeCanonicalError> {
        encode_canonical(self)
    }

    /// HOST_DATA for a document as it was received, byte for byte.
    pub fn host_data(document: &[u8]) -> Sha256Digest {
        Sha256Digest::of(document)
    }
}

/// A pod by name and UID.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodIdentity {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// Where and how to reach the verifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifierEndpoint {
    /// Base URL; its host is the name that the certificate must have.
    pub url: String,
    /// Socket addresses (`ip:port`) to connect to, tried in order. The guest
    /// resolves no names before it is attested.
    pub addresses: Vec<String>,
    /// PEM of the certificate authorities that the verifier's certificate must
    /// chain to; no other root is trusted.
    pub ca: String,
}

/// Static network configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// IPv4 address with prefix length, such as `10.0.2.15/24`.
    pub address: String,
    /// IPv4 default gateway.
    pub gateway: String,
    /// Name servers.
    pub nameservers: Vec<String>,
    /// Host name of the guest.
    pub hostname: String,
}

/// A resource that the guest asks the broker for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceRequest {
    /// Name within the deployment: the last segment of the resource's path
    /// `{namespace}/{deployment}/{name}`.
    pub name: String,
    /// Absolute path of the file to write, below [`RESOURCE_ROOT`].
    pub path: String,
}
