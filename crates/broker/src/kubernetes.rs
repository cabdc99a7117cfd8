//! The inventory of a cluster: objects read and written at the API server. No
//! decision is made here.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use assay_crds::names::BROKER;
use assay_crds::v1alpha1::attestation_record::PodReference;
use assay_crds::v1alpha1::{
    AttestationPolicy, AttestationRecord, ConfidentialDeployment, MeasuredImage, NodeTrust,
};
use assay_tee::InstanceData;
use futures::future::ready;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event as WatchEvent;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::appraisal::Observed;
use crate::identity::{Lineage, Witness, controller_name, image_name};
use crate::inventory::{Inventory, InventoryError, Notice};
use crate::release::ReleaseObserved;
use crate::service::Chain;
use crate::token::InstanceClaims;

/// Longest note of an Event (events.k8s.io).
const MAX_NOTE: usize = 1024;

/// The API server, with watched copies of what every appraisal needs.
pub struct KubernetesInventory {
    client: Client,
    deployments: Store<ConfidentialDeployment>,
    images: Store<MeasuredImage>,
    policies: Store<AttestationPolicy>,
    node_trusts: Store<NodeTrust>,
    recorder: Recorder,
}

impl KubernetesInventory {
    /// Starts to watch. The returned future drives the watches and never ends.
    pub fn start(client: Client) -> (Self, impl Future<Output = ()> + Send) {
        let (deployments, watch_deployments) = watch(&client);
        let (images, watch_images) = watch(&client);
        let (policies, watch_policies) = watch(&client);
        let (node_trusts, watch_node_trusts) = watch(&client);
        let reporter = Reporter {
            controller: format!("assay.dev/{BROKER}"),
            instance: None,
        };
        let recorder = Recorder::new(client.clone(), reporter);
        let driver = async {
            tokio::join!(
                watch_deployments.for_each(|()| async {}),
                watch_images.for_each(|()| async {}),
                watch_policies.for_each(|()| async {}),
                watch_node_trusts.for_each(|()| async {}),
            );
        };
        (
            Self {
                client,
                deployments,
                images,
                policies,
                node_trusts,
                recorder,
            },
            driver,
        )
    }

