//! What is read about a deployment: stores only.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use assay_crds::names;
use assay_crds::v1alpha1::{
    AttestationPolicy, AttestationRecord, ConfidentialDeployment, MeasuredImage,
};
use assay_tee::instance::VerifierEndpoint;
use assay_workload::simulation::SimulationPki;
use assay_workload::validate::Surroundings;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt as _;

use crate::context::{Context, find};
use crate::manifest::is_controlled_by;
use crate::pods::{is_attested, is_over};

/// What was read.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The image that the deployment names.
    pub image: Option<Arc<MeasuredImage>>,
    /// Why that image, which is there, does not decode.
    pub image_error: Option<String>,
    /// The policy that the deployment names.
    pub policy: Option<Arc<AttestationPolicy>>,
    /// Why that policy, which is there, does not decode.
    pub policy_error: Option<String>,
    /// The Deployment that was made of it.
    pub workload: Option<Arc<Deployment>>,
    /// Its Service.
    pub service: Option<Arc<Service>>,
    /// The broker's right to read its Secrets.
    pub role: Option<Arc<Role>>,
    /// Who has that right.
    pub role_binding: Option<Arc<RoleBinding>>,
    /// Launch ConfigMaps of all its revisions.
    pub launches: Vec<Arc<ConfigMap>>,
    /// Revisions that ReplicaSets and pods still name.
    pub revisions_in_use: BTreeSet<String>,
    /// Its pods, but for those that have ended.
    pub pods: Vec<Arc<Pod>>,
    /// The records of those pods, by name.
    pub records: Vec<Arc<AttestationRecord>>,
    /// When the oldest attestation of a pod that counts as attested was made.
    pub oldest_attestation: Option<Timestamp>,
    /// The broker that guests attest to.
    pub verifier: Option<VerifierEndpoint>,
    /// The installation.
    pub installation: Installation,
}

/// Where the broker is that guests attest to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BrokerPlace {
    /// In the cluster, where it reads Secrets by name.
    #[default]
    Inside,
    /// Outside, with values of its own: nobody reads Secrets.
    Outside,
}

/// What the installation decides.
#[derive(Debug, Clone, Default)]
pub struct Installation {
    /// Its namespace.
    pub namespace: String,
    /// Where its broker is.
    pub broker: BrokerPlace,
    /// Image of the launcher.
    pub launcher_image: String,
    /// The development PKI, where simulation is enabled.
    pub simulation: Option<Arc<SimulationPki>>,
}

impl Observed {
    /// What the deployment is checked against.
    pub fn surroundings(&self) -> Surroundings<'_> {
        let installation = self.installation.namespace.as_str();
        Surroundings {
            image: self.image.as_deref(),
            image_error: self.image_error.as_deref(),
            policy: self.policy.as_deref(),
            policy_error: self.policy_error.as_deref(),
            verifier: self.verifier.clone(),
            installation,
            simulation: self.installation.simulation.clone(),
        }
    }
}

pub(super) fn observe(deployment: &ConfidentialDeployment, context: &Context) -> Observed {
    let stores = &context.stores;
    let settings = &context.settings;
    let namespace = deployment.namespace().unwrap_or_default();
    let name = deployment.name_any();
    let uid = deployment.uid().unwrap_or_default();
    let ours = |labels: &std::collections::BTreeMap<String, String>, other: Option<String>| {
        other.as_deref() == Some(&namespace) && labels.get(names::DEPLOYMENT_LABEL) == Some(&name)
    };

    let replica_sets = stores
        .replica_sets
        .state_filter(|set| ours(set.labels(), set.namespace()));
    let pods = stores
        .pods
        .state_filter(|pod| ours(pod.labels(), pod.namespace()));
    let mut revisions_in_use: BTreeSet<String> = BTreeSet::new();
    revisions_in_use.extend(
        replica_sets
            .iter()
            .filter_map(|set| set.labels().get(names::REVISION_LABEL))
            .cloned(),
    );
    revisions_in_use.extend(
        pods.iter()
            .filter_map(|pod| pod.labels().get(names::REVISION_LABEL))
            .cloned(),
    );

    let oldest_attestation = pods
        .iter()
        .filter(|pod| is_attested(pod))
        .filter_map(|pod| find(&stores.records, &namespace, &pod.name_any()))
        .filter_map(|record| record.status.as_ref().map(|status| status.verified_at.0))
        .min();

    let pods: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| !is_over(pod)).collect();
    let mut records: Vec<Arc<AttestationRecord>> = pods
        .iter()
        .filter_map(|pod| {
            let record = find(&stores.records, &namespace, &pod.name_any())?;
            (pod.uid().as_ref() == Some(&record.spec.pod_ref.uid)).then_some(record)
        })
        .collect();
    records.sort_by_key(|record| record.name_any());

    let (broker, verifier) = match &context.verifier {
        Some(verifier) => (BrokerPlace::Outside, Some(verifier.as_ref().clone())),
        None => (
            BrokerPlace::Inside,
            verifier_inside(
                find(&stores.broker_service, &settings.namespace, names::BROKER).as_deref(),
                find(
                    &stores.broker_ca,
                    &settings.namespace,
                    names::BROKER_CA_CONFIG_MAP,
                )
                .as_deref(),
                &settings.namespace,
            ),
        ),
    };

    let image = &deployment.spec.image_ref.name;
    let policy = &deployment.spec.policy_ref.name;
    Observed {
        image: find(&stores.images, &namespace, image),
        image_error: stores.undecodable_images.error(&namespace, image),
        policy: find(&stores.policies, &namespace, policy),
        policy_error: stores.undecodable_policies.error(&namespace, policy),
        workload: find(&stores.workloads, &namespace, &name),
        service: find(&stores.services, &namespace, &name),
        role: find(&stores.roles, &namespace, &role_name(&name)),
        role_binding: find(&stores.role_bindings, &namespace, &role_name(&name)),
        launches: stores.config_maps.state_filter(|map| {
            ours(map.labels(), map.namespace()) && is_controlled_by(&map.metadata, &uid)
        }),
        revisions_in_use,
        pods,
        records,
        oldest_attestation,
        verifier,
        installation: Installation {
            namespace: settings.namespace.clone(),
            broker,
            launcher_image: settings.launcher_image.clone(),
            simulation: context.simulation.clone(),
        },
    }
}

/// The installation's own broker: guests reach its Service by address, and know it
/// by the name that its certificate has.
pub(super) fn verifier_inside(
    service: Option<&Service>,
    ca: Option<&ConfigMap>,
    installation: &str,
) -> Option<VerifierEndpoint> {
    let port = names::BROKER_PORT;
    let cluster_ip = service?.spec.as_ref()?.cluster_ip.as_deref()?;
    let ca = ca?.data.as_ref()?.get(names::BROKER_CA_KEY)?;
    let address = match cluster_ip.parse().ok()? {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    };
    (!ca.trim().is_empty()).then(|| VerifierEndpoint {
        url: format!("https://{}.{installation}.svc:{port}", names::BROKER),
        addresses: vec![address],
        ca: ca.clone(),
    })
}

/// Name of the Role and RoleBinding that let the broker read a deployment's
/// Secrets.
pub(super) fn role_name(deployment: &str) -> String {
    format!("assay-release-{deployment}")
}
