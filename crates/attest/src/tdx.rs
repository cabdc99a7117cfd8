//! Appraisal of TDX evidence: a TD quote and Intel's collateral in, the same kind
//! of verdict out as for SNP.
//!
//! Intel's rules are many, and one crate has them all: dcap-qvl must accept quote
//! and collateral (the check `DcapVerification`). The checks around it are made
//! here from the same bytes, so that a refusal has a name, so that the policy is
//! this program's, and so that a mistake of either is not enough.
//!
//! Formats and rules: Intel TDX DCAP Quoting Library API, Intel TDX Module ABI,
//! Intel PCS API version 4.

mod collateral;
mod dcap;
mod enclave;
mod policy;
mod reference;

use assay_tee::Sha256Digest;
use assay_tee::td_quote::{ParseQuoteError, TdAttributes, TdQuote};
use jiff::Timestamp;

use crate::certificate::Certificate;
use crate::crypto;
use crate::domain::TrustDomain;
use crate::ledger::{Finding, Ledger};
use crate::verdict::{CheckName, ReasonCode, Verdict};
use collateral::{Collateral, parse_chain};

pub use crate::td_claims::{PlatformClaims, TcbStatus, TdClaims};
pub use policy::TdxPolicy;
pub use reference::{ExpectedRegister, TdReferenceValue, TdReferenceValues};

/// DER of Intel's root; `anchors/README.md` says where it comes from.
const INTEL_ROOT: &[u8] = include_bytes!("anchors/intel.root.der");
/// Common name of a PCK certificate (Intel PCK certificate profile, 3.2).
const PCK_NAME: &str = "Intel SGX PCK Certificate";

/// Evidence of one TD, as it arrived: all of it is untrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuoteEvidence {
    /// The TD quote, byte for byte, with its PCK certificate chain inside.
    pub quote: Vec<u8>,
    /// Intel's collateral for the platform, if it was obtained: JSON with the
    /// members `tcb_info`, `qe_identity`, `root_ca_crl`, `pck_crl`, signatures and
    /// chains.
    pub collateral: Option<Vec<u8>>,
}

/// What the quote must contain, so that it is this TD's and fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdBinding {
    /// REPORTDATA: binds nonce and session key.
    pub report_data: [u8; 64],
    /// MRCONFIGID: binds the instance data.
    pub mr_config_id: [u8; 48],
    /// MROWNER: zeros where the host names no owner.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG: zeros where the host names none.
    pub mr_owner_config: [u8; 48],
}

/// Appraises TDX evidence.
///
/// # Guarantees
/// - The verdict lists every check of [`CheckName::TDX`], in order.
/// - It is accepted only when each passed, or is one that the reference values
///   visibly do without.
/// - A TD that can be debugged, profiled or migrated, or that has a service TD, is
///   refused under every policy; so is a revoked TCB.
///
/// # Assumptions
/// - `binding` was computed by the caller from its own nonce and from the
///   instance data that it accepted, never from the quote.
/// - The caller uses every nonce once. This function keeps no state and cannot
///   see a replay.
pub fn appraise_quote(
    evidence: &QuoteEvidence,
    reference_values: &TdReferenceValues,
    policy: &TdxPolicy,
    binding: &TdBinding,
    now: Timestamp,
) -> Verdict {
    let mut ledger = Ledger::default();
    let quote = TdQuote::parse(&evidence.quote)
        .map(|quote| {
            let shown = format!("version {}", quote.header.version);
            (quote, Finding::pass(shown))
        })
        .map_err(malformed);
    let Some(quote) = ledger.take(CheckName::QuoteStructure, quote) else {
        return Verdict::unread(ledger.conclude(CheckName::TDX));
    };
    let report = quote.report;
    ledger.enter(CheckName::TdAttributes, check_attributes(&quote));

    let collateral = match &evidence.collateral {
        None => Err(Finding::fail(ReasonCode::CollateralMissing)),
        Some(json) => Collateral::parse(json),
    };
    let collateral = ledger.take(CheckName::Collateral, collateral);
    let pck_chain = parse_chain(quote.pck_chain).map_err(|error| {
        Finding::fail(ReasonCode::CertificateMalformed)
            .observed(format!("the quote's PCK certificate chain: {error}"))
    });
    let signers = || collateral.iter().flat_map(|collateral| &collateral.chains);
    // Without collateral the quote's own chain can still be told good from bad.
    let anchored = pck_chain.and_then(|chain| {
        signers().try_for_each(|chain| check_root(chain))?;
        check_root(&chain)?;
        Ok((chain, Finding::pass(root_digest().to_string())))
    });
    let mut pck = None;
    if let Some(chain) = ledger.take(CheckName::TrustAnchor, anchored) {
        let certificates = signers().flatten().chain(&chain);
        ledger.enter(CheckName::CertificateDates, check_dates(certificates, now));
        if ledger
            .take(CheckName::CertificateChain, check_chain(&chain))
            .is_some()
        {
            pck = chain.into_iter().next();
        }
    }
    if let Some(collateral) = &collateral {
        let finding = collateral.check_dates(policy.minimum_tcb_evaluation, now);
        ledger.enter(CheckName::CollateralDates, finding);
        if let Some(pck) = &pck {
            let finding = enclave::check(&quote, pck, &collateral.qe_identity);
            ledger.enter(CheckName::QeIdentity, finding);
        }
        let finding = enclave::check_seam(report, &collateral.tcb_info);
        ledger.enter(CheckName::SeamModule, finding);
    }
    ledger.enter(CheckName::QuoteSignature, check_signature(&quote));

    let (mut claims, mut trust_domain) = (TdClaims::of(&quote), None);
    if let Some((pck, collateral)) = pck.as_ref().zip(collateral.as_ref()) {
        let finding = dcap::check_tcb_level(&quote, pck, &collateral.tcb_info);
        ledger.enter(CheckName::TcbLevel, finding);
        let verified = dcap::verify(INTEL_ROOT, &evidence.quote, &collateral.raw, now);
        if let Some(platform) = ledger.take(CheckName::DcapVerification, verified) {
            trust_domain = Some(TrustDomain::Intel);
            ledger.enter(CheckName::TcbStatus, check_tcb_status(&platform, policy));
            ledger.enter(CheckName::Advisories, check_advisories(&platform, policy));
            claims.platform = Some(platform);
        }
    }

    check_binding(&quote, binding, &mut ledger);
    let measured = reference_values.measure(report);
    ledger.enter(CheckName::Measurement, measured.measurement);
    if let Some(finding) = measured.rtmrs {
        ledger.enter(CheckName::Rtmrs, finding);
    }
    let reference_value = measured.reference.map(|value| value.id.clone());
    let (outcome, checks) = ledger.conclude(CheckName::TDX);
    Verdict {
        outcome,
        trust_domain,
        checks,
        claims: None,
        td_claims: Some(claims),
        reference_value,
        revocation_list_number: None,
    }
}