    /// Waits until every watch has listed what there is.
    pub fn synced(&self) -> impl Future<Output = bool> + Send + use<> {
        let (deployments, images, policies, node_trusts) = (
            self.deployments.clone(),
            self.images.clone(),
            self.policies.clone(),
            self.node_trusts.clone(),
        );
        async move {
            deployments.wait_until_ready().await.is_ok()
                && images.wait_until_ready().await.is_ok()
                && policies.wait_until_ready().await.is_ok()
                // One that is not known yet would be written again.
                && node_trusts.wait_until_ready().await.is_ok()
        }
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn get<K>(
        &self,
        action: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<K>, InventoryError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.api(namespace)
            .get_opt(name)
            .await
            .map_err(|source| api_error(action, source))
    }

    /// The watched copy, or the object itself where there is no copy yet. One that
    /// does not decode counts as absent, as it does in the watch.
    async fn cached<K>(
        &self,
        store: &Store<K>,
        action: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<K>>, InventoryError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + 'static,
    {
        if let Some(object) = store.get(&ObjectRef::new(name).within(namespace)) {
            return Ok(Some(object));
        }
        let found = self.get(action, namespace, name).await?;
        Ok(found.and_then(|DeserializeGuard(object)| object.ok().map(Arc::new)))
    }

    async fn record(
        &self,
        namespace: &str,
        pod: &str,
    ) -> Result<Option<AttestationRecord>, InventoryError> {
        self.get("read the AttestationRecord", namespace, pod).await
    }

    async fn lineage(&self, namespace: &str, pod: &str) -> Result<Lineage, InventoryError> {
        let pod: Option<Pod> = self.get("read the pod", namespace, pod).await?;
        let owner = pod
            .as_ref()
            .and_then(|pod| controller_name(&pod.metadata, "ReplicaSet"));
        let replica_set = match owner {
            Some(name) => {
                self.get::<ReplicaSet>("read the ReplicaSet", namespace, name)
                    .await?
            }
            None => None,
        };
        Ok(Lineage { pod, replica_set })
    }
}

/// A watched copy of every object of a kind that decodes, and the stream that
/// keeps it.
fn watch<K>(client: &Client) -> (Store<K>, impl Stream<Item = ()> + Send + use<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    let (reader, writer) = reflector::store();
    let objects = Api::<DeserializeGuard<K>>::all(client.clone());
    let known = reader.clone();
    let events = watcher(objects, watcher::Config::default())
        .default_backoff()
        .try_filter_map(move |event| ready(Ok(decoded(&known, event))));
    let stream = reflector::reflector(writer, events).map(|event| {
        if let Err(error) = event {
            tracing::warn!(error = %Chain(&error), kind = %K::kind(&()), "watch failed; again");
        }
    });
    (reader, stream)
}

/// The event as far as it decodes. An object that does not, as one of a later
/// version may, counts as deleted, and costs only those who depend on it.
fn decoded<K>(known: &Store<K>, event: WatchEvent<DeserializeGuard<K>>) -> Option<WatchEvent<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let complain = |invalid: &InvalidObject| {
        tracing::warn!(
            kind = %K::kind(&()),
            namespace = invalid.metadata.namespace,
            name = invalid.metadata.name,
            error = invalid.error,
            "object does not decode: it counts as absent"
        );
    };
    let deletion = |invalid: &InvalidObject| {
        let mut object = ObjectRef::<K>::new(invalid.metadata.name.as_deref().unwrap_or_default());
        object.namespace.clone_from(&invalid.metadata.namespace);
        let known = known.get(&object)?;
        Some(WatchEvent::Delete(known.as_ref().clone()))
    };
    match event {
        WatchEvent::Init => Some(WatchEvent::Init),
        WatchEvent::InitApply(DeserializeGuard(Ok(object))) => Some(WatchEvent::InitApply(object)),
        WatchEvent::InitApply(DeserializeGuard(Err(invalid))) => {
            complain(&invalid);
            None
        }
        WatchEvent::InitDone => Some(WatchEvent::InitDone),
        WatchEvent::Apply(DeserializeGuard(Ok(object))) => Some(WatchEvent::Apply(object)),
        WatchEvent::Apply(DeserializeGuard(Err(invalid))) => {
            complain(&invalid);
            deletion(&invalid)
        }
        WatchEvent::Delete(DeserializeGuard(Ok(object))) => Some(WatchEvent::Delete(object)),
        WatchEvent::Delete(DeserializeGuard(Err(invalid))) => deletion(&invalid),
    }
}

fn api_error(action: &'static str, source: kube::Error) -> InventoryError {
    InventoryError::Failed {
        action,
        source: Box::new(source),
    }
}

/// As [`api_error`], but a conflict is told apart. An object that has vanished
/// is one, too: the caller reads again.
fn write_error(action: &'static str, source: kube::Error) -> InventoryError {
    match &source {
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => InventoryError::Conflict,
        _ => api_error(action, source),
    }
}

/// What to apply to a record's status, of the version that it was planned from or
/// else of whichever is there.
pub(crate) fn status_patch(
    record: &AttestationRecord,
    version: Option<String>,
) -> serde_json::Value {
    let mut metadata = json!({ "name": record.name_any() });
    if let Some(version) = version {
        metadata["resourceVersion"] = version.into();
    }
    json!({
        "apiVersion": AttestationRecord::api_version(&()),
        "kind": AttestationRecord::kind(&()),
        "metadata": metadata,
        "status": record.status,
    })
}

impl Inventory for KubernetesInventory {
    async fn observe(&self, instance: &InstanceData) -> Result<Observed, InventoryError> {
        let namespace = &instance.namespace;
        let (lineage, deployment, record) = tokio::try_join!(
            self.lineage(namespace, &instance.pod.name),
            self.cached(
                &self.deployments,
                "read the ConfidentialDeployment",
                namespace,
                &instance.deployment
            ),
            self.record(namespace, &instance.pod.name),
        )?;
        let witness = Witness::ApiServer(Box::new(lineage));
        let Some(deployment) = deployment else {
            return Ok(Observed {
                witness,
                record,
                ..Observed::default()
            });
        };
        let (image, policy) = tokio::try_join!(
            self.cached(
                &self.images,
                "read the MeasuredImage",
                namespace,
                image_name(&witness, &deployment)
            ),
            self.cached(
                &self.policies,
                "read the AttestationPolicy",
                namespace,
                &deployment.spec.policy_ref.name
            ),
        )?;
        Ok(Observed {
            witness,
            deployment: Some(deployment),
            image,
            policy,
            record,
        })
    }

