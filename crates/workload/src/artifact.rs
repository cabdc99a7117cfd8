//! What the status of a MeasuredImage says of its artifact, and the launch digest of
//! each shape.

use assay_crds::v1alpha1::measured_image::{
    ArtifactFile, ArtifactStatus, MeasurementInputsStatus, RootDiskStatus,
};
use assay_image::igvm::{MeasureSelfContainedError, measure_self_contained};
use assay_image::read::ReadArtifact;
use assay_measure::{MeasureError, MeasurementInputs, measure_snp};
use assay_tee::guest_config::RootFs;
use assay_tee::{BootMethod, LaunchDigest, LaunchShape};

/// An artifact whose every hash was recomputed: a few hundred bytes that stand for it.
#[derive(Debug, Clone)]
pub struct MeasuredArtifact {
    status: ArtifactStatus,
    inputs: MeasurementInputs,
    no_igvm_file: Option<MeasureSelfContainedError>,
}

/// A shape has no launch digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchDigestError {
    /// There is no IGVM file of the artifact.
    #[error("boot IGVM")]
    NoIgvmFile(#[source] MeasureSelfContainedError),
    /// The launch cannot be measured.
    #[error(transparent)]
    Measure(#[from] MeasureError),
}

impl MeasuredArtifact {
    /// From its parts; `no_igvm_file` says why `inputs` have no digest of an IGVM file.
    pub fn new(
        status: ArtifactStatus,
        inputs: MeasurementInputs,
        no_igvm_file: Option<MeasureSelfContainedError>,
    ) -> Self {
        Self {
            status,
            inputs,
            no_igvm_file,
        }
    }

    /// The artifact at `reference`.
    pub fn of(reference: &str, artifact: &ReadArtifact) -> Self {
        let inputs = artifact.manifest.measurement.clone();
        let no_igvm_file = match inputs.igvm_digest {
            Some(_) => None,
            None => measure_self_contained(&artifact.firmware, &artifact.uki).err(),
        };
        Self::new(describe_artifact(reference, artifact), inputs, no_igvm_file)
    }

    /// What the status says of it.
    pub fn status(&self) -> &ArtifactStatus {
        &self.status
    }

    /// What its launch digests depend on, as a status has it.
    pub fn inputs_status(&self) -> Option<MeasurementInputsStatus> {
        // Both are the same document; crds does not know the other type.
        let document = serde_json::to_value(&self.inputs).ok()?;
        serde_json::from_value(document).ok()
    }

    /// The launch digest of a shape, by its boot method.
    ///
    /// # Errors
    /// See [`LaunchDigestError`].
    pub fn launch_digest(&self, shape: &LaunchShape) -> Result<LaunchDigest, LaunchDigestError> {
        if let (BootMethod::Igvm, Some(why)) = (shape.boot, &self.no_igvm_file) {
            return Err(LaunchDigestError::NoIgvmFile(why.clone()));
        }
        Ok(measure_snp(&self.inputs, shape)?.digest)
    }
}

/// What the status says of an artifact whose every hash was recomputed.
pub fn describe_artifact(reference: &str, artifact: &ReadArtifact) -> ArtifactStatus {
    let manifest = &artifact.manifest;
    let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let root_disk = match (&manifest.root_disk, &artifact.guest_config.root) {
        (
            Some(disk),
            RootFs::DmVerity {
                serial, root_hash, ..
            },
        ) => Some(RootDiskStatus {
            path: disk.path.clone(),
            sha256: disk.sha256.to_string(),
            size_bytes: size(disk.size),
            serial: serial.clone(),
            verity_root_hash: root_hash.to_string(),
        }),
        _ => None,
    };
    ArtifactStatus {
        reference: reference.to_owned(),
        uki: ArtifactFile {
            path: manifest.uki.path.clone(),
            sha256: manifest.uki.sha256.to_string(),
            size_bytes: size(manifest.uki.size),
        },
        firmware: ArtifactFile {
            path: manifest.firmware.path.clone(),
            sha256: manifest.firmware.sha256.to_string(),
            size_bytes: size(manifest.firmware.size),
        },
        root_disk,
    }
}
