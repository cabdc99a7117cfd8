//! What every controller works with.

use std::sync::Arc;

use assay_crds::v1alpha1::{
    AttestationPolicy, AttestationRecord, ConfidentialDeployment, MeasuredImage,
};
use assay_tee::instance::VerifierEndpoint;
use assay_workload::simulation::SimulationPki;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Client;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};

use crate::apply::Writer;
use crate::artifact::Artifacts;
use crate::queue::Watchable;
use crate::settings::Settings;
use crate::watch::Undecodable;

/// The cluster as it was last seen.
#[derive(Clone)]
pub struct Stores {
    /// All MeasuredImages.
    pub images: Store<MeasuredImage>,
    /// MeasuredImages that do not decode.
    pub undecodable_images: Undecodable,
    /// All ConfidentialDeployments.
    pub deployments: Store<ConfidentialDeployment>,
    /// All AttestationPolicies.
    pub policies: Store<AttestationPolicy>,
    /// AttestationPolicies that do not decode.
    pub undecodable_policies: Undecodable,
    /// All AttestationRecords.
    pub records: Store<AttestationRecord>,
    /// Pods that run guests.
    pub pods: Store<Pod>,
    /// ReplicaSets of those pods; only their metadata matter.
    pub replica_sets: Store<PartialObjectMeta<ReplicaSet>>,
    /// Deployments that the operator made.
    pub workloads: Store<Deployment>,
    /// Services that the operator made.
    pub services: Store<Service>,
    /// ConfigMaps that the operator made.
    pub config_maps: Store<ConfigMap>,
    /// Roles that the operator made.
    pub roles: Store<Role>,
    /// RoleBindings that the operator made.
    pub role_bindings: Store<RoleBinding>,
    /// Jobs that the operator made.
    pub jobs: Store<Job>,
    /// The broker's Service.
    pub broker_service: Store<Service>,
    /// The broker's certificate authority.
    pub broker_ca: Store<ConfigMap>,
}

/// What every controller works with.
pub struct Context {
    /// For the few reads that no store answers.
    pub client: Client,
    /// The cluster as it was last seen.
    pub stores: Stores,
    /// The installation's choices.
    pub settings: Arc<Settings>,
    /// The broker outside the cluster, where guests attest to one.
    pub verifier: Option<Arc<VerifierEndpoint>>,
    /// Artifacts that were pulled and measured.
    pub artifacts: Artifacts,
    /// The development PKI, where simulation is enabled.
    pub simulation: Option<Arc<SimulationPki>>,
    /// Writes under the controller's field manager.
    pub writer: Writer,
    /// The clock.
    pub now: fn() -> Timestamp,
}

/// An object of a store by namespace and name.
pub fn find<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Watchable,
{
    store.get(&ObjectRef::new_with(name, K::DynamicType::default()).within(namespace))
}