fn malformed(error: ParseQuoteError) -> Finding {
    let reason = match error {
        ParseQuoteError::Version { .. } => ReasonCode::QuoteVersionUnknown,
        ParseQuoteError::TeeType { .. } => ReasonCode::QuoteTeeWrong,
        _ => ReasonCode::QuoteMalformed,
    };
    Finding::fail(reason).observed(error.to_string())
}

fn check_attributes(quote: &TdQuote<'_>) -> Finding {
    let attributes = quote.report.attributes();
    let service_td = quote
        .report_15
        .is_some_and(|tail| tail.mr_service_td != [0; 48]);
    let rows = [
        (
            attributes.has(TdAttributes::DEBUG),
            ReasonCode::DebugAllowed,
        ),
        (
            attributes.has(TdAttributes::PROFILING),
            ReasonCode::ProfilingAllowed,
        ),
        (
            attributes.has(TdAttributes::MIGRATABLE),
            ReasonCode::MigrationAllowed,
        ),
        (
            service_td || attributes.has(TdAttributes::SERVTD_EXT),
            ReasonCode::ServiceTdBound,
        ),
        (
            attributes.unknown() != 0 || !attributes.has(TdAttributes::SEPT_VE_DISABLE),
            ReasonCode::TdAttributesInvalid,
        ),
    ];
    let shown = format!("{:#x}", attributes.0);
    match rows.into_iter().find(|(holds, _)| *holds) {
        Some((_, reason)) => Finding::fail(reason).observed(shown),
        None => Finding::pass(shown),
    }
}

fn root_digest() -> Sha256Digest {
    Sha256Digest::of(INTEL_ROOT)
}

/// Checks that a chain ends in Intel's root, byte for byte.
fn check_root(chain: &[Certificate]) -> Result<(), Finding> {
    let found = chain.last().map(|root| root.fingerprint);
    let pinned = root_digest();
    if found == Some(pinned) {
        return Ok(());
    }
    let observed = found.map_or_else(|| "no certificate".to_owned(), |found| found.to_string());
    Err(Finding::fail(ReasonCode::RootUnknown)
        .expected(pinned.to_string())
        .observed(observed))
}

fn check_dates<'a>(
    mut certificates: impl Iterator<Item = &'a Certificate>,
    now: Timestamp,
) -> Finding {
    certificates
        .find_map(|certificate| certificate.check_dates(now).err())
        .unwrap_or_else(|| Finding::pass(now.to_string()))
}

/// Checks that the PCK chain is one: the leaf is a PCK, and each is issued by the
/// next.
fn check_chain(chain: &[Certificate]) -> Result<((), Finding), Finding> {
    let names: Vec<&str> = chain.iter().map(|one| &*one.common_name).collect();
    let shown = names.join(" < ");
    let fail = |reason| Finding::fail(reason).observed(shown.clone());
    if names.first() != Some(&PCK_NAME) {
        return Err(fail(ReasonCode::CertificateNameWrong).expected(PCK_NAME));
    }
    for (certificate, issuer) in chain.iter().zip(chain.iter().skip(1)) {
        issuer.check_authority().map_err(fail)?;
        certificate.verify_issued_by_p256(issuer).map_err(fail)?;
    }
    Ok(((), Finding::pass(shown)))
}

