//! The shapes around the expected one, apart from the number of virtual CPUs.

use assay_tee::GuestFeatures;
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::vmsa::Vmm;

use super::Change;
use crate::snp::VcpuProfile;

/// Signatures of processors that differ from the signature of QEMU's model, as
/// guests of `-cpu host` have them (Linux `arch/x86/kernel/cpu/microcode/amd.c`,
/// `need_sha_check`, which has those that are sold; the names follow family and
/// model).
const HOSTS: [(CpuSignature, &str); 7] = [
    (CpuSignature(0x00a0_0f12), "Milan-X"),
    (CpuSignature(0x00a1_0f11), "Genoa"),
    (CpuSignature(0x00a1_0f12), "Genoa-X"),
    (CpuSignature(0x00aa_0f01), "Bergamo"),
    (CpuSignature(0x00aa_0f02), "Bergamo or Siena"),
    (CpuSignature(0x00b0_0f21), "Turin"),
    (CpuSignature(0x00b1_0f10), "Turin Dense"),
];

/// A profile to be tried.
pub(super) struct Variant {
    pub(super) profile: VcpuProfile,
    /// How it differs from the expected one.
    pub(super) changes: Vec<Change>,
    /// Whether it is tried for the expected inputs alone.
    pub(super) is_rare: bool,
}

/// Every profile: the expected one, those with one change, rare ones after all
/// others, then those with more.
pub(super) fn variants(expected: &VcpuProfile) -> Vec<Variant> {
    let other_vmms = Vmm::ALL.into_iter().filter(|vmm| *vmm != expected.vmm);
    let mut variants = Vec::new();
    let variant = |profile, is_rare| Variant {
        changes: changes(expected, &profile),
        profile,
        is_rare,
    };
    let features = features(expected.guest_features);
    for vmm in std::iter::once(expected.vmm).chain(other_vmms) {
        for cpu_signature in signatures(expected, vmm) {
            for guest_features in features.iter().copied() {
                let profile = VcpuProfile {
                    vmm,
                    cpu_signature,
                    guest_features,
                };
                variants.push(variant(profile, false));
            }
        }
    }
    let pairs = pairs(expected.guest_features);
    let pairs = pairs.filter(|pair| !features.contains(pair));
    variants.extend(pairs.map(|guest_features| {
        let profile = VcpuProfile {
            guest_features,
            ..*expected
        };
        variant(profile, true)
    }));
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
    let models = CpuModel::all().map(|model| model.signature());
    for signature in models.chain(HOSTS.map(|(signature, _)| signature)) {
        if !signatures.contains(&signature) {
            signatures.push(signature);
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

/// The expected features with two named bits switched.
fn pairs(expected: GuestFeatures) -> impl Iterator<Item = GuestFeatures> {
    let bits = || {
        GuestFeatures::named()
            .map(|(_, bit)| bit)
            .filter(|bit| *bit != GuestFeatures::SNP_ACTIVE)
    };
    let pairs = bits().flat_map(move |one| {
        let others = bits().filter(move |other| *other > one);
        others.map(move |other| one | other)
    });
    pairs.map(move |pair| GuestFeatures(expected.0 ^ pair))
}

fn changes(expected: &VcpuProfile, profile: &VcpuProfile) -> Vec<Change> {
    let mut changes = Vec::new();
    let measured = profile.vmm.measures_cpu_signature();
    let known = expected.vmm.measures_cpu_signature();
    if measured && (!known || profile.cpu_signature != expected.cpu_signature) {
        let models = CpuModel::all().filter(|model| model.signature() == profile.cpu_signature);
        let host = HOSTS
            .iter()
            .find(|(signature, _)| *signature == profile.cpu_signature);
        changes.push(Change::CpuModel {
            signature: profile.cpu_signature,
            models: models.map(|model| model.name()).collect(),
            host: host.map(|(_, name)| *name),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_of_the_families_that_they_are_named_after() {
        let numbers = [
            (25, 1, 2),
            (25, 17, 1),
            (25, 17, 2),
            (25, 160, 1),
            (25, 160, 2),
            (26, 2, 1),
            (26, 17, 0),
        ];
        for ((signature, name), (family, model, stepping)) in HOSTS.into_iter().zip(numbers) {
            let computed = CpuSignature::from_family_model_stepping(family, model, stepping);
            assert_eq!(computed, Ok(signature), "{name}");
            let is_qemus = CpuModel::all().any(|model| model.signature() == signature);
            assert!(!is_qemus, "{name} needs no -cpu host");
        }
    }
}
