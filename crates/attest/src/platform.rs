//! Checks of what the report says about guest policy, platform and firmware,
//! against the appraisal policy. They need no certificate.

use assay_tee::report::{AttestationReport, PlatformInfo};
use assay_tee::{GuestPolicy, Product, TcbVersion};

use crate::ledger::Finding;
use crate::policy::{
    AbiVersion, AppraisalPolicy, FirmwareVersion, GuestPolicyBit, GuestPolicyRules, IdBlockPolicy,
    PlatformBit, PlatformRules, ProductPolicy, TcbKind,
};
use crate::verdict::{ReasonCode, TcbClaims};

pub(crate) fn check_guest_policy(policy: GuestPolicy, rules: &GuestPolicyRules) -> Finding {
    let fail = |reason| Finding::fail(reason).observed(format!("{:#x}", policy.0));
    if policy.unknown_bits() != 0 || !policy.contains(GuestPolicy::RESERVED_MUST_BE_ONE) {
        return fail(ReasonCode::GuestPolicyInvalid).expected("known bits, and bit 17");
    }
    for bit in &rules.forbidden {
        if policy.contains(bit.mask()) {
            let reason = match bit {
                GuestPolicyBit::Debug => ReasonCode::DebugAllowed,
                GuestPolicyBit::MigrationAgent => ReasonCode::MigrationAllowed,
                _ => ReasonCode::GuestPolicyForbidden,
            };
            return fail(reason).expected(format!("no {}", bit.name()));
        }
    }
    for bit in &rules.required {
        if !policy.contains(bit.mask()) {
            return fail(ReasonCode::GuestPolicyInsufficient).expected(bit.name());
        }
    }
    let (major, minor) = policy.minimum_abi();
    if (AbiVersion { major, minor }) < rules.minimum_abi {
        let AbiVersion { major, minor } = rules.minimum_abi;
        return fail(ReasonCode::GuestAbiTooOld).expected(format!("ABI {major}.{minor}"));
    }
    Finding::pass(format!("{:#x}", policy.0))
}

pub(crate) fn check_platform_info(info: PlatformInfo, rules: &PlatformRules) -> Finding {
    let observed = match info.unknown_bits() {
        0 => format!("{:#x}", info.0),
        unknown => format!("{:#x}, of which {unknown:#x} unknown", info.0),
    };
    for bit in &rules.required {
        if !info.contains(bit.mask()) {
            let reason = match bit {
                PlatformBit::AliasCheckComplete => ReasonCode::AliasCheckMissing,
                _ => ReasonCode::PlatformInsufficient,
            };
            return Finding::fail(reason)
                .expected(bit.name())
                .observed(observed);
        }
    }
    for bit in &rules.forbidden {
        if info.contains(bit.mask()) {
            return Finding::fail(ReasonCode::PlatformForbidden)
                .expected(format!("no {}", bit.name()))
                .observed(observed);
        }
    }
    Finding::pass(observed)
}

pub(crate) fn check_vmpl(vmpl: u32, allowed: &[u32]) -> Finding {
    let expected = format!("one of {allowed:?}");
    Finding::require(
        allowed.contains(&vmpl),
        ReasonCode::VmplNotAllowed,
        expected,
        vmpl.to_string(),
    )
}

/// Checks reported ≤ committed ≤ current. A current TCB above the committed
/// one is provisional firmware: the host may still roll it back.
pub(crate) fn check_tcb_order(report: &AttestationReport, product: Product) -> Finding {
    match TcbClaims::of(report, product) {
        Err(error) => Finding::fail(ReasonCode::TcbInvalid).observed(error.to_string()),
        Ok(TcbClaims {
            reported,
            committed,
            current,
            ..
        }) => Finding::require(
            committed.covers(&reported) && current.covers(&committed),
            ReasonCode::TcbOutOfOrder,
            "reported <= committed <= current",
            format!("{reported} <= {committed} <= {current}"),
        ),
    }
}

pub(crate) fn product_policy(policy: &AppraisalPolicy, product: Product) -> Option<&ProductPolicy> {
    policy
        .products
        .iter()
        .find(|entry| entry.product == product)
}

