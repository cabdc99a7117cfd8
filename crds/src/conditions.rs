//! Conditions: states that a person reads and a controller reports.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// A condition before it is merged into a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionState {
    /// The state's name, such as `Ready`.
    pub type_: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: ConditionStatus,
    /// The cause, CamelCase, from the kind's enum of reasons.
    pub reason: &'static str,
    /// A sentence for a person.
    pub message: String,
}

/// The three values of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionStatus {
    /// The state holds.
    True,
    /// The state does not hold.
    False,
    /// It cannot be said.
    Unknown,
}

impl ConditionStatus {
    /// As the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Merges `states` into `conditions`: `lastTransitionTime` moves only when the
/// status flips, conditions of types that are not in `states` are kept.
pub fn merge(
    conditions: &[Condition],
    states: &[ConditionState],
    observed_generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut merged: Vec<Condition> = conditions
        .iter()
        .filter(|old| states.iter().all(|new| new.type_ != old.type_))
        .cloned()
        .collect();
    for state in states {
        let since = conditions
            .iter()
            .find(|old| old.type_ == state.type_ && old.status == state.status.as_str())
            .map_or(Time(now), |old| old.last_transition_time.clone());
        merged.push(Condition {
            type_: state.type_.to_owned(),
            status: state.status.as_str().to_owned(),
            reason: state.reason.to_owned(),
            message: state.message.clone(),
            observed_generation,
            last_transition_time: since,
        });
    }
    merged.sort_by(|a, b| a.type_.cmp(&b.type_));
    merged
}

/// Looks a condition up by type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Declares a kind's reasons: an enum whose names are the API's spelling.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// As the API spells it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                }
            }
        }
    };
}
pub(crate) use reasons;

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: ConditionStatus, message: &str) -> ConditionState {
        ConditionState {
            type_: "Ready",
            status,
            reason: "Because",
            message: message.to_owned(),
        }
    }

    #[test]
    fn transition_time_moves_only_when_the_status_flips() {
        let first = merge(
            &[],
            &[state(ConditionStatus::True, "a")],
            Some(1),
            Timestamp::UNIX_EPOCH,
        );
        let later = Timestamp::from_second(60).unwrap();
        let same = merge(&first, &[state(ConditionStatus::True, "b")], Some(2), later);
        assert_eq!(same[0].last_transition_time, Time(Timestamp::UNIX_EPOCH));
        assert_eq!(same[0].message, "b");
        let flipped = merge(&same, &[state(ConditionStatus::False, "b")], Some(2), later);
        assert_eq!(flipped[0].last_transition_time, Time(later));
    }

    #[test]
    fn foreign_conditions_are_kept() {
        let mut foreign = merge(
            &[],
            &[state(ConditionStatus::True, "")],
            None,
            Timestamp::UNIX_EPOCH,
        );
        foreign[0].type_ = "example.com/Audited".to_owned();
        let merged = merge(
            &foreign,
            &[state(ConditionStatus::True, "")],
            None,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(merged.len(), 2);
        assert!(find(&merged, "example.com/Audited").is_some());
    }
}
