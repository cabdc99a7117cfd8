//! API objects to the inputs of an appraisal. Nothing is widened on the way: an
//! object that says less accepts less.

use assay_attest::policy::{
    AbiVersion, AppraisalPolicy, DenyList, FirmwareVersion, GuestPolicyBit, GuestPolicyRules,
    IdBlockId, IdBlockPolicy, PlatformBit, PlatformRules, ProductPolicy, RevocationListMode,
    SigningKeyPolicy, TcbKind,
};
use assay_attest::{ReferenceState, ReferenceValue, ReferenceValues};
use assay_crds::duration::Duration;
use assay_crds::v1alpha1::attestation_policy::{
    self as api, CrlMode, GuestRestriction, IdBlockRules, Permission, PlatformProperty,
    Requirement, SigningKeyRule, SigningKeyType,
};
use assay_crds::v1alpha1::confidential_deployment::Machine;
use assay_crds::v1alpha1::measured_image::{DigestState, LaunchDigestRow, LifecycleState};
use assay_crds::v1alpha1::{AttestationPolicySpec, MeasuredImage};
use assay_tee::LaunchDigest;

/// What evidence of a guest of `machine` must show. The machine's TEE is the
/// only one that is accepted, and only if the policy names it: launch digests
/// do not depend on who vouches for them, so simulated evidence would otherwise
/// pass for a guest that hardware is to protect.
pub fn appraisal_policy(spec: &AttestationPolicySpec, machine: &Machine) -> AppraisalPolicy {
    let AttestationPolicySpec { tees, snp, .. } = spec;
    AppraisalPolicy {
        tees: tees
            .iter()
            .filter(|tee| **tee == machine.tee)
            .map(|tee| (*tee).into())
            .collect(),
        products: snp.products.iter().map(product_policy).collect(),
        tcb_against: snp.tcb_against.iter().map(|kind| tcb_kind(*kind)).collect(),
        signing_keys: snp.signing_keys.iter().map(signing_key).collect(),
        allowed_chips: snp.allowed_chips.clone(),
        vmpls: snp.vmpls.clone(),
        guest_policy: guest_policy(&snp.guest_policy),
        platform: platform(&snp.platform),
        revocation_list: match snp.crl.mode {
            CrlMode::Require => RevocationListMode::Required,
            CrlMode::NotRequired => RevocationListMode::NotRequired,
        },
        revocation_list_grace_seconds: snp.crl.grace.map_or(0, Duration::as_secs),
        denied: DenyList {
            chips: snp.denied.chips.clone(),
            keys: snp.denied.keys.clone(),
            providers: Vec::new(),
        },
        id_block: id_block(&snp.id_block),
    }
}

fn signing_key(rule: &SigningKeyRule) -> SigningKeyPolicy {
    match rule.type_ {
        SigningKeyType::Vcek => SigningKeyPolicy::Vcek,
        SigningKeyType::Vlek => SigningKeyPolicy::Vlek {
            csp_ids: rule.providers.clone().unwrap_or_default(),
        },
    }
}

fn guest_policy(rules: &api::GuestPolicyRules) -> GuestPolicyRules {
    let permissions = [
        (rules.debug, GuestPolicyBit::Debug),
        (rules.migration_agent, GuestPolicyBit::MigrationAgent),
        (rules.smt, GuestPolicyBit::Smt),
        (rules.cxl, GuestPolicyBit::Cxl),
    ];
    let restriction = |restriction: &GuestRestriction| match restriction {
        GuestRestriction::SingleSocket => GuestPolicyBit::SingleSocket,
        GuestRestriction::Aes256Xts => GuestPolicyBit::Aes256Xts,
        GuestRestriction::RaplDisabled => GuestPolicyBit::RaplDisabled,
        GuestRestriction::CiphertextHiding => GuestPolicyBit::CiphertextHiding,
        GuestRestriction::PageSwapDisabled => GuestPolicyBit::PageSwapDisabled,
    };
    GuestPolicyRules {
        forbidden: permissions
            .into_iter()
            .filter(|(permission, _)| *permission == Permission::Forbidden)
            .map(|(_, bit)| bit)
            .collect(),
        required: rules.required.iter().map(restriction).collect(),
        minimum_abi: rules
            .minimum_abi
            .map(|api::AbiVersion { major, minor }| AbiVersion { major, minor })
            .unwrap_or_default(),
    }
}

