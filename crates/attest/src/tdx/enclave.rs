//! The software that made the quote: the quoting enclave and the TDX module,
//! against the identities that Intel's collateral gives.

use assay_tee::td_quote::{TdQuote, TdReport};
use dcap_qvl::{QeIdentity, TcbInfo};
use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes as _;

use crate::certificate::Certificate;
use crate::crypto;
use crate::ledger::Finding;
use crate::verdict::ReasonCode;

/// DEBUG in ATTRIBUTES of an enclave.
const ENCLAVE_DEBUG: u8 = 0b10;

/// Checks that the PCK signed the quoting enclave's report, that this report binds
/// the attestation key, and that the enclave is the one that collateral names.
/// Its security version is a matter of the TCB status.
pub(super) fn check(quote: &TdQuote<'_>, pck: &Certificate, identity: &QeIdentity) -> Finding {
    let report = quote.qe_report;
    let signature = quote.qe_report_signature;
    let signed = pck.p256_coordinates().and_then(|key| {
        crypto::verify_ecdsa_p256_sha256(key, report.as_bytes(), signature)
            .map_err(|_| ReasonCode::QeReportSignatureInvalid)
    });
    if let Err(reason) = signed {
        return Finding::fail(reason).observed("by the PCK");
    }
    let bound = Sha256::new()
        .chain_update(quote.attestation_key)
        .chain_update(quote.qe_authentication_data)
        .finalize();
    let (digest, rest) = report.report_data.split_at(bound.len());
    if digest != bound.as_slice() || rest.iter().any(|&byte| byte != 0) {
        return Finding::fail(ReasonCode::AttestationKeyUnbound)
            .expected(hex::encode(bound))
            .observed(hex::encode(report.report_data));
    }
    let debug = report
        .attributes
        .first()
        .is_some_and(|flags| flags & ENCLAVE_DEBUG != 0);
    let rows = [
        ("id", identity.id == "TD_QE"),
        ("mrsigner", report.mr_signer == identity.mrsigner),
        ("isvprodid", report.isv_prod_id.get() == identity.isvprodid),
        (
            "miscselect",
            masked_equal(
                &report.misc_select,
                &identity.miscselect,
                &identity.miscselect_mask,
            ),
        ),
        (
            "attributes",
            !debug
                && masked_equal(
                    &report.attributes,
                    &identity.attributes,
                    &identity.attributes_mask,
                ),
        ),
    ];
    match rows.into_iter().find(|(_, holds)| !holds) {
        Some((field, _)) => Finding::fail(ReasonCode::QeIdentityMismatch).observed(field),
        None => Finding::pass(format!("ISVSVN {}", report.isv_svn)),
    }
}

fn masked_equal(found: &[u8], expected: &[u8], mask: &[u8]) -> bool {
    let mut bytes = found.iter().zip(expected).zip(mask);
    bytes.all(|((found, expected), mask)| found & mask == expected & mask)
}

/// Checks that the TDX module is one that the TCB info names, with attributes that
/// it allows and no other.
pub(super) fn check_seam(report: &TdReport, tcb_info: &TcbInfo) -> Finding {
    let malformed =
        || Finding::fail(ReasonCode::CollateralMalformed).observed("tcb_info: tdxModule");
    let identity = match tcb_info.tdx_module_identity(&report.tee_tcb_svn) {
        Ok(identity) => identity,
        Err(error) => {
            return Finding::fail(ReasonCode::SeamSignerMismatch).observed(error.to_string());
        }
    };
    let fields = match (identity, &tcb_info.tdx_module) {
        (Some(module), _) => [
            &module.mrsigner,
            &module.attributes,
            &module.attributes_mask,
        ],
        (None, Some(module)) => [
            &module.mrsigner,
            &module.attributes,
            &module.attributes_mask,
        ],
        (None, None) => return malformed(),
    };
    let [Ok(signer), Ok(attributes), Ok(mask)] = fields.map(hex::decode) else {
        return malformed();
    };
    if attributes.len() != report.seam_attributes.len() || mask.len() != attributes.len() {
        return malformed();
    }
    if signer != report.mr_signer_seam {
        return Finding::fail(ReasonCode::SeamSignerMismatch)
            .expected(hex::encode(signer))
            .observed(hex::encode(report.mr_signer_seam));
    }
    let found = report.seam_attributes;
    let outside = found
        .iter()
        .zip(&mask)
        .any(|(found, mask)| found & !mask != 0);
    Finding::require(
        !outside && masked_equal(&found, &attributes, &mask),
        ReasonCode::SeamAttributesMismatch,
        format!(
            "{} under mask {}",
            hex::encode(&attributes),
            hex::encode(&mask)
        ),
        hex::encode(found),
    )
}
