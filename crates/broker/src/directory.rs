//! The inventory of a broker without Kubernetes: a directory of objects that the
//! key holder keeps, and a directory of records that the broker writes.
//!
//! The objects are read again before every release and at an interval. A file
//! that cannot be read leaves in force what it said before, so that an error
//! accepts nothing new; it is logged and counted until it is mended. What is no
//! longer in the directory is gone.

pub mod objects;
pub mod records;

use std::path::Path;
use std::sync::Arc;

use assay_crds::v1alpha1::attestation_record::PodReference;
use assay_crds::v1alpha1::{AttestationRecord, ConfidentialDeployment, MeasuredImage};
use assay_tee::InstanceData;

use self::objects::{Entry, Objects, Reading};
use self::records::RecordDirectory;
use crate::appraisal::Observed;
use crate::identity::Witness;
use crate::inventory::{Inventory, InventoryError, InventoryHealth, Notice};
use crate::manifests::Rules;
use crate::release::ReleaseObserved;
use crate::token::InstanceClaims;

/// The inventory. Clones share it.
#[derive(Clone)]
pub struct DirectoryInventory {
    objects: Arc<Objects>,
    records: Arc<RecordDirectory>,
}

impl DirectoryInventory {
    /// Reads `directory` for the first time. What is wrong is in the reading;
    /// whoever starts a broker refuses to on any error.
    pub fn open(directory: &Path, rules: Rules, records: Arc<RecordDirectory>) -> (Self, Reading) {
        let objects = Objects::new(directory, rules);
        let reading = objects.reload();
        let inventory = Self {
            objects: Arc::new(objects),
            records,
        };
        (inventory, reading)
    }

    /// The objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The records.
    pub fn records(&self) -> &RecordDirectory {
        &self.records
    }

    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Self) -> Result<T, InventoryError> + Send + 'static,
    ) -> Result<T, InventoryError> {
        let inventory = self.clone();
        let work = tokio::task::spawn_blocking(move || work(&inventory));
        work.await.map_err(|source| InventoryError::Failed {
            action,
            source: Box::new(source),
        })?
    }
}

impl Inventory for DirectoryInventory {
    async fn observe(&self, instance: &InstanceData) -> Result<Observed, InventoryError> {
        let snapshot = self.objects.current();
        let namespace = &instance.namespace;
        let deployment = snapshot.deployment(namespace, &instance.deployment);
        let reference = |name: fn(&ConfidentialDeployment) -> &str| {
            deployment.as_ref().map(|deployment| name(deployment))
        };
        let image = reference(|deployment| &deployment.spec.image_ref.name);
        let policy = reference(|deployment| &deployment.spec.policy_ref.name);
        let pod = PodReference {
            name: instance.pod.name.clone(),
            uid: instance.pod.uid.clone(),
        };
        Ok(Observed {
            witness: Witness::Nobody,
            image: image.and_then(|name| snapshot.image(namespace, name)),
            policy: policy.and_then(|name| snapshot.policy(namespace, name)),
            record: self.read_record(namespace, &pod).await?,
            deployment,
        })
    }

    async fn observe_release(
        &self,
        instance: &InstanceClaims,
    ) -> Result<ReleaseObserved, InventoryError> {
        let instance = instance.clone();
        let action = "read the inventory";
        self.blocking(action, move |inventory| {
            inventory.objects.reload();
            let snapshot = inventory.objects.current();
            let namespace = &instance.namespace;
            let record = inventory.records().read(namespace, &instance.pod_uid)?;
            let deployment = snapshot.deployment(namespace, &instance.deployment);
            let policy = deployment.as_ref().and_then(|deployment| {
                snapshot.policy(namespace, &deployment.spec.policy_ref.name)
            });
            Ok(ReleaseObserved {
                record,
                deployment: deployment.map(Arc::unwrap_or_clone),
                image: snapshot
                    .image(namespace, &instance.image)
                    .map(Arc::unwrap_or_clone),
                policy: policy.map(Arc::unwrap_or_clone),
            })
        })
        .await
    }

    async fn read_record(
        &self,
        namespace: &str,
        pod: &PodReference,
    ) -> Result<Option<AttestationRecord>, InventoryError> {
        let (namespace, uid) = (namespace.to_owned(), pod.uid.clone());
        self.blocking("read the AttestationRecord", move |inventory| {
            inventory.records().read(&namespace, &uid)
        })
        .await
    }

    fn images(&self, namespace: &str) -> Vec<Arc<MeasuredImage>> {
        let snapshot = self.objects.current();
        let entries = snapshot.0.iter();
        let entries = entries.filter(|(key, _)| key.namespace == namespace);
        entries
            .filter_map(|(_, entry)| match entry {
                Entry::Image(image) => Some(image.clone()),
                _ => None,
            })
            .collect()
    }

    async fn write_record(
        &self,
        record: &AttestationRecord,
        existing: Option<&AttestationRecord>,
    ) -> Result<(), InventoryError> {
        let (record, existing) = (record.clone(), existing.cloned());
        self.blocking("write the AttestationRecord", move |inventory| {
            inventory.records().write(&record, existing.as_ref())
        })
        .await
    }

    fn health(&self) -> InventoryHealth {
        InventoryHealth {
            invalid_files: self.objects.invalid_files(),
            reload_failures: self.objects.reload_failures(),
            records: self.records.count(),
            unpublished: self.records.unpublished(),
        }
    }

    /// The log has it already, and the record what can be mended.
    async fn notify(&self, _: &str, _: &PodReference, _: Notice) {}
}

#[cfg(test)]
mod tests;
