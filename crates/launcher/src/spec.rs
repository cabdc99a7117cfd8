//! The launch specification: the one type that the operator measures and the
//! launcher runs, so that they cannot drift apart.

use core::net::Ipv4Addr;

use assay_tee::instance::{InstanceData, Network, PodIdentity, ResourceRequest, VerifierEndpoint};
use assay_tee::{GuestPolicy, LaunchDigest, LaunchShape, Sha256Digest};
use serde::{Deserialize, Serialize};

/// Key of the launch ConfigMap that holds the specification as JSON.
pub const LAUNCH_SPEC_KEY: &str = "launch.json";

/// The guest's gateway. QEMU carries what is sent to it to the loopback interface
/// of the machine that QEMU runs on.
pub const HOST_ADDRESS: &str = "10.0.2.2";

/// Everything that is needed to launch one guest of a deployment. Identical for
/// all pods of a revision; what differs per pod is added by [`LaunchSpec::instance_data`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LaunchSpec {
    /// Version of this document: [`LaunchSpec::VERSION`].
    pub version: u32,
    /// What the launch digest depends on besides bytes.
    pub shape: LaunchShape,
    /// Guest policy given to the processor.
    pub guest_policy: GuestPolicy,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The artifact's files, relative to the directory it is mounted at.
    pub artifact: ArtifactFiles,
    /// The digest that the operator computed for this launch.
    pub expected_digest: LaunchDigest,
    /// TCP ports of the pod that are forwarded to the guest.
    pub ports: Vec<PortForward>,
    /// What of the guest's serial console reaches the container's log.
    pub console: Console,
    /// The deployment's part of the instance data.
    pub instance: InstanceTemplate,
    /// Present exactly when `shape.tee` is simulated.
    pub simulation: Option<Simulation>,
}

impl LaunchSpec {
    /// The version that this crate reads and writes.
    pub const VERSION: u32 = 1;

    /// The instance data of one pod.
    pub fn instance_data(&self, pod: PodIdentity, node: String) -> InstanceData {
        let template = self.instance.clone();
        InstanceData {
            version: InstanceData::VERSION,
            namespace: template.namespace,
            deployment: template.deployment,
            network: Network {
                address: "10.0.2.15/24".to_owned(),
                gateway: HOST_ADDRESS.to_owned(),
                nameservers: vec!["10.0.2.3".to_owned()],
                hostname: pod.name.clone(),
            },
            pod,
            node,
            policy_hash: template.policy_hash,
            verifier: template.verifier,
            resources: template.resources,
            attestation_interval_seconds: template.attestation_interval_seconds,
        }
    }
}

/// File names inside the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArtifactFiles {
    /// The UKI, and its digest.
    pub uki: FileRef,
    /// The firmware, and its digest.
    pub firmware: FileRef,
    /// The root disk, where the image has one.
    pub root_disk: Option<RootDisk>,
}

/// A file of the artifact by name and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileRef {
    /// Path relative to the artifact's root.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: Sha256Digest,
}

/// The read-only root disk. Its content is protected by dm-verity inside the
/// guest, not by a digest here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RootDisk {
    /// Path relative to the artifact's root.
    pub path: String,
    /// Serial of the virtio disk.
    pub serial: String,
}

/// A TCP port of the pod that is forwarded to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortForward {
    /// Address to listen on; all of the pod's, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Port of the pod.
    pub pod: u16,
    /// Port inside the guest.
    pub guest: u16,
}

/// What of the guest's serial console reaches the container's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Console {
    /// Nothing: the host can read the log.
    #[default]
    None,
    /// Everything. For development.
    Full,
}

/// The deployment's part of the instance data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceTemplate {
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the ConfidentialDeployment.
    pub deployment: String,
    /// SHA-256 of the canonical AttestationPolicy specification.
    pub policy_hash: Sha256Digest,
    /// The verifier to attest to.
    pub verifier: VerifierEndpoint,
    /// Resources to ask for once attested.
    pub resources: Vec<ResourceRequest>,
    /// Seconds between attestations.
    pub attestation_interval_seconds: u32,
}

/// What a simulated launch needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Simulation {
    /// PEM of the simulated chip's VCEK private key (P-384, PKCS#8). It guards
    /// nothing: simulated evidence is refused wherever it is not asked for.
    pub vcek_key: String,
    /// PEM of the VCEK, ASK and ARK certificates, in this order.
    pub vcek_chain: String,
    /// A hostile host to play, if any.
    pub fault: Option<Fault>,
}

/// A hostile host, played by the launcher of a simulated guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// One byte of the UKI is changed under the original hashes table. The
    /// firmware must refuse to boot it.
    TamperedKernel,
    /// One byte of the UKI is changed and the hashes table recomputed. It
    /// boots, and its launch digest differs.
    TamperedKernelRehashed,
}
