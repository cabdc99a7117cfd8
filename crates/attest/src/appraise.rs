//! The appraisal itself: the checks in their order.

use assay_tee::report::{AttestationReport, KeyInfo, ParseReportError, PlatformInfo, SigningKey};
use assay_tee::{GuestPolicy, LaunchDigest, Product, TcbVersion};
use jiff::Timestamp;

use crate::anchors::TrustAnchors;
use crate::certificate::EndorsementKey;
use crate::chain::{Chain, RevocationRules, Supplied};
use crate::crypto;
use crate::evidence::{Binding, Evidence};
use crate::ledger::{Finding, Ledger};
use crate::memory::{ChainMemory, NoMemory};
use crate::platform;
use crate::policy::{AppraisalPolicy, RevocationListMode, SigningKeyPolicy};
use crate::reference::{ReferenceState, ReferenceValues};
use crate::verdict::{CheckName, Claims, ReasonCode, TcbClaims, Verdict};

/// Appraises evidence.
///
/// # Guarantees
/// - The verdict lists every check of [`CheckName::SNP`], in order.
/// - It is accepted only when each passed, or does not apply and says why.
/// - Checks of what the report says are made even when its signature is not
///   valid, to explain a refusal; they cannot turn it into an acceptance.
///
/// # Assumptions
/// - `binding` was computed by the caller from its own nonce and from the
///   instance data that it accepted, never from the report.
/// - The caller uses every nonce once. This function keeps no state and cannot
///   see a replay.
pub fn appraise(
    evidence: &Evidence,
    anchors: &TrustAnchors,
    reference_values: &ReferenceValues,
    policy: &AppraisalPolicy,
    binding: &Binding,
    now: Timestamp,
) -> Verdict {
    let memory = &NoMemory;
    appraise_with(
        evidence,
        anchors,
        reference_values,
        policy,
        binding,
        now,
        memory,
    )
}

