//! Writes to the API server: the only code that does.
//!
//! No decision lives here but one: an object that the operator did not make is
//! never taken over.

use assay_crds::names;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Pod, Secret};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::causes::chain;
use crate::manifest::{Manifest, Orphan, is_controlled_by};
use crate::plan::{Note, Plan};

/// Name under which events are reported.
const REPORTER: &str = "assay.dev/operator";

/// Most events that wait to be published. More than that at once tell nobody
/// anything.
const MAX_WAITING_EVENTS: usize = 4096;

/// Writes for one controller, under a field manager of its own.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    manager: &'static str,
    events: mpsc::Sender<(ObjectReference, Note)>,
}

/// A write failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An object of the child's name is somebody else's.
    #[error("{kind} {name} exists and belongs to somebody else; delete it, or choose another name")]
    ChildConflict {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
    /// A child could not be looked at.
    #[error("cannot read {kind} {name}")]
    ReadChild {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// A child could not be written.
    #[error("cannot apply {kind} {name}")]
    ApplyChild {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// A child does not stay as it was written.
    #[error(
        "{kind} {name} is changed back as soon as it is written: keep admission webhooks off it; \
         it still lacks {difference}"
    )]
    ChildContested {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// What is left to change, as a JSON merge patch.
        difference: Value,
    },
    /// A child could not be deleted.
    #[error("cannot delete {kind} {name}")]
    DeleteChild {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// A status could not be written.
    #[error("cannot write the status of {kind} {name}")]
    PatchStatus {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// An object of the installation could not be read or written.
    #[error("cannot {action} {kind} {name}")]
    Installation {
        /// What was being done.
        action: &'static str,
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
}

impl ApplyError {
    /// The variant's name.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ChildConflict { .. } => "ChildConflict",
            Self::ReadChild { .. } => "ReadChildFailed",
            Self::ApplyChild { .. } => "ApplyChildFailed",
            Self::ChildContested { .. } => "ChildContested",
            Self::DeleteChild { .. } => "DeleteChildFailed",
            Self::PatchStatus { .. } => "PatchStatusFailed",
            Self::Installation { .. } => "InstallationFailed",
        }
    }

    /// Whether a person has to do something: another object is in the way, or
    /// the API server refuses what was asked. Everything else passes by itself.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::ChildConflict { .. } | Self::ChildContested { .. } => true,
            Self::ReadChild { source, .. }
            | Self::ApplyChild { source, .. }
            | Self::DeleteChild { source, .. }
            | Self::PatchStatus { source, .. }
            | Self::Installation { source, .. } => match source {
                kube::Error::Api(status) => status.is_forbidden() || status.is_invalid(),
                _ => false,
            },
        }
    }
}

impl Writer {
    /// A writer of the field manager `manager`, such as `assay-operator/gate`.
    pub fn new(client: Client, manager: &'static str, instance: &str) -> Self {
        let reporter = Reporter {
            controller: REPORTER.to_owned(),
            instance: Some(instance.to_owned()),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        let (events, waiting) = mpsc::channel(MAX_WAITING_EVENTS);
        tokio::spawn(publish_all(recorder, waiting));
        Self {
            client,
            manager,
            events,
        }
    }

    /// Carries out a plan's writes and deletions, in order, up to the first
    /// failure.
    ///
    /// Server-side apply takes nothing away that others added, such as a
    /// container or a port. What is left of that in its answer is taken out by a
    /// second patch, which holds only while nobody else writes.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached, when a child's name is
    /// taken, or when a child does not stay as it was written.
    pub async fn apply<S>(&self, plan: &Plan<S>) -> Result<(), ApplyError> {
        for manifest in &plan.writes {
            self.write(manifest).await?;
        }
        for orphan in &plan.deletes {
            self.delete(orphan).await?;
        }
        Ok(())
    }

    async fn write(&self, manifest: &Manifest) -> Result<(), ApplyError> {
        let Manifest {
            resource,
            namespace,
            name,
            uid,
            owner,
            body,
        } = manifest;
        let kind = || resource.kind.clone();
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, resource);
        let mut body = body.clone();
        if let Some(uid) = uid {
            body["metadata"]["uid"] = json!(uid);
        } else {
            let there =
                api.get_metadata_opt(name)
                    .await
                    .map_err(|source| ApplyError::ReadChild {
                        kind: kind(),
                        name: name.clone(),
                        source,
                    })?;
            if there.is_some_and(|there| !is_controlled_by(&there.metadata, owner)) {
                return Err(ApplyError::ChildConflict {
                    kind: kind(),
                    name: name.clone(),
                });
            }
        }
        let failed = |source| ApplyError::ApplyChild {
            kind: kind(),
            name: name.clone(),
            source,
        };
        let parameters = PatchParams::apply(self.manager).force();
        let applied = api
            .patch(name, &parameters, &Patch::Apply(&body))
            .await
            .map_err(failed)?;
        tracing::info!(kind = resource.kind, namespace, name, "applied");
        let Some(mut foreign) = difference(manifest, &applied) else {
            return Ok(());
        };
        foreign["metadata"]["resourceVersion"] = json!(applied.resource_version());
        let repaired = api
            .patch(name, &self.parameters(), &Patch::Merge(&foreign))
            .await
            .map_err(failed)?;
        tracing::info!(kind = resource.kind, namespace, name, %foreign, "repaired");
        match difference(manifest, &repaired) {
            None => Ok(()),
            Some(difference) => Err(ApplyError::ChildContested {
                kind: kind(),
                name: name.clone(),
                difference,
            }),
        }
    }

