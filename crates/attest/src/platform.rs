//! Checks of what the report says about guest policy, platform and firmware,
//! against the appraisal policy. They need no certificate.

use assay_tee::report::{AttestationReport, PlatformInfo};
use assay_tee::{GuestPolicy, Product, Sha384Digest};

use crate::ledger::Finding;
use crate::policy::{
    AbiVersion, AppraisalPolicy, FirmwareVersion, GuestPolicyBit, GuestPolicyRules, IdBlockId,
    IdBlockPolicy, PlatformBit, PlatformRules, TcbKind,
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
pub(crate) fn check_tcb_order(tcb: &TcbClaims) -> Finding {
    let TcbClaims {
        reported,
        committed,
        current,
        ..
    } = tcb;
    Finding::require(
        committed.covers(reported) && current.covers(committed),
        ReasonCode::TcbOutOfOrder,
        "reported <= committed <= current",
        format!("{reported} <= {committed} <= {current}"),
    )
}

/// Checks the TCB versions that the policy names against the minimum of every
/// entry for the product: two entries for one product must both hold.
pub(crate) fn check_minimum_tcb(
    tcb: &TcbClaims,
    product: Product,
    policy: &AppraisalPolicy,
) -> Finding {
    let mut minima = policy
        .entries(product)
        .map(|entry| &entry.minimum_tcb)
        .peekable();
    if minima.peek().is_none() || policy.tcb_against.is_empty() {
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

/// Checks the SNP firmware against the highest minimum of the product's entries.
pub(crate) fn check_firmware(
    report: &AttestationReport,
    product: Product,
    policy: &AppraisalPolicy,
) -> Finding {
    let minima = policy
        .entries(product)
        .filter_map(|entry| entry.minimum_firmware);
    let Some(minimum) = minima.max() else {
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

/// Mitigations are a set of bits, not a number: all that any entry of the
/// product requires must be there, at launch and now. Reports before version 5
/// have none.
pub(crate) fn check_mitigations(
    report: &AttestationReport,
    product: Product,
    policy: &AppraisalPolicy,
) -> Finding {
    let entries = policy.entries(product);
    let required = entries.fold(0, |bits, entry| bits | entry.mitigations);
    if required == 0 {
        return Finding::not_applicable("the policy requires none of the product");
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

/// Checks each field that the policy asks for, by itself.
pub(crate) fn check_id_block(report: &AttestationReport, policy: &IdBlockPolicy) -> Finding {
    if *policy == IdBlockPolicy::default() {
        return Finding::not_applicable("the policy asks for nothing");
    }
    let author_enabled = report.key_info().is_ok_and(|info| info.author_key_enabled);
    let IdBlockPolicy {
        id_key_digests,
        author_key_digests,
        family_ids,
        image_ids,
        minimum_guest_svn,
    } = policy;
    // Zeros stand for no key, whatever a policy lists.
    let signed_by = |keys: &Option<Vec<Sha384Digest>>, digest: [u8; 48]| match keys {
        None => true,
        Some(keys) => digest != [0; 48] && keys.contains(&Sha384Digest::new(digest)),
    };
    let is_for = |ids: &Option<Vec<IdBlockId>>, id| match ids {
        None => true,
        Some(ids) => ids.contains(&IdBlockId(id)),
    };
    let svn = report.guest_svn.get();
    let fields: [(bool, ReasonCode, &[u8]); 4] = [
        (
            signed_by(id_key_digests, report.id_key_digest),
            ReasonCode::IdKeyNotAllowed,
            &report.id_key_digest,
        ),
        (
            signed_by(author_key_digests, report.author_key_digest)
                && (author_enabled || author_key_digests.is_none()),
            ReasonCode::AuthorKeyNotAllowed,
            &report.author_key_digest,
        ),
        (
            is_for(family_ids, report.family_id),
            ReasonCode::FamilyIdNotAllowed,
            &report.family_id,
        ),
        (
            is_for(image_ids, report.image_id),
            ReasonCode::ImageIdNotAllowed,
            &report.image_id,
        ),
    ];
    for (holds, reason, observed) in fields {
        if !holds {
            return Finding::fail(reason).observed(hex::encode(observed));
        }
    }
    Finding::require(
        svn >= *minimum_guest_svn,
        ReasonCode::GuestSvnTooOld,
        minimum_guest_svn.to_string(),
        svn.to_string(),
    )
}
