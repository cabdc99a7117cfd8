//! The appraisal policy for TDX: what of a genuine quote is acceptable.
//!
//! What no policy can allow has no field here: a TD that the host may debug,
//! profile or migrate, a bound service TD, and a revoked TCB.

use serde::{Deserialize, Serialize};

use crate::td_claims::TcbStatus;

/// What a genuine quote must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TdxPolicy {
    /// TCB statuses to accept. An empty list accepts nothing.
    pub tcb_statuses: Vec<TcbStatus>,
    /// Advisories of Intel's, such as `INTEL-SA-00837`, that refuse a platform
    /// whose TCB level names them.
    #[serde(default)]
    pub refused_advisories: Vec<String>,
    /// The least tcbEvaluationDataNumber of TCB info and QE identity: the newest
    /// that was ever seen, so that no older collateral takes its place.
    #[serde(default)]
    pub minimum_tcb_evaluation: u32,
}

impl Default for TdxPolicy {
    /// Up to date, whatever advisories there are.
    fn default() -> Self {
        Self {
            tcb_statuses: vec![TcbStatus::UpToDate],
            refused_advisories: Vec::new(),
            minimum_tcb_evaluation: 0,
        }
    }
}