    /// Parameters of every write that is no server-side apply.
    fn parameters(&self) -> PatchParams {
        PatchParams {
            field_manager: Some(self.manager.to_owned()),
            ..PatchParams::default()
        }
    }

    async fn delete(&self, orphan: &Orphan) -> Result<(), ApplyError> {
        let Orphan {
            resource,
            namespace,
            name,
            uid,
        } = orphan;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, resource);
        let parameters = DeleteParams::background().preconditions(Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        });
        match api.delete(name, &parameters).await {
            Ok(_) => {
                tracing::info!(kind = resource.kind, namespace, name, "deleted");
                Ok(())
            }
            // Gone already, or replaced by a younger one.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(())
            }
            Err(source) => Err(ApplyError::DeleteChild {
                kind: resource.kind.clone(),
                name: name.clone(),
                source,
            }),
        }
    }

    /// Writes `next` as the status of `object`.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn patch_status<K, S>(&self, object: &K, next: &S) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
        S: Serialize,
    {
        let name = object.name_any();
        let api: Api<K> =
            Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name, "uid": object.uid()},
            "status": next,
        });
        let parameters = PatchParams::apply(self.manager).force();
        match api
            .patch_status(&name, &parameters, &Patch::Apply(&body))
            .await
        {
            Ok(_) => Ok(()),
            // Deleted or replaced meanwhile: its own event follows.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(())
            }
            Err(source) => Err(ApplyError::PatchStatus {
                kind: K::kind(&()).into_owned(),
                name,
                source,
            }),
        }
    }

    /// Publishes events about `object`, one after the other, behind everything
    /// else: they are news, not state, and must not delay what they tell of. One
    /// that cannot be published is logged and forgotten.
    pub fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, notes: &[Note]) {
        for note in notes {
            if self
                .events
                .try_send((object.object_ref(&()), note.clone()))
                .is_err()
            {
                tracing::warn!(reason = note.reason, "too many events wait, one is dropped");
            }
        }
    }

    /// Writes the one condition [`names::ATTESTED_GATE`] of a pod.
    ///
    /// A strategic merge touches no other condition, so kubelet and operator
    /// never undo each other's.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached. A pod that is gone is
    /// no error.
    pub async fn set_gate(
        &self,
        pod: &Pod,
        status: &str,
        reason: &str,
        message: &str,
        since: jiff::Timestamp,
    ) -> Result<(), ApplyError> {
        let name = pod.name_any();
        let api: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let body = json!({
            "metadata": {"uid": pod.uid()},
            "status": {"conditions": [{
                "type": names::ATTESTED_GATE,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": format!("{since:.0}"),
            }]},
        });
        match api
            .patch_status(&name, &self.parameters(), &Patch::Strategic(&body))
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(())
            }
            Err(source) => Err(ApplyError::PatchStatus {
                kind: "Pod".to_owned(),
                name,
                source,
            }),
        }
    }

    /// Creates the Lease, or replaces the one that was read: the resource
    /// version makes sure that nobody else has meanwhile.
    ///
    /// # Errors
    /// With status 409 when somebody was faster.
    pub async fn put_lease(&self, namespace: &str, lease: &Lease) -> Result<Lease, kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PostParams {
            field_manager: Some(self.manager.to_owned()),
            ..PostParams::default()
        };
        if lease.metadata.resource_version.is_some() {
            api.replace(&lease.name_any(), &parameters, lease).await
        } else {
            api.create(&parameters, lease).await
        }
    }

    /// A Secret of the installation.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn get_secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Secret>, ApplyError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name)
            .await
            .map_err(|source| ApplyError::Installation {
                action: "read",
                kind: "Secret",
                name: name.to_owned(),
                source,
            })
    }

    /// Creates a Secret of the installation. `None` when it exists: another
    /// replica was faster, and its Secret is the one.
    ///
    /// # Errors
    /// When it cannot be created.
    pub async fn create_secret(
        &self,
        namespace: &str,
        secret: &Secret,
    ) -> Result<Option<Secret>, ApplyError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PostParams {
            field_manager: Some(self.manager.to_owned()),
            ..PostParams::default()
        };
        match api.create(&parameters, secret).await {
            Ok(secret) => Ok(Some(secret)),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
            Err(source) => Err(ApplyError::Installation {
                action: "create",
                kind: "Secret",
                name: secret.name_any(),
                source,
            }),
        }
    }

    /// Applies a ConfigMap of the installation.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn apply_config_map(
        &self,
        namespace: &str,
        config_map: &ConfigMap,
    ) -> Result<(), ApplyError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let name = config_map.name_any();
        let parameters = PatchParams::apply(self.manager).force();
        match api
            .patch(&name, &parameters, &Patch::Apply(config_map))
            .await
        {
            Ok(_) => Ok(()),
            Err(source) => Err(ApplyError::Installation {
                action: "apply",
                kind: "ConfigMap",
                name,
                source,
            }),
        }
    }
}

/// What others put into `object` and the manifest does not want there.
fn difference(manifest: &Manifest, object: &DynamicObject) -> Option<Value> {
    manifest.difference(&serde_json::to_value(object).unwrap_or_default())
}

async fn publish_all(recorder: Recorder, mut waiting: mpsc::Receiver<(ObjectReference, Note)>) {
    while let Some((regarding, note)) = waiting.recv().await {
        let event = Event {
            type_: if note.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason,
            note: Some(note.message),
            action: note.action,
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &regarding).await {
            tracing::warn!(
                reason = event.reason,
                error = chain(&error),
                "cannot publish an event"
            );
        }
    }
}