fn platform(rules: &api::PlatformRules) -> PlatformRules {
    let bit = |property: &PlatformProperty| match property {
        PlatformProperty::Smt => PlatformBit::Smt,
        PlatformProperty::Tsme => PlatformBit::Tsme,
        PlatformProperty::Ecc => PlatformBit::Ecc,
        PlatformProperty::RaplDisabled => PlatformBit::RaplDisabled,
        PlatformProperty::CiphertextHiding => PlatformBit::CiphertextHiding,
        PlatformProperty::Tio => PlatformBit::Tio,
    };
    let alias_check = match rules.alias_check {
        Requirement::Require => Some(PlatformBit::AliasCheckComplete),
        Requirement::Any => None,
    };
    PlatformRules {
        required: alias_check
            .into_iter()
            .chain(rules.required.iter().map(bit))
            .collect(),
        forbidden: rules.forbidden.iter().map(bit).collect(),
    }
}

/// An identity that cannot be read is left out, which accepts nothing.
fn id_block(rules: &IdBlockRules) -> IdBlockPolicy {
    let ids = |ids: &Vec<String>| {
        let ids = ids.iter().cloned().map(IdBlockId::try_from);
        ids.filter_map(Result::ok).collect()
    };
    IdBlockPolicy {
        id_key_digests: rules.id_key_digests.clone(),
        author_key_digests: rules.author_key_digests.clone(),
        family_ids: rules.family_ids.as_ref().map(ids),
        image_ids: rules.image_ids.as_ref().map(ids),
        minimum_guest_svn: rules.minimum_guest_svn.unwrap_or_default(),
    }
}

fn product_policy(policy: &api::ProductPolicy) -> ProductPolicy {
    let firmware = |version| {
        let api::FirmwareVersion {
            major,
            minor,
            build,
        } = version;
        FirmwareVersion {
            major,
            minor,
            build,
        }
    };
    ProductPolicy {
        product: policy.name.into(),
        minimum_tcb: policy.minimum_tcb.into(),
        minimum_firmware: policy.minimum_firmware.map(firmware),
        mitigations: mitigations(&policy.mitigations),
        minimum_revocation_list: policy.minimum_crl_number.map(u64::from),
    }
}

/// The bits as a mask. A number that is no bit's asks for every bit, which no
/// report has.
fn mitigations(bits: &[u8]) -> u64 {
    let mask = |bit: &u8| 1_u64.checked_shl((*bit).into()).unwrap_or(u64::MAX);
    bits.iter().map(mask).fold(0, |all, bit| all | bit)
}

fn tcb_kind(kind: api::TcbKind) -> TcbKind {
    match kind {
        api::TcbKind::Reported => TcbKind::Reported,
        api::TcbKind::Committed => TcbKind::Committed,
        api::TcbKind::Launch => TcbKind::Launch,
        api::TcbKind::Current => TcbKind::Current,
    }
}

/// The launch digests that a guest of `machine` may have: the image's rows of
/// exactly this shape. A row that cannot be read is left out, which accepts
/// nothing. Every row of a revoked image is revoked, whatever its status says.
pub fn reference_values(image: &MeasuredImage, machine: &Machine) -> ReferenceValues {
    let revoked = image.spec.lifecycle.state == LifecycleState::Revoked;
    let value = |row: &LaunchDigestRow| {
        let digest: LaunchDigest = row.digest.parse().ok()?;
        let state = match row.state {
            DigestState::Accepted if !revoked => ReferenceState::Accepted,
            DigestState::Accepted | DigestState::Revoked => ReferenceState::Revoked,
        };
        Some(ReferenceValue {
            id: row.id.clone(),
            digest,
            state,
        })
    };
    let rows = rows(image).iter().filter(|row| has_shape(row, machine));
    ReferenceValues(rows.filter_map(value).collect())
}

/// The image's launch digests.
pub fn rows(image: &MeasuredImage) -> &[LaunchDigestRow] {
    image
        .status
        .as_ref()
        .map_or(&[], |status| &status.launch_digests)
}

