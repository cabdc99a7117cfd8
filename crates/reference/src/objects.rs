//! From the cluster's objects to a statement and back. Back means as strict:
//! the policy is the same, releases nothing, and no digest is added.

use assay_crds::v1alpha1::measured_image::{
    ArtifactFile, ArtifactStatus, DigestCounts, DigestState, ImageSource, LaunchDigestRow,
    LaunchShapes, Lifecycle, LifecycleState, OciSource, RootDiskStatus, SourceType,
};
use assay_crds::v1alpha1::{
    AttestationPolicy, BootMethod, MeasuredImage, MeasuredImageSpec, MeasuredImageStatus,
};
use assay_tee::vmsa::Vmm;
use assay_tee::{LaunchDigest, LaunchShape, Sha256Digest};

use crate::statement::{Image, Part, PartKind, Policy, Row};

/// What an image's MeasuredImage says.
///
/// # Errors
/// When the object is not measured, or its status describes an older
/// specification.
pub fn image_of(object: &MeasuredImage) -> Result<Image, ObjectError> {
    let name = object.metadata.name.clone().ok_or(ObjectError::Name)?;
    let unmeasured = || ObjectError::NotMeasured(name.clone());
    let status = object.status.as_ref().ok_or_else(unmeasured)?;
    if status.launch_digests.is_empty() {
        return Err(unmeasured());
    }
    if status.observed_generation != object.metadata.generation {
        return Err(ObjectError::Stale(name));
    }
    let artifact = status.artifact.as_ref().ok_or_else(unmeasured)?;
    let lifecycle = &object.spec.lifecycle;
    let rows = status.launch_digests.iter().map(|row| {
        Ok(Row {
            id: row.id.clone(),
            firmware: row.firmware.clone(),
            cpu_model: row.cpu_model.clone(),
            vcpus: row.vcpus,
            guest_features: row.guest_features.clone(),
            // The operator measures for today's QEMU alone.
            vmm: Vmm::Qemu,
            tee: row.tee,
            boot: row.boot,
            digest: row
                .digest
                .parse::<LaunchDigest>()
                .map_err(|_| field(&name, format!("status.launchDigests[{}].digest", row.id)))?,
            state: match lifecycle.state {
                LifecycleState::Revoked => DigestState::Revoked,
                LifecycleState::Active | LifecycleState::Deprecated => row.state,
            },
        })
    });
    let mut parts = vec![
        file(&name, PartKind::Uki, &artifact.uki)?,
        file(&name, PartKind::Firmware, &artifact.firmware)?,
    ];
    if let Some(disk) = &artifact.root_disk {
        let RootDiskStatus {
            path,
            sha256,
            size_bytes,
            serial,
            verity_root_hash,
        } = disk.clone();
        let file_of = ArtifactFile {
            path,
            sha256,
            size_bytes,
        };
        parts.push(Part {
            serial: Some(serial),
            verity_root_hash: Some(
                verity_root_hash.parse().map_err(|_| {
                    field(&name, "status.artifact.rootDisk.verityRootHash".to_owned())
                })?,
            ),
            ..file(&name, PartKind::RootDisk, &file_of)?
        });
    }
    Ok(Image {
        launch_digests: rows.collect::<Result<_, ObjectError>>()?,
        reference: artifact.reference.clone(),
        state: lifecycle.state,
        reason: lifecycle.reason.clone(),
        parts,
        name,
    })
}

fn file(image: &str, kind: PartKind, file: &ArtifactFile) -> Result<Part, ObjectError> {
    let named = |member| {
        field(
            image,
            format!("status.artifact.{}.{member}", json_name(kind)),
        )
    };
    Ok(Part {
        kind,
        path: file.path.clone(),
        sha256: file.sha256.parse().map_err(|_| named("sha256"))?,
        size_bytes: u64::try_from(file.size_bytes).map_err(|_| named("sizeBytes"))?,
        serial: None,
        verity_root_hash: None,
    })
}

const fn json_name(kind: PartKind) -> &'static str {
    match kind {
        PartKind::Uki => "uki",
        PartKind::Firmware => "firmware",
        PartKind::RootDisk => "rootDisk",
    }
}

fn field(image: &str, field: String) -> ObjectError {
    ObjectError::Field {
        image: image.to_owned(),
        field,
    }
}

impl Row {
    /// The row of a shape that today's QEMU launches, as the operator would
    /// publish it.
    pub fn of_shape(firmware: &Sha256Digest, shape: &LaunchShape, digest: LaunchDigest) -> Self {
        let hex = firmware.to_hex();
        let firmware = format!("ovmf-{}", hex.get(..12).unwrap_or(&hex));
        let guest_features = format!("{:#x}", shape.guest_features.0);
        let mut id = format!(
            "{firmware}.{}.{}.{guest_features}.{}",
            shape.cpu_model,
            shape.vcpus.get(),
            shape.tee
        );
        if shape.boot != assay_tee::BootMethod::DirectKernel {
            id = format!("{id}.{}", shape.boot);
        }
        Self {
            id,
            firmware,
            cpu_model: shape.cpu_model.clone(),
            vcpus: shape.vcpus.get(),
            guest_features,
            vmm: Vmm::Qemu,
            tee: shape.tee.into(),
            boot: shape.boot.into(),
            digest,
            state: DigestState::Accepted,
        }
    }
}

/// What an AttestationPolicy demands.
///
/// # Errors
/// When the object has no name.
pub fn policy_of(object: &AttestationPolicy) -> Result<Policy, ObjectError> {
    let spec = object.spec.clone();
    Ok(Policy {
        name: object.metadata.name.clone().ok_or(ObjectError::Name)?,
        tees: spec.tees,
        snp: spec.snp,
        freshness: spec.freshness,
    })
}