fn check_signature(quote: &TdQuote<'_>) -> Finding {
    let TdQuote {
        attestation_key,
        signature,
        signed_bytes,
        ..
    } = quote;
    match crypto::verify_ecdsa_p256_sha256(attestation_key, signed_bytes, signature) {
        Ok(()) => Finding::pass("by the attestation key"),
        Err(error) => Finding::fail(ReasonCode::QuoteSignatureInvalid).observed(error.to_string()),
    }
}

fn check_tcb_status(platform: &PlatformClaims, policy: &TdxPolicy) -> Finding {
    let status = platform.tcb_status;
    let allowed: Vec<_> = policy
        .tcb_statuses
        .iter()
        .map(TcbStatus::to_string)
        .collect();
    Finding::require(
        policy.tcb_statuses.contains(&status),
        ReasonCode::TcbStatusNotAllowed,
        format!("one of [{}]", allowed.join(", ")),
        format!("{status} of {}", platform.tcb_date),
    )
}

fn check_advisories(platform: &PlatformClaims, policy: &TdxPolicy) -> Finding {
    let refused = |advisory: &&String| {
        let mut named = policy.refused_advisories.iter();
        named.any(|named| named.eq_ignore_ascii_case(advisory))
    };
    match platform.advisories.iter().find(refused) {
        Some(advisory) => Finding::fail(ReasonCode::AdvisoryRefused).observed(advisory.clone()),
        None => Finding::pass(format!("[{}]", platform.advisories.join(", "))),
    }
}

fn check_binding(quote: &TdQuote<'_>, binding: &TdBinding, ledger: &mut Ledger) {
    let report = quote.report;
    let equal = |reason, expected: &[u8], observed: &[u8]| {
        let (expected_hex, observed_hex) = (hex::encode(expected), hex::encode(observed));
        Finding::require(expected == observed, reason, expected_hex, observed_hex)
    };
    let rows: [(_, _, &[u8], &[u8]); 4] = [
        (
            CheckName::ReportData,
            ReasonCode::ReportDataMismatch,
            &binding.report_data,
            &report.report_data,
        ),
        (
            CheckName::ConfigId,
            ReasonCode::ConfigIdMismatch,
            &binding.mr_config_id,
            &report.mr_config_id,
        ),
        (
            CheckName::Owner,
            ReasonCode::OwnerMismatch,
            &binding.mr_owner,
            &report.mr_owner,
        ),
        (
            CheckName::Owner,
            ReasonCode::OwnerMismatch,
            &binding.mr_owner_config,
            &report.mr_owner_config,
        ),
    ];
    for (name, reason, expected, observed) in rows {
        ledger.enter(name, equal(reason, expected, observed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(tcb_status: TcbStatus) -> PlatformClaims {
        PlatformClaims {
            tcb_status,
            tcb_date: "2024-11-13T00:00:00Z".to_owned(),
            advisories: vec!["INTEL-SA-01036".to_owned()],
            tcb_evaluation: 18,
            fmspc: "90c06f000000".to_owned(),
            platform: Sha256Digest::of(b"ppid"),
        }
    }

    #[test]
    fn a_tcb_status_is_accepted_by_name_alone() {
        let all = [
            TcbStatus::UpToDate,
            TcbStatus::SWHardeningNeeded,
            TcbStatus::ConfigurationNeeded,
            TcbStatus::ConfigurationAndSWHardeningNeeded,
            TcbStatus::OutOfDate,
            TcbStatus::OutOfDateConfigurationNeeded,
            TcbStatus::TDRelaunchAdvised,
            TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
        ];
        for found in all {
            for named in all {
                let policy = TdxPolicy {
                    tcb_statuses: vec![named],
                    ..TdxPolicy::default()
                };
                let reason = check_tcb_status(&platform(found), &policy).reason();
                let refused = (found != named).then_some(ReasonCode::TcbStatusNotAllowed);
                assert_eq!(reason, refused, "{found}, {named}");
            }
        }
        for text in ["Revoked", "upToDate", "out of date"] {
            let json = format!("{{\"tcbStatuses\":[\"{text}\"]}}");
            assert!(serde_json::from_str::<TdxPolicy>(&json).is_err(), "{text}");
        }
    }

    #[test]
    fn an_advisory_refuses_if_the_policy_names_it() {
        for (named, reason) in [
            ("INTEL-SA-01036", Some(ReasonCode::AdvisoryRefused)),
            ("intel-sa-01036", Some(ReasonCode::AdvisoryRefused)),
            ("INTEL-SA-0103", None),
        ] {
            let policy = TdxPolicy {
                refused_advisories: vec!["INTEL-SA-00001".to_owned(), named.to_owned()],
                ..TdxPolicy::default()
            };
            let found = check_advisories(&platform(TcbStatus::UpToDate), &policy);
            assert_eq!(found.reason(), reason, "{named}");
        }
    }
}
