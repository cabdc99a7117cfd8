//! What the gate reads: stores only, so that a decision takes microseconds.

use std::sync::Arc;

use assay_crds::v1alpha1::{AttestationPolicy, AttestationRecord, MeasuredImage};
use assay_tee::Sha256Digest;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::decide::{Facts, PodFacts};
use crate::context::{Stores, find};

/// What was read about one pod.
pub(super) struct Observed {
    pod: PodFacts,
    record: Option<Arc<AttestationRecord>>,
    image: Option<Arc<MeasuredImage>>,
    policy: Option<Arc<AttestationPolicy>>,
    policy_hash: Option<Sha256Digest>,
    simulation: bool,
}

/// A pod's record has the pod's name. Image and policy are those that the record
/// names: the ones that the guest was accepted under. A deployment that moves on
/// to others leaves its older pods in place until the new ones are attested.
pub(super) fn observe(pod: &Pod, stores: &Stores, simulation: bool) -> Observed {
    let namespace = pod.namespace().unwrap_or_default();
    let record = find(&stores.records, &namespace, &pod.name_any());
    let image = record
        .as_ref()
        .and_then(|record| find(&stores.images, &namespace, &record.spec.image_ref.name));
    let policy = record
        .as_ref()
        .and_then(|record| find(&stores.policies, &namespace, &record.spec.policy_ref.name));
    Observed {
        pod: PodFacts {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            deployment: pod
                .labels()
                .get(assay_crds::names::DEPLOYMENT_LABEL)
                .cloned(),
        },
        policy_hash: policy.as_ref().and_then(|policy| policy.spec.hash().ok()),
        record,
        image,
        policy,
        simulation,
    }
}

impl Observed {
    pub(super) fn facts(&self) -> Facts<'_> {
        Facts {
            pod: &self.pod,
            record: self.record.as_deref(),
            image: self.image.as_deref(),
            policy: self.policy.as_deref(),
            policy_hash: self.policy_hash,
            simulation: self.simulation,
        }
    }
}
