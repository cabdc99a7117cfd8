//! Intel's own rules for quote and collateral, as the crate dcap-qvl has them: the
//! signatures on the collateral, revocation, and the TCB level of the platform.
//!
//! It gets the pinned root, the injected time and the cryptography of this
//! program; its network client and its built-in service are not compiled in.

use assay_tee::Sha256Digest;
use assay_tee::td_quote::TdQuote;
use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::intel::parse_pck_extension_with;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteClaims, QuoteCollateralV3, QuotePolicy, TcbInfo};
use jiff::Timestamp;
use rustls_pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest as _, Sha256, Sha384};

use crate::certificate::Certificate;
use crate::crypto;
use crate::ledger::Finding;
use crate::td_claims::{PlatformClaims, TcbStatus};
use crate::verdict::ReasonCode;

/// The parts that dcap-qvl leaves to its user.
struct Primitives;

impl Config for Primitives {
    type X509 = dcap_qvl::x509::X509CertBackend;
    type SigEncoder = dcap_qvl::signature::DerSigEncoder;
    type Crypto = Self;
}

impl CryptoProvider for Primitives {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        &EcdsaP256
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        Sha256::digest(data).into()
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        Sha384::digest(data).into()
    }
}

/// ECDSA on P-256 with SHA-256, the only algorithm of Intel's provisioning.
#[derive(Debug)]
struct EcdsaP256;

impl SignatureVerificationAlgorithm for EcdsaP256 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        crypto::verify_ecdsa_p256_sha256_der(public_key, message, signature)
            .map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

/// What the collateral says of the platform, if quote and collateral are genuine
/// under `root`, DER.
pub(super) fn verify(
    root: &[u8],
    quote: &[u8],
    collateral: &QuoteCollateralV3,
    now: Timestamp,
) -> Result<(PlatformClaims, Finding), Finding> {
    let refused = |why: String| Finding::fail(ReasonCode::DcapRefused).observed(why);
    let seconds = u64::try_from(now.as_second()).map_err(|error| refused(error.to_string()))?;
    // The policy is ours: see `check_tcb_status` and its neighbours.
    let claims = QuoteVerifier::<Primitives>::new_with_config(root.to_vec())
        .verify_with_policy(
            quote,
            collateral,
            seconds,
            &QuotePolicy::claims_only(seconds),
        )
        .map_err(|error| refused(format!("{error:#}")))?;
    let platform = platform(&claims).ok_or_else(|| refused("the TCB is revoked".to_owned()))?;
    let shown = format!("platform {} of {}", platform.platform, platform.fmspc);
    Ok((platform, Finding::pass(shown)))
}

/// Checks that the platform reaches a level of the TCB info, with its TDX module of
/// the launch and the one that runs now: below the last level there is no status.
pub(super) fn check_tcb_level(
    quote: &TdQuote<'_>,
    pck: &Certificate,
    tcb_info: &TcbInfo,
) -> Finding {
    let refused = |why: String| Finding::fail(ReasonCode::TcbLevelMissed).observed(why);
    let extension = match parse_pck_extension_with::<Primitives>(pck.der()) {
        Ok(extension) => extension,
        Err(error) => return refused(format!("the PCK's extension: {error:#}")),
    };
    if !tcb_info
        .fmspc
        .eq_ignore_ascii_case(&hex::encode(extension.fmspc))
    {
        return refused(hex::encode(extension.fmspc)).expected(tcb_info.fmspc.clone());
    }
    let current = quote.report_15.map(|tail| tail.tee_tcb_svn2);
    for module in [Some(quote.report.tee_tcb_svn), current]
        .into_iter()
        .flatten()
    {
        let reached = tcb_info.tcb_levels.iter().any(|level| {
            level
                .shortfalls(&extension.cpu_svn, extension.pce_svn, Some(&module))
                .is_ok_and(|shortfalls| shortfalls.is_empty())
        });
        if !reached {
            let [cpu, module] = [extension.cpu_svn, module].map(hex::encode);
            let pce = extension.pce_svn;
            return refused(format!("CPUSVN {cpu}, PCESVN {pce}, TEE_TCB_SVN {module}"))
                .expected("a level of the TCB info");
        }
    }
    Finding::pass(format!("of {}", tcb_info.fmspc))
}

fn platform(claims: &QuoteClaims) -> Option<PlatformClaims> {
    let mut advisories = claims.tcb.advisory_ids.clone();
    let current = claims.platform.current_tcb_level.iter();
    for advisory in current.flat_map(|level| &level.advisory_ids) {
        if !advisories.contains(advisory) {
            advisories.push(advisory.clone());
        }
    }
    Some(PlatformClaims {
        tcb_status: status(claims.tcb.status)?,
        tcb_date: claims.platform.tcb_level.tcb_date.clone(),
        advisories,
        tcb_evaluation: claims.tcb.eval_data_number,
        fmspc: hex::encode(claims.platform.pck.fmspc),
        platform: Sha256Digest::of(&claims.platform.pck.ppid),
    })
}

/// The status as ours, unless it is one that nothing accepts.
fn status(status: dcap_qvl::TcbStatus) -> Option<TcbStatus> {
    use dcap_qvl::TcbStatus as Theirs;
    Some(match status {
        Theirs::UpToDate => TcbStatus::UpToDate,
        Theirs::SWHardeningNeeded => TcbStatus::SWHardeningNeeded,
        Theirs::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
        Theirs::ConfigurationAndSWHardeningNeeded => TcbStatus::ConfigurationAndSWHardeningNeeded,
        Theirs::OutOfDate => TcbStatus::OutOfDate,
        Theirs::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
        Theirs::TDRelaunchAdvised => TcbStatus::TDRelaunchAdvised,
        Theirs::TDRelaunchAdvisedConfigurationNeeded => {
            TcbStatus::TDRelaunchAdvisedConfigurationNeeded
        }
        Theirs::Revoked => return None,
    })
}
