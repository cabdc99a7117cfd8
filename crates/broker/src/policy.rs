//! API objects to the inputs of an appraisal. Nothing is widened on the way: an
//! object that says less accepts less.

use assay_attest::policy::{
    AppraisalPolicy, DenyList, GuestPolicyBit, GuestPolicyRules, IdBlockPolicy, PlatformBit,
    PlatformRules, ProductPolicy, RevocationListMode, SigningKeyPolicy, TcbKind,
};
use assay_attest::{ReferenceState, ReferenceValue, ReferenceValues};
use assay_crds::v1alpha1::attestation_policy::{
    self as api, CrlMode, MinimumTcb, Permission, Requirement,
};
use assay_crds::v1alpha1::confidential_deployment::Machine;
use assay_crds::v1alpha1::measured_image::{DigestState, LaunchDigestRow, LifecycleState};
use assay_crds::v1alpha1::{AttestationPolicySpec, MeasuredImage};
use assay_tee::{LaunchDigest, Product, TcbVersion};

/// What evidence of a guest of `machine` must show. The machine's TEE is the
/// only one that is accepted, and only if the policy names it: launch digests
/// do not depend on who vouches for them, so simulated evidence would otherwise
/// pass for a guest that hardware is to protect.
pub fn appraisal_policy(spec: &AttestationPolicySpec, machine: &Machine) -> AppraisalPolicy {
    let AttestationPolicySpec { tees, snp, .. } = spec;
    let guest_policy = [
        (snp.guest_policy.debug, GuestPolicyBit::Debug),
        (
            snp.guest_policy.migration_agent,
            GuestPolicyBit::MigrationAgent,
        ),
        (snp.guest_policy.smt, GuestPolicyBit::Smt),
    ];
    let forbidden = guest_policy
        .into_iter()
        .filter(|(permission, _)| *permission == Permission::Forbidden)
        .map(|(_, bit)| bit)
        .collect();
    let required = match snp.platform.alias_check {
        Requirement::Require => vec![PlatformBit::AliasCheckComplete],
        Requirement::Any => Vec::new(),
    };
    AppraisalPolicy {
        tees: tees
            .iter()
            .filter(|tee| **tee == machine.tee)
            .map(|tee| (*tee).into())
            .collect(),
        products: snp.products.iter().map(product_policy).collect(),
        tcb_against: snp.tcb_against.iter().map(|kind| tcb_kind(*kind)).collect(),
        signing_keys: vec![SigningKeyPolicy::Vcek],
        vmpls: snp.vmpls.clone(),
        guest_policy: GuestPolicyRules {
            forbidden,
            ..GuestPolicyRules::default()
        },
        platform: PlatformRules {
            required,
            forbidden: Vec::new(),
        },
        revocation_list: match snp.crl.mode {
            CrlMode::Require => RevocationListMode::Required,
            CrlMode::NotRequired => RevocationListMode::NotRequired,
        },
        revocation_list_grace_seconds: 0,
        denied: DenyList::default(),
        id_block: IdBlockPolicy::default(),
    }
}

fn product_policy(policy: &api::ProductPolicy) -> ProductPolicy {
    let MinimumTcb {
        boot_loader,
        tee,
        snp,
        microcode,
        fmc,
    } = policy.minimum_tcb;
    let product = match policy.name {
        api::Product::Milan => Product::Milan,
        api::Product::Genoa => Product::Genoa,
        api::Product::Turin => Product::Turin,
    };
    let minimum_tcb = TcbVersion {
        fmc,
        bootloader: boot_loader,
        tee,
        snp,
        microcode,
    };
    ProductPolicy::new(product, minimum_tcb)
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
    row.tee == machine.tee && row.vcpus == machine.vcpus && row.cpu_model == machine.cpu_model
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use assay_crds::v1alpha1::TeeType;
    use assay_tee::Tee;

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
        let changes: [fn(&mut Machine); 3] = [
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

    #[test]
    fn permissions_become_forbidden_bits() {
        let mut spec = fixtures::policy().spec;
        spec.snp.guest_policy.smt = Permission::Forbidden;
        spec.snp.guest_policy.debug = Permission::Allowed;
        let policy = appraisal_policy(&spec, &fixtures::deployment().spec.machine);
        assert_eq!(
            policy.guest_policy.forbidden,
            [GuestPolicyBit::MigrationAgent, GuestPolicyBit::Smt]
        );
    }
}
