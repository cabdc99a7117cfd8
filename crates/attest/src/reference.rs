//! Reference values: the launch digests that are known.

use assay_tee::LaunchDigest;
use serde::{Deserialize, Serialize};

/// A known launch digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceValue {
    /// What the digest is of, for people and records: unique in its set.
    pub id: String,
    /// The launch digest.
    pub digest: LaunchDigest,
    /// Whether evidence with it is acceptable.
    pub state: ReferenceState,
}

/// Whether evidence with a known launch digest is acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReferenceState {
    /// Not yet.
    Proposed,
    /// Yes.
    Accepted,
    /// Yes, for as long as something still runs with it.
    Retiring,
    /// No, never again.
    Revoked,
}

/// The set of known launch digests. A digest may be listed more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReferenceValues(pub Vec<ReferenceValue>);

impl ReferenceValues {
    /// The entry that decides about `digest`: a revoked one before any other,
    /// then an accepted one, then a retiring, then a proposed one.
    pub fn find(&self, digest: LaunchDigest) -> Option<&ReferenceValue> {
        let weight = |value: &&ReferenceValue| match value.state {
            ReferenceState::Revoked => 0,
            ReferenceState::Accepted => 1,
            ReferenceState::Retiring => 2,
            ReferenceState::Proposed => 3,
        };
        self.0
            .iter()
            .filter(|value| value.digest == digest)
            .min_by_key(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revocation_beats_every_other_entry() {
        let digest = LaunchDigest::new([1; 48]);
        let entry = |id: &str, state| ReferenceValue {
            id: id.to_owned(),
            digest,
            state,
        };
        let mut values = ReferenceValues(vec![
            entry("a", ReferenceState::Proposed),
            entry("b", ReferenceState::Retiring),
        ]);
        assert_eq!(values.find(digest).unwrap().id, "b");
        values.0.push(entry("c", ReferenceState::Accepted));
        assert_eq!(values.find(digest).unwrap().id, "c");
        values.0.push(entry("d", ReferenceState::Revoked));
        assert_eq!(values.find(digest).unwrap().id, "d");
        assert_eq!(values.find(LaunchDigest::new([2; 48])), None);
    }
}