/// Checks the TCB versions that the policy names against the minimum of every
/// entry for the product: two entries for one product must both hold.
pub(crate) fn check_minimum_tcb(
    report: &AttestationReport,
    product: Product,
    policy: &AppraisalPolicy,
) -> Finding {
    let tcb = match TcbClaims::of(report, product) {
        Ok(tcb) => tcb,
        Err(error) => return Finding::fail(ReasonCode::TcbInvalid).observed(error.to_string()),
    };
    let minima: Vec<&TcbVersion> = policy
        .products
        .iter()
        .filter(|entry| entry.product == product)
        .map(|entry| &entry.minimum_tcb)
        .collect();
    if minima.is_empty() || policy.tcb_against.is_empty() {
        return Finding::fail(ReasonCode::ProductNotAllowed)
            .expected("a minimum TCB for the product")
            .observed(product.name());
    }
    let value = |kind| match kind {
        TcbKind::Reported => ("reported", tcb.reported),
        TcbKind::Committed => ("committed", tcb.committed),
        TcbKind::Launch => ("launch", tcb.launch),
        TcbKind::Current => ("current", tcb.current),
    };
    for minimum in minima {
        for (kind, version) in policy.tcb_against.iter().map(|&kind| value(kind)) {
            let short = version.shortfalls(minimum);
            if !short.is_empty() {
                let short: Vec<String> = short.iter().map(ToString::to_string).collect();
                return Finding::fail(ReasonCode::TcbTooOld)
                    .expected(minimum.to_string())
                    .observed(format!("{kind} {version}: {} too old", short.join(", ")));
            }
        }
    }
    Finding::pass(tcb.reported.to_string())
}

pub(crate) fn check_firmware(
    report: &AttestationReport,
    policy: Option<&ProductPolicy>,
) -> Finding {
    let Some(minimum) = policy.and_then(|policy| policy.minimum_firmware) else {
        return Finding::not_applicable("the policy has no minimum for the product");
    };
    let current = FirmwareVersion {
        major: report.current_major,
        minor: report.current_minor,
        build: report.current_build,
    };
    let committed = FirmwareVersion {
        major: report.committed_major,
        minor: report.committed_minor,
        build: report.committed_build,
    };
    Finding::require(
        current >= minimum && committed >= minimum,
        ReasonCode::FirmwareTooOld,
        minimum.to_string(),
        format!("current {current}, committed {committed}"),
    )
}

/// Mitigations are a set of bits, not a number: all that are required must be
/// there, at launch and now. Reports before version 5 have none.
pub(crate) fn check_mitigations(report: &AttestationReport, required: u64) -> Finding {
    if required == 0 {
        return Finding::not_applicable("the policy requires none");
    }
    let (launch, current) = (
        report.launch_mit_vector.get(),
        report.current_mit_vector.get(),
    );
    Finding::require(
        launch & current & required == required,
        ReasonCode::MitigationMissing,
        format!("{required:#x}"),
        format!("launch {launch:#x}, current {current:#x}"),
    )
}

pub(crate) fn check_id_block(report: &AttestationReport, policy: &IdBlockPolicy) -> Finding {
    let IdBlockPolicy::Required {
        id_key_digests,
        author_key_digests,
        minimum_guest_svn,
    } = policy
    else {
        return Finding::not_applicable("the policy requires none");
    };
    let listed = |digests: &[String], digest: &[u8; 48]| {
        *digest != [0; 48] && digests.contains(&hex::encode(digest))
    };
    let author_ok = author_key_digests.is_empty()
        || (report.key_info().is_ok_and(|info| info.author_key_enabled)
            && listed(author_key_digests, &report.author_key_digest));
    if !listed(id_key_digests, &report.id_key_digest) {
        return Finding::fail(ReasonCode::IdKeyNotAllowed)
            .observed(hex::encode(report.id_key_digest));
    }
    if !author_ok {
        return Finding::fail(ReasonCode::AuthorKeyNotAllowed)
            .observed(hex::encode(report.author_key_digest));
    }
    Finding::require(
        report.guest_svn.get() >= *minimum_guest_svn,
        ReasonCode::GuestSvnTooOld,
        minimum_guest_svn.to_string(),
        report.guest_svn.get().to_string(),
    )
}
