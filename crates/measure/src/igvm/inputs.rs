//! What of an IGVM file of ours matters for a launch digest, so that files of any
//! number of virtual CPUs and any CPU model are measured without writing them.

use assay_tee::cpu::UnknownCpuModelError;
use assay_tee::igvm::IgvmFile;
use assay_tee::vmsa::KVM_VMSA_GPA;
use assay_tee::{BootMethod, LaunchDigest, LaunchShape};

use super::{IgvmLoader, MeasureIgvmError, measure_steps};
use crate::context::{LaunchContext, UpdateError};
use crate::snp::VcpuProfile;
use crate::trace::RegionKind;
use crate::vcpus::SaveAreas;

/// What the launch digests of IGVM files depend on that hold the same pages, and
/// the save areas that QEMU gives a guest which starts OVMF.
///
/// # Guarantees
/// The digest of a shape is that of [`super::measure_igvm_snp`] for the file of
/// the shape.
///
/// # Assumptions
/// The file has its save areas last, and they are those of `shape`: true of files
/// that `assay-image` writes, and of no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IgvmInputs {
    /// The running launch digest after the file's pages.
    digest: LaunchDigest,
    /// Where application processors start.
    reset_eip: Option<u32>,
}

/// A shape has no launch digest with an IGVM file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureIgvmShapeError {
    /// The shape boots otherwise.
    #[error("the shape boots by {0}, and an IGVM file was given; measure firmware and UKI")]
    BootsOtherwise(BootMethod),
    /// The CPU model is none of QEMU's.
    #[error("look up the shape's CPU model")]
    CpuModel(#[source] UnknownCpuModelError),
    /// SEV_FEATURES lacks SNPActive (bit 0).
    #[error(
        "guest features {features:#x} lack bit 0 (SNPActive), which every SEV-SNP guest has; \
         use 0x1"
    )]
    SnpNotActive {
        /// The features asked for.
        features: u64,
    },
    /// More than one vCPU, but the firmware does not say where they start.
    #[error(
        "{vcpus} vCPUs are asked for, but the firmware names no address for application \
         processors (SEV_ES_RESET_BLOCK); use one vCPU or an OVMF built for SEV-ES and SEV-SNP"
    )]
    NoResetAddress {
        /// The vCPU count asked for.
        vcpus: u32,
    },
    /// A save area cannot be measured.
    #[error("measure a save area")]
    Update(#[source] UpdateError),
}

impl IgvmInputs {
    /// Measures a file's pages. `reset_eip` is what its firmware says.
    ///
    /// # Errors
    /// See [`MeasureIgvmError`].
    pub fn of_file(file: &IgvmFile<'_>, reset_eip: Option<u32>) -> Result<Self, MeasureIgvmError> {
        let context = measure_steps(file, IgvmLoader::Qemu)?;
        Ok(Self {
            digest: context.finish().digest(),
            reset_eip,
        })
    }

    /// The launch digest of a shape.
    ///
    /// # Errors
    /// See [`MeasureIgvmShapeError`].
    pub fn launch_digest(
        &self,
        shape: &LaunchShape,
    ) -> Result<LaunchDigest, MeasureIgvmShapeError> {
        if shape.boot != BootMethod::Igvm {
            return Err(MeasureIgvmShapeError::BootsOtherwise(shape.boot));
        }
        let features = shape.guest_features.0;
        if features & 1 == 0 {
            return Err(MeasureIgvmShapeError::SnpNotActive { features });
        }
        let profile = VcpuProfile::from_shape(shape).map_err(MeasureIgvmShapeError::CpuModel)?;
        let areas = SaveAreas::snp(&profile, self.reset_eip).digests();
        let mut context = LaunchContext::new();
        context.resume(RegionKind::IgvmPages, self.digest, 0, 0);
        let vcpus = shape.vcpus.get();
        for index in 0..vcpus {
            let contents = areas
                .get(index)
                .ok_or(MeasureIgvmShapeError::NoResetAddress { vcpus })?;
            context
                .update_vmsa(index, KVM_VMSA_GPA, contents)
                .map_err(MeasureIgvmShapeError::Update)?;
        }
        Ok(context.finish().digest())
    }
}
