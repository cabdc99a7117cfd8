//! The shapes around the expected one, apart from the number of virtual CPUs.

use assay_tee::GuestFeatures;
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::vmsa::Vmm;

use super::Change;
use crate::snp::VcpuProfile;

/// A profile to be tried.
pub(super) struct Variant {
    pub(super) profile: VcpuProfile,
    /// How it differs from the expected one.
    pub(super) changes: Vec<Change>,
}

/// Every profile: the expected one, those with one change, then all others.
pub(super) fn variants(expected: &VcpuProfile) -> Vec<Variant> {
    let other_vmms = Vmm::ALL.into_iter().filter(|vmm| *vmm != expected.vmm);
    let mut variants = Vec::new();
    for vmm in std::iter::once(expected.vmm).chain(other_vmms) {
        for signature in signatures(expected, vmm) {
            for guest_features in features(expected.guest_features) {
                let profile = VcpuProfile {
                    vmm,
                    cpu_signature: signature,
                    guest_features,
                };
                variants.push(Variant {
                    changes: changes(expected, &profile),
                    profile,
                });
            }
        }
    }
    variants.sort_by_key(|variant| variant.changes.len());
    variants
}

/// The signatures that make a difference under `vmm`, the expected one first.
fn signatures(expected: &VcpuProfile, vmm: Vmm) -> Vec<CpuSignature> {
    if !vmm.measures_cpu_signature() {
        return vec![expected.cpu_signature];
    }
    // A VMM that does not measure the CPU model leaves it open which it was.
    let known = expected.vmm.measures_cpu_signature();
    let mut signatures = Vec::from_iter(known.then_some(expected.cpu_signature));
    for model in CpuModel::all() {
        if !signatures.contains(&model.signature()) {
            signatures.push(model.signature());
        }
    }
    signatures
}

/// The expected features, those of common hosts, and each named bit switched.
fn features(expected: GuestFeatures) -> Vec<GuestFeatures> {
    let active = GuestFeatures::SNP_ACTIVE;
    let common = [active, active | GuestFeatures::DEBUG_SWAP];
    let switched = GuestFeatures::named()
        .map(|(_, bit)| expected.0 ^ bit)
        .filter(|features| features & active != 0);
    let mut features = vec![expected];
    for bits in common.into_iter().chain(switched) {
        if !features.contains(&GuestFeatures(bits)) {
            features.push(GuestFeatures(bits));
        }
    }
    features
}

fn changes(expected: &VcpuProfile, profile: &VcpuProfile) -> Vec<Change> {
    let mut changes = Vec::new();
    let measured = profile.vmm.measures_cpu_signature();
    let known = expected.vmm.measures_cpu_signature();
    if measured && (!known || profile.cpu_signature != expected.cpu_signature) {
        let models = CpuModel::all().filter(|model| model.signature() == profile.cpu_signature);
        changes.push(Change::CpuModel {
            signature: profile.cpu_signature,
            models: models.map(|model| model.name()).collect(),
        });
    }
    if profile.vmm != expected.vmm {
        changes.push(Change::Vmm { found: profile.vmm });
    }
    if profile.guest_features != expected.guest_features {
        changes.push(Change::GuestFeatures {
            found: profile.guest_features,
            expected: expected.guest_features,
        });
    }
    changes
}