    async fn observe_release(
        &self,
        instance: &InstanceClaims,
    ) -> Result<ReleaseObserved, InventoryError> {
        let namespace = &instance.namespace;
        let (record, deployment, image) = tokio::try_join!(
            self.record(namespace, &instance.pod),
            self.get::<ConfidentialDeployment>(
                "read the ConfidentialDeployment",
                namespace,
                &instance.deployment
            ),
            self.get::<MeasuredImage>("read the MeasuredImage", namespace, &instance.image),
        )?;
        let policy = match &deployment {
            Some(deployment) => {
                let name = &deployment.spec.policy_ref.name;
                self.get("read the AttestationPolicy", namespace, name)
                    .await?
            }
            None => None,
        };
        Ok(ReleaseObserved {
            record,
            deployment,
            image,
            policy,
        })
    }

    async fn read_record(
        &self,
        namespace: &str,
        pod: &PodReference,
    ) -> Result<Option<AttestationRecord>, InventoryError> {
        self.record(namespace, &pod.name).await
    }

    fn images(&self, namespace: &str) -> Vec<Arc<MeasuredImage>> {
        let images = self.images.state().into_iter();
        images
            .filter(|image| image.metadata.namespace.as_deref() == Some(namespace))
            .collect()
    }

    async fn write_record(
        &self,
        record: &AttestationRecord,
        existing: Option<&AttestationRecord>,
    ) -> Result<(), InventoryError> {
        let namespace = record.namespace().unwrap_or_default();
        let name = record.name_any();
        let api: Api<AttestationRecord> = self.api(&namespace);
        let params = PatchParams::apply(BROKER).force();
        let unchanged = existing.filter(|existing| {
            existing.spec == record.spec
                && existing.metadata.labels == record.metadata.labels
                && existing.metadata.owner_references == record.metadata.owner_references
        });
        let base_version = if let Some(existing) = unchanged {
            existing.resource_version()
        } else {
            let mut base = record.clone();
            base.status = None;
            base.metadata.resource_version = existing.and_then(kube::ResourceExt::resource_version);
            let applied = api
                .patch(&name, &params, &Patch::Apply(&base))
                .await
                .map_err(|source| write_error("apply the AttestationRecord", source))?;
            if existing.is_none() && applied.status.is_some() {
                // Another replica was first.
                return Err(InventoryError::Conflict);
            }
            applied.resource_version()
        };
        let status = status_patch(record, base_version);
        api.patch_status(&name, &params, &Patch::Apply(&status))
            .await
            .map_err(|source| write_error("apply the AttestationRecord's status", source))?;
        Ok(())
    }

    fn node_trust(&self, node: &str) -> Option<Arc<NodeTrust>> {
        self.node_trusts.get(&ObjectRef::new(node))
    }

    async fn write_node_trust(&self, trust: &NodeTrust) -> Result<(), InventoryError> {
        let name = trust.name_any();
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get_metadata_opt(&name).await;
        let node = node.map_err(|source| api_error("read the Node", source))?;
        let Some(uid) = node.and_then(|node| node.metadata.uid) else {
            return Ok(());
        };
        let api: Api<NodeTrust> = Api::all(self.client.clone());
        let params = PatchParams::apply(BROKER).force();
        let mut base = trust.clone();
        base.status = None;
        base.metadata.owner_references = Some(vec![OwnerReference {
            api_version: Node::api_version(&()).into_owned(),
            kind: Node::kind(&()).into_owned(),
            name: name.clone(),
            uid,
            controller: Some(false),
            block_owner_deletion: Some(false),
        }]);
        api.patch(&name, &params, &Patch::Apply(&base))
            .await
            .map_err(|source| write_error("apply the NodeTrust", source))?;
        let status = json!({
            "apiVersion": NodeTrust::api_version(&()),
            "kind": NodeTrust::kind(&()),
            "metadata": { "name": name },
            "status": trust.status,
        });
        api.patch_status(&name, &params, &Patch::Apply(&status))
            .await
            .map_err(|source| write_error("apply the NodeTrust's status", source))?;
        Ok(())
    }

    async fn notify(&self, namespace: &str, pod: &PodReference, notice: Notice) {
        let (type_, reason, action, note) = match notice {
            Notice::SecretReleased { path } => (
                EventType::Normal,
                "SecretReleased",
                "Release",
                format!("Released {path}"),
            ),
            Notice::SecretRefused { path, reason } => (
                EventType::Warning,
                "SecretRefused",
                "Release",
                format!("Did not release {path}: {reason}"),
            ),
            Notice::AttestationRejected { reason } => (
                EventType::Warning,
                "AttestationRejected",
                "Attest",
                format!("Rejected the guest's evidence: {reason}"),
            ),
        };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.clone()),
            namespace: Some(namespace.to_owned()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &regarding).await {
            tracing::warn!(error = %Chain(&error), reason, "cannot publish the Event");
        }
    }
}

#[cfg(test)]
mod tests;
