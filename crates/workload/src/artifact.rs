//! What the status of a MeasuredImage says of its artifact.

use assay_crds::v1alpha1::measured_image::{ArtifactFile, ArtifactStatus, RootDiskStatus};
use assay_image::read::ReadArtifact;
use assay_tee::guest_config::RootFs;

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
