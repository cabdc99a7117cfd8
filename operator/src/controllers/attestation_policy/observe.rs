//! What is read about a policy.

use assay_crds::v1alpha1::AttestationPolicy;
use kube::ResourceExt as _;

use crate::context::Stores;

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Observed {
    /// ConfidentialDeployments of the namespace that name the policy.
    pub(super) bound: usize,
    /// Whether this installation allows simulated guests.
    pub(super) simulation: bool,
}

pub(super) fn observe(policy: &AttestationPolicy, stores: &Stores, simulation: bool) -> Observed {
    let (namespace, name) = (policy.namespace(), policy.name_any());
    let bound = stores.deployments.state_filter(|deployment| {
        deployment.namespace() == namespace && deployment.spec.policy_ref.name == name
    });
    Observed {
        bound: bound.len(),
        simulation,
    }
}
