//! The ledger of an appraisal: every check is entered once, and what was not
//! entered counts as skipped. Acceptance is computed from the entries alone, so
//! a check that is forgotten or cannot be reached rejects.

use std::collections::BTreeMap;
use std::fmt;

use crate::verdict::{Check, CheckName, CheckResult, Outcome, ReasonCode};

/// What came of a check, before it has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    result: CheckResult,
    reason: Option<ReasonCode>,
    expected: Option<String>,
    observed: Option<String>,
}

impl Finding {
    pub(crate) fn pass(observed: impl Into<String>) -> Self {
        Self {
            result: CheckResult::Pass,
            reason: None,
            expected: None,
            observed: Some(observed.into()),
        }
    }

    pub(crate) fn fail(reason: ReasonCode) -> Self {
        Self {
            result: CheckResult::Fail,
            reason: Some(reason),
            expected: None,
            observed: None,
        }
    }

    /// Not applicable; `why` says what does without the check.
    pub(crate) fn not_applicable(why: impl Into<String>) -> Self {
        Self {
            result: CheckResult::NotApplicable,
            reason: None,
            expected: None,
            observed: Some(why.into()),
        }
    }

    /// Passes when `holds`.
    pub(crate) fn require(
        holds: bool,
        reason: ReasonCode,
        expected: impl Into<String>,
        observed: impl Into<String>,
    ) -> Self {
        let finding = if holds {
            Self::pass(observed)
        } else {
            Self::fail(reason).observed(observed)
        };
        finding.expected(expected)
    }

    pub(crate) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub(crate) const fn reason(&self) -> Option<ReasonCode> {
        self.reason
    }

    pub(crate) fn observed(mut self, observed: impl Into<String>) -> Self {
        self.observed = Some(observed.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = self.expected.as_ref();
        let parts = [
            self.reason.map(|reason| reason.to_string()),
            expected.map(|expected| format!("expected {expected}")),
            self.observed.clone(),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join("; "))
    }
}

/// The checks of one appraisal.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<CheckName, Check>);

impl Ledger {
    /// Enters a check. A second entry of one name can only make it worse.
    pub(crate) fn enter(&mut self, name: CheckName, finding: Finding) {
        let Finding {
            result,
            reason,
            expected,
            observed,
        } = finding;
        let check = Check {
            name,
            result,
            reason,
            expected,
            observed,
        };
        let failed = |check: &Check| check.result == CheckResult::Fail;
        if !self.0.get(&name).is_some_and(failed) {
            self.0.insert(name, check);
        }
    }

    /// Enters a check whose success gives a value; returns it.
    pub(crate) fn take<T>(
        &mut self,
        name: CheckName,
        result: Result<(T, Finding), Finding>,
    ) -> Option<T> {
        match result {
            Ok((value, finding)) => {
                self.enter(name, finding);
                Some(value)
            }
            Err(finding) => {
                self.enter(name, finding);
                None
            }
        }
    }

    /// The checks of `names` in order, those without an entry as skipped, and the
    /// outcome. An entry that `names` lacks is appended, and counts.
    pub(crate) fn conclude(mut self, names: &[CheckName]) -> (Outcome, Vec<Check>) {
        let mut checks: Vec<Check> = names
            .iter()
            .map(|&name| {
                self.0.remove(&name).unwrap_or(Check {
                    name,
                    result: CheckResult::Skipped,
                    reason: Some(ReasonCode::EarlierCheckFailed),
                    expected: None,
                    observed: None,
                })
            })
            .collect();
        checks.extend(self.0.into_values());
        let good =
            |check: &Check| matches!(check.result, CheckResult::Pass | CheckResult::NotApplicable);
        let outcome = if checks.iter().all(good) {
            Outcome::Accepted
        } else {
            Outcome::Rejected
        };
        (outcome, checks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_entry_rejects() {
        let mut ledger = Ledger::default();
        for &name in CheckName::ALL.iter().skip(1) {
            ledger.enter(name, Finding::pass(""));
        }
        let (outcome, checks) = ledger.conclude(CheckName::ALL);
        assert_eq!(outcome, Outcome::Rejected);
        assert_eq!(checks[0].result, CheckResult::Skipped);
        assert_eq!(checks.len(), CheckName::ALL.len());
    }

    #[test]
    fn a_failure_cannot_be_overwritten() {
        let mut ledger = Ledger::default();
        for &name in CheckName::ALL {
            ledger.enter(name, Finding::fail(ReasonCode::TcbTooOld));
            ledger.enter(name, Finding::pass(""));
        }
        let (outcome, checks) = ledger.conclude(CheckName::ALL);
        assert_eq!(outcome, Outcome::Rejected);
        assert!(
            checks
                .iter()
                .all(|check| check.reason == Some(ReasonCode::TcbTooOld))
        );
    }
}