/// As [`appraise`], without verifying a certificate chain that `memory` knows. The
/// verdict is the same.
pub fn appraise_with(
    evidence: &Evidence,
    anchors: &TrustAnchors,
    reference_values: &ReferenceValues,
    policy: &AppraisalPolicy,
    binding: &Binding,
    now: Timestamp,
    memory: &dyn ChainMemory,
) -> Verdict {
    let mut ledger = Ledger::default();
    let layout = AttestationReport::read_layout(&evidence.report)
        .map(|report| (report, Finding::pass(evidence.report.len().to_string())))
        .map_err(malformed);
    let Some(report) = ledger.take(CheckName::ReportLength, layout) else {
        return Verdict::unread(ledger.conclude(CheckName::SNP));
    };

    check_form(&report, &mut ledger);
    let key_info = check_key_info(&report, policy, &mut ledger);

    let supplied = Supplied::parse(&evidence.certificates);
    let leaf = key_info.map(|info| supplied.endorsement_key(info.signing_key));
    let named = leaf.as_ref().and_then(|leaf| leaf.as_ref().ok());
    let product = find_product(&report, named.map(|(_, key)| key));
    let product = ledger.take(CheckName::Product, product);

    let issued = named.map(|(certificate, key)| (*certificate, key.kind));
    let root = product.zip(issued).and_then(|(product, (leaf, kind))| {
        let root = supplied.root(leaf, kind, product, anchors);
        ledger.take(CheckName::TrustAnchor, root)
    });
    if let Some((_, domain)) = root {
        let allowed = domain.tee().is_some_and(|tee| policy.tees.contains(&tee));
        let observed = domain
            .tee()
            .map_or_else(|| domain.to_string(), |tee| tee.to_string());
        let finding = Finding::require(
            allowed,
            ReasonCode::TeeNotAllowed,
            format!("one of {:?}", policy.tees),
            observed,
        );
        ledger.enter(CheckName::TrustDomain, finding);
    }
    let leaf = leaf.zip(product).and_then(|(leaf, product)| {
        let checked = leaf.and_then(|(certificate, key)| {
            let shown = key.product_name.clone();
            key.check_product(product).map_err(|reason| {
                let finding = Finding::fail(reason).expected(product.name());
                finding.observed(shown.clone())
            })?;
            Ok(((certificate, key), Finding::pass(shown)))
        });
        ledger.take(CheckName::EndorsementKey, checked)
    });

    let (mut trust_domain, mut revocation_list_number) = (None, None);
    if let (Some(product), Some((root, domain)), Some((certificate, key))) = (product, root, &leaf)
    {
        let chain = supplied.verify_chain(root, certificate, key.kind, product, memory);
        if let Some(chain) = ledger.take(CheckName::CertificateChain, chain) {
            trust_domain = Some(domain);
            ledger.enter(CheckName::CertificateDates, chain.check_dates(now));
            let list = evidence.revocation_list.as_deref();
            let (finding, number) = check_revocation_list(&chain, list, product, policy, now);
            ledger.enter(CheckName::RevocationList, finding);
            revocation_list_number = number;
        }
    }
    if let (Some(product), Some((_, key))) = (product, &leaf) {
        ledger.enter(CheckName::DenyList, check_denied(&report, key, policy));
        ledger.enter(
            CheckName::EndorsedTcb,
            check_endorsed_tcb(&report, key, product),
        );
        ledger.enter(CheckName::ChipIdentity, check_chip_identity(&report, key));
        ledger.enter(CheckName::ReportSignature, check_signature(&report, key));
    }

    let claims = Claims::of(&report, product);
    let equal = |reason, expected: &[u8], observed: &[u8]| {
        let (expected_hex, observed_hex) = (hex::encode(expected), hex::encode(observed));
        Finding::require(expected == observed, reason, expected_hex, observed_hex)
    };
    ledger.enter(
        CheckName::ReportData,
        equal(
            ReasonCode::ReportDataMismatch,
            &binding.report_data,
            &report.report_data,
        ),
    );
    ledger.enter(
        CheckName::HostData,
        equal(
            ReasonCode::HostDataMismatch,
            &binding.host_data,
            &report.host_data,
        ),
    );
    let guest_policy = GuestPolicy(report.policy.get());
    ledger.enter(
        CheckName::GuestPolicy,
        platform::check_guest_policy(guest_policy, &policy.guest_policy),
    );
    let platform_info = PlatformInfo(report.platform_info.get());
    ledger.enter(
        CheckName::PlatformInfo,
        platform::check_platform_info(platform_info, &policy.platform),
    );
    ledger.enter(
        CheckName::Vmpl,
        platform::check_vmpl(report.vmpl.get(), &policy.vmpls),
    );
    if let Some(product) = product {
        match TcbClaims::of(&report, product) {
            Err(error) => {
                let finding = Finding::fail(ReasonCode::TcbInvalid).observed(error.to_string());
                ledger.enter(CheckName::TcbOrder, finding);
            }
            Ok(tcb) => {
                ledger.enter(CheckName::TcbOrder, platform::check_tcb_order(&tcb));
                ledger.enter(
                    CheckName::MinimumTcb,
                    platform::check_minimum_tcb(&tcb, product, policy),
                );
            }
        }
        ledger.enter(
            CheckName::FirmwareVersion,
            platform::check_firmware(&report, product, policy),
        );
        ledger.enter(
            CheckName::Mitigations,
            platform::check_mitigations(&report, product, policy),
        );
    }
    ledger.enter(
        CheckName::IdBlock,
        platform::check_id_block(&report, &policy.id_block),
    );
    let reference = reference_values.find(claims.measurement);
    let finding = check_measurement(claims.measurement, reference_values);
    ledger.enter(CheckName::Measurement, finding);

    let (outcome, checks) = ledger.conclude(CheckName::SNP);
    Verdict {
        outcome,
        trust_domain,
        checks,
        claims: Some(claims),
        td_claims: None,
        reference_value: reference.map(|value| value.id.clone()),
        revocation_list_number,
    }
}

/// A report that breaks the ABI's rules, as a finding.
fn malformed(error: ParseReportError) -> Finding {
    let reason = match error {
        ParseReportError::Length { .. } => ReasonCode::ReportLengthInvalid,
        ParseReportError::Version { .. } => ReasonCode::ReportVersionUnknown,
        ParseReportError::Reserved { .. } => ReasonCode::ReservedByteSet,
        ParseReportError::SignatureAlgorithm { .. } => ReasonCode::SignatureAlgorithmUnknown,
        ParseReportError::KeyInfo { .. } => ReasonCode::KeyInformationInvalid,
    };
    Finding::fail(reason).observed(error.to_string())
}

