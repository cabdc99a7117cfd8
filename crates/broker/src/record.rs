//! What an appraisal makes of the pod's AttestationRecord.

use std::collections::BTreeMap;

use assay_crds::conditions::{ConditionState, merge};
use assay_crds::names::{DEPLOYMENT_LABEL, IMAGE_LABEL};
use assay_crds::v1alpha1::AttestationRecord;
use assay_crds::v1alpha1::attestation_record::{AttestationRecordStatus, HistoryEntry, Verdict};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::appraisal::Appraisal;

/// Earlier verdicts that a record keeps.
const MAX_HISTORY: usize = 10;

/// Why an appraisal is not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// A newer appraisal of the pod is recorded.
    #[error("a newer appraisal of the pod is recorded")]
    Older,
    /// The pod has an acceptance in force, and nothing shows that the rejected
    /// evidence came from its guest. Anyone who can reach the broker could
    /// otherwise take a pod out of its Services by sending noise in its name.
    #[error("rejected evidence that is not authentic does not displace an acceptance")]
    NotAuthentic,
}

/// The record after `appraisal`, given the one before.
///
/// # Errors
/// When the record must stay as it is.
pub fn plan_record(
    namespace: &str,
    appraisal: &Appraisal,
    existing: Option<&AttestationRecord>,
) -> Result<AttestationRecord, NotRecorded> {
    // A record of an earlier pod of the same name says nothing about this one.
    let predecessor = existing
        .filter(|record| record.spec.pod_ref.uid == appraisal.spec.pod_ref.uid)
        .and_then(|record| record.status.as_ref());
    if let Some(status) = predecessor {
        check_displaces(appraisal, status)?;
    }
    let mut record = AttestationRecord::new(&appraisal.spec.pod_ref.name, appraisal.spec.clone());
    record.metadata.namespace = Some(namespace.to_owned());
    record.metadata.labels = Some(BTreeMap::from([
        (
            DEPLOYMENT_LABEL.to_owned(),
            appraisal.spec.deployment_ref.name.clone(),
        ),
        (
            IMAGE_LABEL.to_owned(),
            appraisal.spec.image_ref.name.clone(),
        ),
    ]));
    record.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: appraisal.spec.pod_ref.name.clone(),
        uid: appraisal.spec.pod_ref.uid.clone(),
        controller: Some(false),
        block_owner_deletion: Some(false),
    }]);
    let mut status = appraisal.status.clone();
    status.history = predecessor.map(history).unwrap_or_default();
    let ready = ConditionState {
        type_: "Ready",
        status: appraisal.is_accepted().into(),
        reason: if appraisal.is_accepted() {
            "Accepted"
        } else {
            "Rejected"
        },
        message: match &status.diagnosis {
            Some(diagnosis) => format!("{}: {}", status.reason, diagnosis.message),
            None => status.reason.clone(),
        },
    };
    let before = predecessor.map_or(&[][..], |status| &status.conditions);
    status.conditions = merge(before, &[ready], None, status.verified_at.0);
    record.status = Some(status);
    Ok(record)
}

fn check_displaces(
    appraisal: &Appraisal,
    existing: &AttestationRecordStatus,
) -> Result<(), NotRecorded> {
    let now = appraisal.status.verified_at.0;
    if existing.verified_at.0 > now {
        return Err(NotRecorded::Older);
    }
    if !appraisal.is_accepted() && !appraisal.authentic && is_in_force(existing, now) {
        return Err(NotRecorded::NotAuthentic);
    }
    Ok(())
}

/// Whether a record's acceptance holds at `now`.
pub fn is_in_force(status: &AttestationRecordStatus, now: Timestamp) -> bool {
    status.verdict == Verdict::Accepted
        && status
            .expires_at
            .as_ref()
            .is_some_and(|expiry| now < expiry.0)
}

fn history(status: &AttestationRecordStatus) -> Vec<HistoryEntry> {
    let latest = HistoryEntry {
        verified_at: status.verified_at.clone(),
        verdict: status.verdict,
        reason: status.reason.clone(),
    };
    std::iter::once(latest)
        .chain(status.history.iter().cloned())
        .take(MAX_HISTORY)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use jiff::ToSpan as _;

    fn appraisal() -> Appraisal {
        fixtures::accepted()
    }

    fn rejected(authentic: bool) -> Appraisal {
        let mut appraisal = appraisal();
        appraisal.status.verdict = Verdict::Rejected;
        appraisal.status.reason = "MeasurementUnknown".to_owned();
        appraisal.status.expires_at = None;
        appraisal.authentic = authentic;
        appraisal
    }

    fn later(mut appraisal: Appraisal, seconds: i64) -> Appraisal {
        appraisal.status.verified_at.0 += seconds.seconds();
        appraisal
    }

    #[test]
    fn a_first_record_is_owned_by_the_pod() {
        let record = plan_record(fixtures::NAMESPACE, &appraisal(), None).unwrap();
        let owner = &record.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(owner.uid, fixtures::POD_UID);
        assert_eq!(owner.controller, Some(false));
        assert_eq!(owner.block_owner_deletion, Some(false));
        let status = record.status.unwrap();
        assert_eq!(status.history, []);
        assert_eq!(status.conditions[0].status, "True");
    }

    #[test]
    fn history_is_newest_first_and_bounded() {
        let mut record = plan_record(fixtures::NAMESPACE, &appraisal(), None).unwrap();
        for round in 1..=15 {
            let next = later(rejected(true), round);
            record = plan_record(fixtures::NAMESPACE, &next, Some(&record)).unwrap();
        }
        let history = record.status.unwrap().history;
        assert_eq!(history.len(), MAX_HISTORY);
        assert!(
            history
                .windows(2)
                .all(|pair| pair[0].verified_at > pair[1].verified_at)
        );
    }

    #[test]
    fn an_older_appraisal_does_not_overwrite() {
        let newer = plan_record(fixtures::NAMESPACE, &later(appraisal(), 1), None).unwrap();
        let plan = plan_record(fixtures::NAMESPACE, &appraisal(), Some(&newer));
        assert_eq!(plan, Err(NotRecorded::Older));
    }

    #[test]
    fn noise_does_not_displace_an_acceptance() {
        let accepted = plan_record(fixtures::NAMESPACE, &appraisal(), None).unwrap();
        let noise = later(rejected(false), 1);
        assert_eq!(
            plan_record(fixtures::NAMESPACE, &noise, Some(&accepted)),
            Err(NotRecorded::NotAuthentic)
        );
        let genuine = later(rejected(true), 1);
        let record = plan_record(fixtures::NAMESPACE, &genuine, Some(&accepted)).unwrap();
        assert_eq!(record.status.unwrap().verdict, Verdict::Rejected);
        // Once the acceptance is over, the rejection explains what is wrong.
        let late = later(rejected(false), 1_000_000);
        assert!(plan_record(fixtures::NAMESPACE, &late, Some(&accepted)).is_ok());
    }

    #[test]
    fn a_record_of_another_pod_is_replaced_without_its_history() {
        let mut other = later(appraisal(), 100);
        other.spec.pod_ref.uid = "earlier".to_owned();
        let existing = plan_record(fixtures::NAMESPACE, &other, None).unwrap();
        let record = plan_record(fixtures::NAMESPACE, &rejected(false), Some(&existing)).unwrap();
        assert_eq!(record.status.unwrap().history, []);
    }
}
