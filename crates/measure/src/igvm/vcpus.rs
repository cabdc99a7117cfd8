//! The save areas that KVM measures for a guest from an IGVM file: the file's
//! state as QEMU passes it on and KVM completes it, and the reset state where
//! the file has none.

use std::collections::BTreeMap;

use assay_tee::igvm::{Directive, IgvmFile, PlatformType, VpContext, VpState};
use assay_tee::vmsa::{KVM_VMSA_GPA, Vcpu, Vmm, Vmsa, build_vmsa, pass_to_kvm};
use assay_tee::{GuestFeatures, Sha384Digest, VcpuCount};
use zerocopy::IntoBytes as _;

use super::plan::platform_mask;
use super::{MeasureIgvmError, ResetState};
use crate::sha384::sha384;

/// The save areas of a launch from an IGVM file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgvmSaveAreas {
    /// From the file, by index.
    contexts: BTreeMap<u32, Vmsa>,
    /// Of virtual CPUs that the file has no state for.
    reset: Option<Vmsa>,
}

impl IgvmSaveAreas {
    /// Of `vcpus` virtual CPUs that QEMU starts on SEV-SNP or SEV-ES.
    ///
    /// # Errors
    /// When the file's state is none that QEMU takes, or a virtual CPU has no
    /// state, or all have one and `reset` is given.
    pub fn new(
        file: &IgvmFile<'_>,
        platform: PlatformType,
        reset: Option<&ResetState>,
        vcpus: VcpuCount,
    ) -> Result<Self, MeasureIgvmError> {
        let contexts = contexts(file, platform)?;
        let without = (0..vcpus.get()).find(|index| !contexts.contains_key(index));
        let reset = match (without, reset) {
            (Some(vcpu), None) => return Err(MeasureIgvmError::NoState { vcpu }),
            (None, Some(_)) => return Err(MeasureIgvmError::ResetStateUnused),
            (None, None) => None,
            (Some(_), Some(reset)) => Some(reset_area(&contexts, platform, reset)?),
        };
        Ok(Self { contexts, reset })
    }

    /// The save area of the boot processor of an SEV-SNP guest, for a launch
    /// that measures no other.
    pub(super) fn boot_processor(file: &IgvmFile<'_>) -> Result<Vmsa, MeasureIgvmError> {
        contexts(file, PlatformType::SevSnp)?
            .remove(&0)
            .ok_or(MeasureIgvmError::NoBootProcessor)
    }

    /// The save area of virtual CPU `index`, counted from zero. `None` where the
    /// file has none and no reset state was given.
    pub fn get(&self, index: u32) -> Option<&Vmsa> {
        self.contexts.get(&index).or(self.reset.as_ref())
    }

    pub(super) fn require(&self, vcpu: u32) -> Result<&Vmsa, MeasureIgvmError> {
        self.get(vcpu).ok_or(MeasureIgvmError::NoState { vcpu })
    }

    /// The digests of the pages, for a measurement of many virtual CPUs.
    pub(super) fn digests(&self) -> SaveAreaDigests {
        let digest = |vmsa: &Vmsa| sha384(vmsa.as_bytes());
        SaveAreaDigests {
            contexts: self
                .contexts
                .iter()
                .map(|(index, vmsa)| (*index, digest(vmsa)))
                .collect(),
            reset: self.reset.as_ref().map(digest),
        }
    }
}

/// SHA-384 of the pages of [`IgvmSaveAreas`].
pub(super) struct SaveAreaDigests {
    contexts: BTreeMap<u32, Sha384Digest>,
    reset: Option<Sha384Digest>,
}

impl SaveAreaDigests {
    /// As [`IgvmSaveAreas::get`].
    pub(super) fn get(&self, index: u32) -> Option<Sha384Digest> {
        self.contexts.get(&index).copied().or(self.reset)
    }
}

/// The file's save areas as KVM has them.
fn contexts(
    file: &IgvmFile<'_>,
    platform: PlatformType,
) -> Result<BTreeMap<u32, Vmsa>, MeasureIgvmError> {
    let mask = platform_mask(file, platform)?;
    let mut contexts: BTreeMap<u32, Vmsa> = BTreeMap::new();
    for directive in file.directives_for(mask) {
        let Directive::VpContext(VpContext {
            gpa,
            vp_index: vcpu,
            state,
            ..
        }) = *directive
        else {
            continue;
        };
        // A context for SEV-SNP or SEV-ES is a save area.
        let VpState::Vmsa(vmsa) = state else {
            continue;
        };
        if gpa != KVM_VMSA_GPA {
            return Err(MeasureIgvmError::VmsaGpa { vcpu, gpa });
        }
        let features = vmsa.sev_features.get();
        let is_snp = features & GuestFeatures::SNP_ACTIVE != 0;
        let suits = match platform {
            PlatformType::SevSnp => is_snp,
            _ => features == 0,
        };
        let first = contexts.values().next();
        if !suits || first.is_some_and(|first| first.sev_features != vmsa.sev_features) {
            return Err(MeasureIgvmError::Features { vcpu, features });
        }
        let area =
            pass_to_kvm(vmsa).map_err(|source| MeasureIgvmError::Register { vcpu, source })?;
        if contexts.insert(vcpu.into(), area).is_some() {
            return Err(MeasureIgvmError::DuplicateVcpu { vcpu });
        }
    }
    Ok(contexts)
}

/// The save area of a virtual CPU after QEMU's reset, where no firmware names
/// an address for application processors: all start at the reset vector.
fn reset_area(
    contexts: &BTreeMap<u32, Vmsa>,
    platform: PlatformType,
    reset: &ResetState,
) -> Result<Vmsa, MeasureIgvmError> {
    let of_file = contexts
        .values()
        .next()
        .map(|vmsa| GuestFeatures(vmsa.sev_features.get()));
    let is_snp = platform == PlatformType::SevSnp;
    if reset.guest_features.is_some() && (of_file.is_some() || !is_snp) {
        return Err(MeasureIgvmError::FeaturesUnused);
    }
    let default = GuestFeatures(if is_snp { GuestFeatures::SNP_ACTIVE } else { 0 });
    let features = of_file.or(reset.guest_features).unwrap_or(default);
    if is_snp && features.0 & GuestFeatures::SNP_ACTIVE == 0 {
        return Err(MeasureIgvmError::Features {
            vcpu: 0,
            features: features.0,
        });
    }
    Ok(build_vmsa(
        Vmm::Qemu,
        Vcpu::Boot,
        reset.cpu_signature,
        features,
    ))
}