fn check_form(report: &AttestationReport, ledger: &mut Ledger) {
    let finding = |result: Result<(), ParseReportError>, shown: String| match result {
        Ok(()) => Finding::pass(shown),
        Err(error) => malformed(error),
    };
    let version = report.version.get();
    let known = report.check_version();
    ledger.enter(
        CheckName::ReportVersion,
        finding(known, version.to_string()),
    );
    // Which bytes are reserved follows from the version.
    if known.is_ok() {
        let reserved = finding(
            report.check_reserved(),
            format!("as version {version} has them"),
        );
        ledger.enter(CheckName::ReservedBytes, reserved);
    }
    let algorithm = finding(
        report.check_signature_algorithm(),
        "ECDSA P-384, SHA-384".to_owned(),
    );
    ledger.enter(CheckName::SignatureAlgorithm, algorithm);
}

fn check_key_info(
    report: &AttestationReport,
    policy: &AppraisalPolicy,
    ledger: &mut Ledger,
) -> Option<KeyInfo> {
    let allowed = |key| {
        policy.signing_keys.iter().any(|allowed| match allowed {
            SigningKeyPolicy::Vcek => key == SigningKey::Vcek,
            SigningKeyPolicy::Vlek { .. } => key == SigningKey::Vlek,
        })
    };
    let result = report.key_info().map_err(malformed).and_then(|info| {
        let shown = format!("{:?}", info.signing_key);
        if info.mask_chip_key {
            Err(Finding::fail(ReasonCode::ChipKeyMasked))
        } else if info.signing_key == SigningKey::None {
            Err(Finding::fail(ReasonCode::ReportUnsigned))
        } else if allowed(info.signing_key) {
            Ok((info, Finding::pass(shown)))
        } else {
            Err(Finding::fail(ReasonCode::SigningKeyNotAllowed).observed(shown))
        }
    });
    ledger.take(CheckName::KeyInformation, result)
}

/// The product: from CPUID, or for version 2, whose reports have none, from the
/// certificate of the endorsement key. Where CPUID has spoken, the certificate's
/// word is compared later, as one of its extensions.
pub(crate) fn find_product(
    report: &AttestationReport,
    key: Option<&EndorsementKey>,
) -> Result<(Product, Finding), Finding> {
    let unknown = |observed: String| Finding::fail(ReasonCode::ProductUnknown).observed(observed);
    if report.version.get() > 2 {
        let product = Product::from_cpuid(report.cpuid_family, report.cpuid_model)
            .map_err(|error| unknown(error.to_string()))?;
        return Ok((product, Finding::pass(product.name())));
    }
    let key = key.ok_or_else(|| unknown("version 2 without an endorsement key".to_owned()))?;
    let product: Product = key
        .product_name
        .parse()
        .map_err(|error: assay_tee::tcb::ParseProductError| unknown(error.to_string()))?;
    let (_, tail) = report.chip_id.split_at(Product::Turin.chip_id_len());
    let short = tail.iter().all(|&byte| byte == 0);
    let masked = report.chip_id == [0; 64];
    if !masked && short != (product == Product::Turin) {
        return Err(Finding::fail(ReasonCode::ProductContradicted)
            .expected(product.name())
            .observed("a chip identity of another length"));
    }
    Ok((product, Finding::pass(product.name())))
}

/// Checks the revocation list, asked for or not, and gives its number if it is
/// the root's.
fn check_revocation_list(
    chain: &Chain<'_>,
    list: Option<&[u8]>,
    product: Product,
    policy: &AppraisalPolicy,
    now: Timestamp,
) -> (Finding, Option<u64>) {
    let Some(list) = list else {
        let finding = match policy.revocation_list {
            RevocationListMode::Required => Finding::fail(ReasonCode::RevocationListMissing),
            RevocationListMode::NotRequired => {
                Finding::not_applicable("none was supplied and the policy requires none")
            }
        };
        return (finding, None);
    };
    let minima = policy.entries(product);
    let rules = RevocationRules {
        grace_seconds: policy.revocation_list_grace_seconds,
        minimum_number: minima
            .filter_map(|entry| entry.minimum_revocation_list)
            .max(),
    };
    match chain.read_revocation_list(list) {
        Ok(list) => (
            chain.check_revocation(&list, &rules, now),
            Some(list.number),
        ),
        Err(reason) => (Finding::fail(reason), None),
    }
}

