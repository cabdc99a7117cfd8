//! Version `v1alpha1` of every kind, one module each.

pub mod attestation_policy;
pub mod attestation_record;
pub mod confidential_deployment;
pub mod measured_image;
pub mod node_trust;

pub use attestation_policy::{AttestationPolicy, AttestationPolicySpec, AttestationPolicyStatus};
pub use attestation_record::{AttestationRecord, AttestationRecordSpec, AttestationRecordStatus};
pub use confidential_deployment::{
    ConfidentialDeployment, ConfidentialDeploymentSpec, ConfidentialDeploymentStatus,
};
pub use measured_image::{MeasuredImage, MeasuredImageSpec, MeasuredImageStatus};
pub use node_trust::{NodeTrust, NodeTrustSpec, NodeTrustStatus};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A reference to an object of the same namespace, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The trusted execution environment.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum TeeType {
    /// AMD SEV-SNP.
    #[serde(rename = "SNP")]
    Snp,
    /// A simulated SEV-SNP processor. It protects nothing; it works only where
    /// the operator was installed with simulation enabled and the policy names
    /// it.
    #[serde(rename = "SimulatedSNP")]
    SimulatedSnp,
}

/// How a guest's firmware gets the UKI.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum BootMethod {
    /// The host hands it over, and the firmware verifies it against hashes that
    /// are measured. Any QEMU from 9.1 on.
    #[default]
    DirectKernel,
    /// From guest memory: firmware and UKI are one IGVM file, which is measured
    /// as a whole. A QEMU with IGVM files, which the launcher's image has; the
    /// guest needs 640Mi of memory and the size of the UKI.
    #[serde(rename = "IGVM")]
    Igvm,
}

impl BootMethod {
    /// Whether it is the one that is meant where none is named.
    pub fn is_direct_kernel(&self) -> bool {
        *self == Self::DirectKernel
    }
}

impl From<BootMethod> for assay_tee::BootMethod {
    fn from(boot: BootMethod) -> Self {
        match boot {
            BootMethod::DirectKernel => Self::DirectKernel,
            BootMethod::Igvm => Self::Igvm,
        }
    }
}

impl From<assay_tee::BootMethod> for BootMethod {
    fn from(boot: assay_tee::BootMethod) -> Self {
        match boot {
            assay_tee::BootMethod::DirectKernel => Self::DirectKernel,
            assay_tee::BootMethod::Igvm => Self::Igvm,
        }
    }
}

impl From<TeeType> for assay_tee::Tee {
    fn from(tee: TeeType) -> Self {
        match tee {
            TeeType::Snp => Self::Snp,
            TeeType::SimulatedSnp => Self::SimulatedSnp,
        }
    }
}

impl From<assay_tee::Tee> for TeeType {
    fn from(tee: assay_tee::Tee) -> Self {
        match tee {
            assay_tee::Tee::Snp => Self::Snp,
            assay_tee::Tee::SimulatedSnp => Self::SimulatedSnp,
        }
    }
}
