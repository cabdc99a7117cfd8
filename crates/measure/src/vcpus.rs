//! The save areas that a launch measures, one for each virtual CPU: the boot
//! processor's, then the application processors', which are all alike.

use std::collections::BTreeSet;

use assay_tee::vmsa::{Vcpu, Vmsa, build_svsm_vmsa, build_vmsa};
use assay_tee::{GuestFeatures, Sha384Digest, VcpuCount};
use zerocopy::IntoBytes as _;

use crate::sha384::sha384;
use crate::snp::VcpuProfile;
use crate::svsm::SvsmProfile;

/// The save areas of a launch of any number of virtual CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveAreas {
    boot: Vmsa,
    /// `None` where the firmware names no address for application processors.
    application: Option<Vmsa>,
}

impl SaveAreas {
    /// Of SEV-SNP guests that start OVMF.
    pub fn snp(profile: &VcpuProfile, reset_eip: Option<u32>) -> Self {
        let build = |vcpu| {
            build_vmsa(
                profile.vmm,
                vcpu,
                profile.cpu_signature,
                profile.guest_features,
            )
        };
        Self {
            boot: build(Vcpu::Boot),
            application: reset_eip.map(|reset_eip| build(Vcpu::Application { reset_eip })),
        }
    }

    /// Of SEV-ES guests that start OVMF. SEV_FEATURES are zero in SEV-ES, so
    /// those of `profile` are not used.
    pub fn sev_es(profile: &VcpuProfile, reset_eip: Option<u32>) -> Self {
        let profile = VcpuProfile {
            guest_features: GuestFeatures(0),
            ..*profile
        };
        Self::snp(&profile, reset_eip)
    }

    /// Of guests that start an SVSM without IGVM, at the same `entry` on every
    /// virtual CPU.
    pub fn svsm(profile: &SvsmProfile, entry: u32) -> Self {
        let vmsa = build_svsm_vmsa(profile.fpu, entry, profile.cpu_signature);
        Self {
            boot: vmsa.clone(),
            application: Some(vmsa),
        }
    }

    /// The save area of virtual CPU `index`, counted from zero. `None` where
    /// the firmware does not say where such a CPU starts.
    pub const fn get(&self, index: u32) -> Option<&Vmsa> {
        match index {
            0 => Some(&self.boot),
            _ => self.application.as_ref(),
        }
    }

    /// The digests of the pages, for a measurement of many virtual CPUs.
    pub(crate) fn digests(&self) -> SaveAreaDigests {
        let digest = |vmsa: &Vmsa| sha384(vmsa.as_bytes());
        SaveAreaDigests {
            boot: digest(&self.boot),
            application: self.application.as_ref().map(digest),
        }
    }
}

/// More than one virtual CPU, and the firmware does not say where the others start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{vcpus} vCPUs are asked for, but the firmware names no address for application processors \
     (SEV_ES_RESET_BLOCK); use one vCPU or an OVMF built for SEV-ES and SEV-SNP"
)]
pub struct NoResetAddressError {
    /// The number asked for.
    pub vcpus: u32,
}

/// SHA-384 of the pages of [`SaveAreas`].
#[derive(Clone, Copy)]
pub(crate) struct SaveAreaDigests {
    boot: Sha384Digest,
    application: Option<Sha384Digest>,
}

impl SaveAreaDigests {
    /// As [`SaveAreas::get`].
    pub(crate) const fn get(&self, index: u32) -> Option<Sha384Digest> {
        match index {
            0 => Some(self.boot),
            _ => self.application,
        }
    }
}

/// The digests after each of `counts` virtual CPUs. `add` measures the virtual
/// CPU of an index, `digest` reads the digest so far: a further virtual CPU only
/// extends it, so this takes no longer than the largest count alone.
pub(crate) fn measure_counts<S, D, E>(
    mut state: S,
    counts: &BTreeSet<VcpuCount>,
    add: impl Fn(&mut S, u32) -> Result<(), E>,
    digest: impl Fn(&S) -> D,
) -> Result<Vec<(VcpuCount, D)>, E> {
    let mut digests = Vec::with_capacity(counts.len());
    let mut measured = 0;
    for &count in counts {
        for index in measured..count.get() {
            add(&mut state, index)?;
        }
        measured = count.get();
        digests.push((count, digest(&state)));
    }
    Ok(digests)
}
