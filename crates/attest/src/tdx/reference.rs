//! Reference values of TDs: MRTD and the RTMRs.

use assay_tee::Sha384Digest;
use assay_tee::td_quote::TdReport;

use crate::ledger::Finding;
use crate::reference::ReferenceState;
use crate::verdict::ReasonCode;

/// What a register must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedRegister {
    /// Anything: the verdict says that it was not compared.
    Any,
    /// Exactly this.
    Value(Sha384Digest),
}

/// A known TD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReferenceValue {
    /// What the digests are of, for people and records: unique in its set.
    pub id: String,
    /// MRTD.
    pub mr_td: ExpectedRegister,
    /// RTMR0 to RTMR3.
    pub rtmrs: [ExpectedRegister; 4],
    /// Whether evidence with them is acceptable.
    pub state: ReferenceState,
}

/// The known TDs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TdReferenceValues(pub Vec<TdReferenceValue>);

impl ExpectedRegister {
    fn admits(self, found: &[u8; 48]) -> bool {
        match self {
            Self::Any => true,
            Self::Value(value) => value.as_bytes() == found,
        }
    }
}

impl TdReferenceValue {
    fn admits_rtmrs(&self, report: &TdReport) -> bool {
        let pairs = self.rtmrs.iter().zip(&report.rtmrs);
        pairs.into_iter().all(|(rule, found)| rule.admits(found))
    }

    fn first_wrong_rtmr(&self, report: &TdReport) -> Option<String> {
        let pairs = self.rtmrs.iter().zip(&report.rtmrs);
        pairs
            .enumerate()
            .find_map(|(index, (rule, found))| match rule {
                ExpectedRegister::Value(value) if !rule.admits(found) => {
                    Some(format!("RTMR{index} {value}"))
                }
                _ => None,
            })
    }
}

/// What came of MRTD and the RTMRs.
pub(super) struct Measured<'a> {
    pub(super) reference: Option<&'a TdReferenceValue>,
    pub(super) measurement: Finding,
    pub(super) rtmrs: Option<Finding>,
}

impl TdReferenceValues {
    /// Decides by the entries whose MRTD is the report's: a revoked one before
    /// any other, then an accepted one, then a retiring, then a proposed one. An
    /// entry of which an RTMR differs is another TD, and decides nothing while
    /// there is one that agrees.
    pub(super) fn measure(&self, report: &TdReport) -> Measured<'_> {
        let weight = |value: &&TdReferenceValue| match value.state {
            ReferenceState::Revoked => 0,
            ReferenceState::Accepted => 1,
            ReferenceState::Retiring => 2,
            ReferenceState::Proposed => 3,
        };
        let same = || {
            self.0
                .iter()
                .filter(|value| value.mr_td.admits(&report.mr_td))
        };
        let whole = same().filter(|value| value.admits_rtmrs(report));
        let reference = whole
            .min_by_key(weight)
            .or_else(|| same().min_by_key(weight));
        let observed = Sha384Digest::new(report.mr_td).to_string();
        let Some(reference) = reference else {
            let expected = format!("one of {} reference values", self.0.len());
            let finding = Finding::fail(ReasonCode::MeasurementUnknown);
            return Measured {
                reference: None,
                measurement: finding.expected(expected).observed(observed),
                rtmrs: None,
            };
        };
        let fail = |reason| Finding::fail(reason).observed(observed.clone());
        let measurement = match reference.state {
            ReferenceState::Accepted | ReferenceState::Retiring => match reference.mr_td {
                ExpectedRegister::Value(_) => {
                    Finding::pass(observed.clone()).expected(reference.id.clone())
                }
                ExpectedRegister::Any => Finding::not_applicable(observed.clone()).expected("any"),
            },
            ReferenceState::Proposed => fail(ReasonCode::MeasurementProposed),
            ReferenceState::Revoked => fail(ReasonCode::MeasurementRevoked),
        };
        Measured {
            reference: Some(reference),
            measurement,
            rtmrs: Some(reference.check_rtmrs(report)),
        }
    }
}

impl TdReferenceValue {
    fn check_rtmrs(&self, report: &TdReport) -> Finding {
        if let Some(expected) = self.first_wrong_rtmr(report) {
            let found: Vec<_> = report.rtmrs.iter().map(hex::encode).collect();
            return Finding::fail(ReasonCode::RtmrMismatch)
                .expected(expected)
                .observed(found.join(", "));
        }
        let any = |(index, rule): (usize, &ExpectedRegister)| {
            (*rule == ExpectedRegister::Any).then(|| format!("RTMR{index}"))
        };
        let uncompared: Vec<_> = self.rtmrs.iter().enumerate().filter_map(any).collect();
        match uncompared.len() {
            0 => Finding::pass("RTMR0 to RTMR3"),
            4 => Finding::not_applicable("no RTMR is compared").expected("any"),
            _ => Finding::pass(format!("{} not compared", uncompared.join(", "))),
        }
    }
}
