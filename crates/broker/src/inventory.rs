//! Where the broker learns what there is, and keeps what it found: deployments,
//! images, policies and records. Secrets are elsewhere: see [`crate::secrets`].

use std::future::Future;
use std::sync::Arc;

use assay_crds::v1alpha1::attestation_record::PodReference;
use assay_crds::v1alpha1::{AttestationRecord, MeasuredImage, NodeTrust};
use assay_tee::InstanceData;

use crate::appraisal::Observed;
use crate::release::ReleaseObserved;
use crate::token::InstanceClaims;

/// Why the inventory did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The record changed since it was read.
    #[error("the record changed since it was read")]
    Conflict,
    /// It could not be asked, or refused.
    #[error("cannot {action}")]
    Failed {
        /// What was asked.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What happened, for the people who watch the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A value was released.
    SecretReleased {
        /// Which.
        path: String,
    },
    /// A value was refused.
    SecretRefused {
        /// Which.
        path: String,
        /// Reason code.
        reason: &'static str,
    },
    /// Evidence was rejected.
    AttestationRejected {
        /// Reason code.
        reason: String,
    },
}

/// How far an inventory is from what people wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InventoryHealth {
    /// Files that cannot be used as they are now: what they said before is in
    /// force.
    pub invalid_files: usize,
    /// How often a file that had changed could not be used, since the start.
    pub reload_failures: usize,
    /// Records that are kept, where the inventory keeps them itself.
    pub records: usize,
    /// Records that the cluster does not have as they are, where they are published.
    pub unpublished: usize,
}

/// Where the broker reads what there is and writes records.
///
/// # Guarantees
/// [`Inventory::write_record`] fails with [`InventoryError::Conflict`] when the
/// record is not the one that the new one was planned from.
pub trait Inventory: Send + Sync + 'static {
    /// Reads what an appraisal needs. Policies and images may be seconds old.
    fn observe(
        &self,
        instance: &InstanceData,
    ) -> impl Future<Output = Result<Observed, InventoryError>> + Send;
    /// Reads what a release needs, as it is now.
    fn observe_release(
        &self,
        instance: &InstanceClaims,
    ) -> impl Future<Output = Result<ReleaseObserved, InventoryError>> + Send;
    /// Reads the record of a pod, as it is now.
    fn read_record(
        &self,
        namespace: &str,
        pod: &PodReference,
    ) -> impl Future<Output = Result<Option<AttestationRecord>, InventoryError>> + Send;
    /// The images of a namespace, as far as they are known at once.
    fn images(&self, namespace: &str) -> Vec<Arc<MeasuredImage>>;
    /// Writes a record that was planned from `existing`.
    fn write_record(
        &self,
        record: &AttestationRecord,
        existing: Option<&AttestationRecord>,
    ) -> impl Future<Output = Result<(), InventoryError>> + Send;
    /// What is known of a node's processor, as far as it is known at once. An inventory
    /// without nodes knows nothing.
    fn node_trust(&self, _node: &str) -> Option<Arc<NodeTrust>> {
        None
    }
    /// Writes what is known of a node's processor; nothing, where there is no such node.
    fn write_node_trust(
        &self,
        _trust: &NodeTrust,
    ) -> impl Future<Output = Result<(), InventoryError>> + Send {
        std::future::ready(Ok(()))
    }
    /// How far it is from what people wrote.
    fn health(&self) -> InventoryHealth {
        InventoryHealth::default()
    }
    /// Tells people. Must not fail the operation.
    fn notify(
        &self,
        namespace: &str,
        pod: &PodReference,
        notice: Notice,
    ) -> impl Future<Output = ()> + Send;
}