fn has_shape(row: &LaunchDigestRow, machine: &Machine) -> bool {
    row.tee == machine.tee
        && row.vcpus == machine.vcpus
        && row.cpu_model == machine.cpu_model
        && row.boot == machine.boot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use assay_crds::v1alpha1::{BootMethod, TeeType};
    use assay_tee::{Sha256Digest, Sha384Digest, Tee};
    use serde_json::json;

    const CHIP: Sha256Digest = Sha256Digest::new([0xab; 32]);
    const KEY: Sha384Digest = Sha384Digest::new([0xab; 48]);

    #[test]
    fn only_the_machine_s_tee_is_accepted() {
        let mut spec = fixtures::policy().spec;
        let mut machine = fixtures::deployment().spec.machine;
        spec.tees = vec![TeeType::Snp, TeeType::SimulatedSnp];
        assert_eq!(appraisal_policy(&spec, &machine).tees, [Tee::SimulatedSnp]);
        machine.tee = TeeType::Snp;
        assert_eq!(appraisal_policy(&spec, &machine).tees, [Tee::Snp]);
        spec.tees = vec![TeeType::SimulatedSnp];
        assert_eq!(appraisal_policy(&spec, &machine).tees, []);
    }

    #[test]
    fn rows_of_another_shape_are_no_reference_values() {
        let image = fixtures::image();
        let machine = fixtures::deployment().spec.machine;
        assert_eq!(reference_values(&image, &machine).0.len(), 1);
        let changes: [fn(&mut Machine); 4] = [
            |machine| machine.boot = BootMethod::Igvm,
            |machine| machine.vcpus = 7,
            |machine| machine.cpu_model = "EPYC-Rome-v1".to_owned(),
            |machine| machine.tee = TeeType::Snp,
        ];
        for change in changes {
            let mut machine = machine.clone();
            change(&mut machine);
            assert_eq!(reference_values(&image, &machine).0, []);
        }
    }

    #[test]
    fn a_revoked_image_revokes_its_rows() {
        let mut image = fixtures::image();
        image.spec.lifecycle.state = LifecycleState::Revoked;
        let values = reference_values(&image, &fixtures::deployment().spec.machine);
        assert_eq!(values.0[0].state, ReferenceState::Revoked);
    }

    /// `value` in the field at `pointer` of a policy changes nothing but what
    /// `expected` changes.
    #[test]
    fn every_field_reaches_the_appraisal() {
        type Row = (&'static str, serde_json::Value, fn(&mut AppraisalPolicy));
        let rows: Vec<Row> = vec![
            (
                "/snp/signingKeys",
                json!([{"type": "VLEK", "providers": ["CN=a"]}]),
                |p| {
                    let csp_ids = vec!["CN=a".to_owned()];
                    p.signing_keys = vec![SigningKeyPolicy::Vlek { csp_ids }];
                },
            ),
            ("/snp/allowedChips", json!([CHIP.to_string()]), |p| {
                p.allowed_chips = Some(vec![CHIP]);
            }),
            ("/snp/denied", json!({"chips": [CHIP.to_string()]}), |p| {
                p.denied.chips = vec![CHIP];
            }),
            ("/snp/denied", json!({"keys": [CHIP.to_string()]}), |p| {
                p.denied.keys = vec![CHIP];
            }),
            ("/snp/vmpls", json!([2]), |p| p.vmpls = vec![2]),
            ("/snp/tcbAgainst", json!(["Current"]), |p| {
                p.tcb_against = vec![TcbKind::Current];
            }),
            (
                "/snp/products/0/minimumFirmware",
                json!({"major": 1, "minor": 55, "build": 38}),
                |p| {
                    let (major, minor, build) = (1, 55, 38);
                    p.products[0].minimum_firmware = Some(FirmwareVersion {
                        major,
                        minor,
                        build,
                    });
                },
            ),
            ("/snp/products/0/mitigations", json!([0, 63]), |p| {
                p.products[0].mitigations = 0x8000_0000_0000_0001;
            }),
            ("/snp/products/0/mitigations", json!([64]), |p| {
                p.products[0].mitigations = u64::MAX;
            }),
            ("/snp/products/0/minimumCRLNumber", json!(3), |p| {
                p.products[0].minimum_revocation_list = Some(3);
            }),
            ("/snp/guestPolicy/debug", json!("Allowed"), |p| {
                p.guest_policy.forbidden = vec![GuestPolicyBit::MigrationAgent];
            }),
            ("/snp/guestPolicy/migrationAgent", json!("Allowed"), |p| {
                p.guest_policy.forbidden = vec![GuestPolicyBit::Debug];
            }),
            ("/snp/guestPolicy/smt", json!("Forbidden"), |p| {
                p.guest_policy.forbidden.push(GuestPolicyBit::Smt);
            }),
            ("/snp/guestPolicy/cxl", json!("Forbidden"), |p| {
                p.guest_policy.forbidden.push(GuestPolicyBit::Cxl);
            }),
            (
                "/snp/guestPolicy/required",
                json!([
                    "SingleSocket",
                    "Aes256Xts",
                    "RaplDisabled",
                    "CiphertextHiding",
                    "PageSwapDisabled"
                ]),
                |p| {
                    p.guest_policy.required = vec![
                        GuestPolicyBit::SingleSocket,
                        GuestPolicyBit::Aes256Xts,
                        GuestPolicyBit::RaplDisabled,
                        GuestPolicyBit::CiphertextHiding,
                        GuestPolicyBit::PageSwapDisabled,
                    ];
                },
            ),
            (
                "/snp/guestPolicy/minimumABI",
                json!({"major": 1, "minor": 55}),
                |p| {
                    p.guest_policy.minimum_abi = AbiVersion {
                        major: 1,
                        minor: 55,
                    };
                },
            ),
            ("/snp/platform/aliasCheck", json!("Any"), |p| {
                p.platform.required = vec![];
            }),
            (
                "/snp/platform/required",
                json!(["Tsme", "Ecc", "RaplDisabled", "CiphertextHiding"]),
                |p| {
                    p.platform.required = vec![
                        PlatformBit::AliasCheckComplete,
                        PlatformBit::Tsme,
                        PlatformBit::Ecc,
                        PlatformBit::RaplDisabled,
                        PlatformBit::CiphertextHiding,
                    ];
                },
            ),
            ("/snp/platform/forbidden", json!(["Smt", "Tio"]), |p| {
                p.platform.forbidden = vec![PlatformBit::Smt, PlatformBit::Tio];
            }),
            (
                "/snp/idBlock",
                json!({"idKeyDigests": [KEY.to_string()]}),
                |p| {
                    p.id_block.id_key_digests = Some(vec![KEY]);
                },
            ),
            (
                "/snp/idBlock",
                json!({"authorKeyDigests": [KEY.to_string()]}),
                |p| {
                    p.id_block.author_key_digests = Some(vec![KEY]);
                },
            ),
            (
                "/snp/idBlock",
                json!({"familyIds": ["cd".repeat(16), "cd"]}),
                |p| {
                    p.id_block.family_ids = Some(vec![IdBlockId([0xcd; 16])]);
                },
            ),
            ("/snp/idBlock", json!({"imageIds": ["cd"]}), |p| {
                p.id_block.image_ids = Some(vec![]);
            }),
            ("/snp/idBlock", json!({"minimumGuestSvn": 3}), |p| {
                p.id_block.minimum_guest_svn = 3;
            }),
            ("/snp/crl/mode", json!("Require"), |p| {
                p.revocation_list = RevocationListMode::Required;
            }),
            ("/snp/crl/grace", json!("1h"), |p| {
                p.revocation_list_grace_seconds = 3600;
            }),
        ];
        let machine = fixtures::deployment().spec.machine;
        let spec = serde_json::to_value(fixtures::policy().spec).unwrap();
        for (pointer, value, expected) in rows {
            let mut policy = appraisal_policy(&fixtures::policy().spec, &machine);
            expected(&mut policy);
            let mut changed = spec.clone();
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[field] = value;
            let changed = serde_json::from_value(changed).unwrap();
            assert_eq!(appraisal_policy(&changed, &machine), policy, "{pointer}");
        }
    }
}
