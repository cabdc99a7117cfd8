//! What a quote says, for verdicts.

use std::fmt;

use assay_tee::td_quote::TdQuote;
use assay_tee::{Sha256Digest, Sha384Digest};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha384};

/// What a quote says. Believe it only in an accepted verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TdClaims {
    /// VERSION of the quote.
    pub version: u16,
    /// MRTD.
    pub mr_td: Sha384Digest,
    /// RTMR0 to RTMR3.
    pub rtmrs: [Sha384Digest; 4],
    /// MRSEAM.
    pub mr_seam: Sha384Digest,
    /// TDATTRIBUTES, hex, as the bytes lie.
    pub td_attributes: String,
    /// XFAM, hex, as the bytes lie.
    pub xfam: String,
    /// TEE_TCB_SVN, hex.
    pub tee_tcb_svn: String,
    /// MRCONFIGID, hex.
    pub mr_config_id: String,
    /// MROWNER, hex.
    pub mr_owner: String,
    /// MROWNERCONFIG, hex.
    pub mr_owner_config: String,
    /// REPORTDATA, hex.
    pub report_data: String,
    /// SHA-384 of the signed part, hex: names the quote. The signature does not
    /// take part, because there are two valid ones for every quote.
    pub quote_digest: String,
    /// What collateral says of the platform, where it could be verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformClaims>,
}

/// What Intel's collateral says of a platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformClaims {
    /// Status of the TCB, platform, TDX module and quoting enclave together.
    pub tcb_status: TcbStatus,
    /// Date of the TCB level, RFC 3339.
    pub tcb_date: String,
    /// Advisories that the TCB levels name.
    pub advisories: Vec<String>,
    /// The lesser tcbEvaluationDataNumber of TCB info and QE identity.
    pub tcb_evaluation: u32,
    /// FMSPC, hex: the model of the platform.
    pub fmspc: String,
    /// SHA-256 of the PPID: names the platform without giving away its identity.
    pub platform: Sha256Digest,
}

impl TdClaims {
    pub(crate) fn of(quote: &TdQuote<'_>) -> Self {
        let report = quote.report;
        Self {
            version: quote.header.version.get(),
            mr_td: Sha384Digest::new(report.mr_td),
            rtmrs: report.rtmrs.map(Sha384Digest::new),
            mr_seam: Sha384Digest::new(report.mr_seam),
            td_attributes: hex::encode(report.td_attributes),
            xfam: hex::encode(report.xfam),
            tee_tcb_svn: hex::encode(report.tee_tcb_svn),
            mr_config_id: hex::encode(report.mr_config_id),
            mr_owner: hex::encode(report.mr_owner),
            mr_owner_config: hex::encode(report.mr_owner_config),
            report_data: hex::encode(report.report_data),
            quote_digest: hex::encode(Sha384::digest(quote.signed_bytes)),
            platform: None,
        }
    }
}

/// The status of a platform's TCB in Intel's TCB info, converged with that of the
/// TDX module and the quoting enclave. `Revoked` is not among them: nothing
/// accepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TcbStatus {
    /// Nothing is missing.
    UpToDate,
    /// Software has to be hardened.
    SWHardeningNeeded,
    /// The platform has to be configured.
    ConfigurationNeeded,
    /// Both of these.
    ConfigurationAndSWHardeningNeeded,
    /// Firmware or microcode is missing.
    OutOfDate,
    /// And the platform has to be configured.
    OutOfDateConfigurationNeeded,
    /// The TDX module is up to date now and was not when the TD was launched.
    TDRelaunchAdvised,
    /// And the platform has to be configured.
    TDRelaunchAdvisedConfigurationNeeded,
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name is the specification's.
        write!(f, "{self:?}")
    }
}
