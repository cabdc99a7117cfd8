//! The plan of one reconciliation: what to write, what to say, when to return.

use assay_crds::conditions;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use crate::manifest::{Manifest, Orphan};

/// What a reconciliation is going to do. Made by a pure function, carried out by
/// [`crate::apply`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan<S> {
    /// Children to write, in this order.
    pub writes: Vec<Manifest>,
    /// Children to delete, after the writes.
    pub deletes: Vec<Orphan>,
    /// The status, complete.
    pub status: S,
    /// Events to publish.
    pub events: Vec<Note>,
    /// When to reconcile again if nothing changes.
    pub requeue: Requeue,
    /// What has to happen before this can go on, for the log.
    pub waiting_on: Option<String>,
}

/// When to reconcile again if nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Requeue {
    /// At this moment, at which something changes by itself.
    At(Timestamp),
    /// In the regular pass over all objects.
    Resync,
}

/// An event to publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Whether somebody should look at it.
    pub warning: bool,
    /// The cause, CamelCase.
    pub reason: String,
    /// What the operator was doing: the condition that changed.
    pub action: String,
    /// A sentence for a person.
    pub message: String,
}

/// Longest note of an event (events.k8s.io/v1, Event.note).
const MAX_NOTE_LEN: usize = 1024;

/// How much a condition's change is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A step on an ordinary way: none.
    Quiet,
    /// Good to know.
    Normal,
    /// Somebody should look at it.
    Warning,
}

/// Events for the conditions of `types` whose status or reason has changed.
pub fn transitions(
    old: &[Condition],
    new: &[Condition],
    types: &[&str],
    severity: impl Fn(&Condition) -> Severity,
) -> Vec<Note> {
    let changed = |condition: &&Condition| {
        conditions::find(old, &condition.type_).is_none_or(|before| {
            (&before.status, &before.reason) != (&condition.status, &condition.reason)
        })
    };
    types
        .iter()
        .filter_map(|type_| conditions::find(new, type_))
        .filter(changed)
        .filter(|condition| severity(condition) != Severity::Quiet)
        .map(|condition| Note {
            warning: severity(condition) == Severity::Warning,
            reason: condition.reason.clone(),
            action: condition.type_.clone(),
            message: condition.message.chars().take(MAX_NOTE_LEN).collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use assay_crds::conditions::{ConditionState, ConditionStatus, merge};

    use super::*;

    fn ready(status: ConditionStatus, reason: &'static str, message: &str) -> Vec<Condition> {
        let state = ConditionState {
            type_: "Ready",
            status,
            reason,
            message: message.to_owned(),
        };
        merge(&[], &[state], Some(1), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn only_a_change_of_status_or_reason_is_an_event() {
        let old = ready(ConditionStatus::False, "Building", "step 1");
        let same = ready(ConditionStatus::False, "Building", "step 2");
        let warn = |_: &Condition| Severity::Warning;
        assert!(transitions(&old, &same, &["Ready"], warn).is_empty());
        let failed = ready(ConditionStatus::False, "BuildFailed", "no space");
        let notes = transitions(&old, &failed, &["Ready"], warn);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].warning);
        assert_eq!(notes[0].message, "no space");
        assert!(transitions(&old, &failed, &["Ready"], |_| Severity::Quiet).is_empty());
        let well = ready(ConditionStatus::True, "Published", &"x".repeat(5_000));
        let notes = transitions(&old, &well, &["Ready"], |_| Severity::Normal);
        assert!(!notes[0].warning);
        assert_eq!(notes[0].message.len(), MAX_NOTE_LEN);
    }
}