/// A MeasuredImage with the image's digests in its status. Its source is the
/// artifact by digest, so an operator that gets it measures the artifact anew.
///
/// # Errors
/// When a VMM other than today's QEMU was measured, which a MeasuredImage cannot
/// say, or a part is missing.
pub fn to_measured_image(image: &Image) -> Result<MeasuredImage, ObjectError> {
    if let Some(row) = image.launch_digests.iter().find(|row| row.vmm != Vmm::Qemu) {
        return Err(ObjectError::Vmm {
            image: image.name.clone(),
            id: row.id.clone(),
        });
    }
    let part = |kind: PartKind| {
        let missing = || field(&image.name, format!("parts[{}]", json_name(kind)));
        let part = image.parts.iter().find(|part| part.kind == kind);
        let part = part.ok_or_else(missing)?;
        Ok::<_, ObjectError>((
            part,
            ArtifactFile {
                path: part.path.clone(),
                sha256: part.sha256.to_string(),
                size_bytes: i64::try_from(part.size_bytes).map_err(|_| missing())?,
            },
        ))
    };
    let has_disk = image
        .parts
        .iter()
        .any(|part| part.kind == PartKind::RootDisk);
    let root_disk = if has_disk {
        let (part, file) = part(PartKind::RootDisk)?;
        let missing = |member| field(&image.name, format!("parts[rootDisk].{member}"));
        Some(RootDiskStatus {
            path: file.path,
            sha256: file.sha256,
            size_bytes: file.size_bytes,
            serial: part.serial.clone().ok_or_else(|| missing("serial"))?,
            verity_root_hash: part
                .verity_root_hash
                .ok_or_else(|| missing("verityRootHash"))?
                .to_string(),
        })
    } else {
        None
    };
    let mut vcpus: Vec<u32> = image.launch_digests.iter().map(|row| row.vcpus).collect();
    vcpus.sort_unstable();
    vcpus.dedup();
    let mut cpu_models: Vec<String> = image
        .launch_digests
        .iter()
        .map(|row| row.cpu_model.clone())
        .collect();
    cpu_models.sort_unstable();
    cpu_models.dedup();
    let mut boot: Vec<BootMethod> = image.launch_digests.iter().map(|row| row.boot).collect();
    boot.sort_unstable();
    boot.dedup();
    if boot == [BootMethod::DirectKernel] {
        boot.clear();
    }
    let accepted = image.accepted().count();
    let total = image.launch_digests.len();
    let usable = image.state != LifecycleState::Revoked;
    let mut object = MeasuredImage::new(
        &image.name,
        MeasuredImageSpec {
            source: ImageSource {
                type_: SourceType::Oci,
                build: None,
                oci: Some(OciSource {
                    reference: image.reference.clone(),
                }),
            },
            pull_secret_ref: None,
            build_job: None,
            shapes: LaunchShapes {
                vcpus,
                cpu_models,
                boot,
            },
            lifecycle: Lifecycle {
                state: image.state,
                reason: image.reason.clone(),
            },
        },
    );
    object.status = Some(MeasuredImageStatus {
        artifact: Some(ArtifactStatus {
            reference: image.reference.clone(),
            uki: part(PartKind::Uki)?.1,
            firmware: part(PartKind::Firmware)?.1,
            root_disk,
        }),
        launch_digests: image
            .launch_digests
            .iter()
            .map(|row| LaunchDigestRow {
                id: row.id.clone(),
                firmware: row.firmware.clone(),
                cpu_model: row.cpu_model.clone(),
                vcpus: row.vcpus,
                guest_features: row.guest_features.clone(),
                tee: row.tee,
                boot: row.boot,
                digest: row.digest.to_string(),
                state: if usable {
                    row.state
                } else {
                    DigestState::Revoked
                },
            })
            .collect(),
        digests: Some(DigestCounts {
            accepted: i32::try_from(accepted).unwrap_or(i32::MAX),
            total: i32::try_from(total).unwrap_or(i32::MAX),
            summary: format!("{accepted}/{total}"),
        }),
        ..MeasuredImageStatus::default()
    });
    Ok(object)
}

/// An AttestationPolicy that demands the same and releases nothing.
pub fn to_policy(policy: &Policy) -> AttestationPolicy {
    AttestationPolicy::new(&policy.name, policy.to_spec())
}

/// An object cannot become part of a statement, or a statement no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// No name.
    #[error("metadata.name is missing; give the object as `kubectl get -o yaml` prints it")]
    Name,
    /// No digests.
    #[error(
        "MeasuredImage {0} has no status.artifact or no status.launchDigests; wait until its \
         condition Measured is True, and give it as `kubectl get -o yaml` prints it"
    )]
    NotMeasured(String),
    /// The status describes another specification.
    #[error(
        "status.observedGeneration of MeasuredImage {0} is not metadata.generation: its digests may \
         be of an older specification; get it again once the operator has seen it"
    )]
    Stale(String),
    /// A value cannot be used.
    #[error("{field} of image {image} is missing or not of its form; get or export it again")]
    Field {
        /// Name of the image.
        image: String,
        /// The member.
        field: String,
    },
    /// A VMM that MeasuredImages do not know.
    #[error(
        "row {id} of image {image} was measured for a VMM other than QEMU, which a MeasuredImage \
         cannot say; leave the row out of the export"
    )]
    Vmm {
        /// Name of the image.
        image: String,
        /// The row.
        id: String,
    },
}