fn check_denied(
    report: &AttestationReport,
    key: &EndorsementKey,
    policy: &AppraisalPolicy,
) -> Finding {
    let chip = assay_tee::Sha256Digest::of(&report.chip_id);
    if policy.denied.chips.contains(&chip) {
        return Finding::fail(ReasonCode::ChipDenied).observed(chip.to_string());
    }
    // Zeros stand for no chip, whatever a policy lists.
    let named = |chips: &Vec<_>| report.chip_id != [0; 64] && chips.contains(&chip);
    if !policy.allowed_chips.as_ref().is_none_or(named) {
        return Finding::fail(ReasonCode::ChipNotAllowed)
            .expected("a chip that the policy names")
            .observed(chip.to_string());
    }
    if policy.denied.keys.contains(&key.key_digest) {
        return Finding::fail(ReasonCode::EndorsementKeyDenied)
            .observed(key.key_digest.to_string());
    }
    let Some(csp_id) = &key.csp_id else {
        return Finding::pass(chip.to_string());
    };
    if policy.denied.providers.contains(csp_id) {
        return Finding::fail(ReasonCode::ProviderDenied).observed(csp_id.clone());
    }
    let allowed = policy.signing_keys.iter().any(|allowed| match allowed {
        SigningKeyPolicy::Vcek => false,
        SigningKeyPolicy::Vlek { csp_ids } => csp_ids.contains(csp_id),
    });
    let expected = "a provider that the policy names";
    Finding::require(
        allowed,
        ReasonCode::ProviderNotAllowed,
        expected,
        csp_id.clone(),
    )
}

fn check_endorsed_tcb(
    report: &AttestationReport,
    key: &EndorsementKey,
    product: Product,
) -> Finding {
    match TcbVersion::parse(product, report.reported_tcb) {
        Err(error) => Finding::fail(ReasonCode::TcbInvalid).observed(error.to_string()),
        Ok(reported) => Finding::require(
            reported == key.tcb(),
            ReasonCode::EndorsedTcbMismatch,
            key.tcb().to_string(),
            reported.to_string(),
        ),
    }
}

fn check_chip_identity(report: &AttestationReport, key: &EndorsementKey) -> Finding {
    let masked = report.chip_id == [0; 64];
    let observed = hex::encode(report.chip_id);
    // A VLEK names no chip, so that a chip in the report could be compared with
    // nothing: processors leave it out then.
    let Some(hw_id) = &key.hw_id else {
        return Finding::require(masked, ReasonCode::ChipIdMismatch, "no chip", observed);
    };
    let (id, rest) = report
        .chip_id
        .split_at(hw_id.len().min(report.chip_id.len()));
    let same = id == hw_id && rest.iter().all(|&byte| byte == 0);
    let expected = hex::encode(hw_id);
    Finding::require(
        same && !masked,
        ReasonCode::ChipIdMismatch,
        expected,
        observed,
    )
}

fn check_signature(report: &AttestationReport, key: &EndorsementKey) -> Finding {
    let signature = report.signature_fixed();
    match crypto::verify_ecdsa_p384_sha384(&key.public_key, report.signed_bytes(), &signature) {
        Ok(()) => Finding::pass(format!("by key {}", key.key_digest)),
        Err(error) => Finding::fail(ReasonCode::ReportSignatureInvalid).observed(error.to_string()),
    }
}

fn check_measurement(measurement: LaunchDigest, values: &ReferenceValues) -> Finding {
    let fail = |reason| Finding::fail(reason).observed(measurement.to_string());
    match values.find(measurement) {
        None => {
            let expected = match values.0.as_slice() {
                [only] => only.digest.to_string(),
                many => format!("one of {} reference values", many.len()),
            };
            fail(ReasonCode::MeasurementUnknown).expected(expected)
        }
        Some(value) => match value.state {
            ReferenceState::Accepted | ReferenceState::Retiring => {
                Finding::pass(measurement.to_string()).expected(value.id.clone())
            }
            ReferenceState::Proposed => fail(ReasonCode::MeasurementProposed),
            ReferenceState::Revoked => fail(ReasonCode::MeasurementRevoked),
        },
    }
}
