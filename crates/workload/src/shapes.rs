//! Which launch shapes get a digest, and the rows that publish them.

use std::collections::BTreeSet;

use assay_crds::v1alpha1::measured_image::{
    DigestState, LaunchDigestRow, LaunchShapes, LifecycleState,
};
use assay_tee::{BootMethod, GuestFeatures, LaunchDigest, LaunchShape, Tee, VcpuCount};

/// Most rows of a status (the type's own limit).
pub const MAX_ROWS: usize = 64;

/// The shape of a machine with today's defaults for everything else.
pub fn shape(tee: Tee, boot: BootMethod, vcpus: u32, cpu_model: &str) -> Option<LaunchShape> {
    Some(LaunchShape {
        tee,
        boot,
        vcpus: VcpuCount::try_from(vcpus).ok()?,
        cpu_model: cpu_model.to_owned(),
        guest_features: GuestFeatures::default(),
    })
}

/// Every shape that gets a row: first what deployments ask for or still run,
/// then what the image lists, for SNP and the TEEs that its deployments use.
pub fn wanted(listed: &LaunchShapes, requested: &BTreeSet<LaunchShape>) -> Vec<LaunchShape> {
    let mut tees: BTreeSet<Tee> = requested.iter().map(|shape| shape.tee).collect();
    tees.insert(Tee::Snp);
    let mut shapes: Vec<LaunchShape> = requested.iter().cloned().collect();
    let boot: &[_] = match listed.boot.as_slice() {
        [] => &[assay_crds::v1alpha1::BootMethod::DirectKernel],
        listed => listed,
    };
    for tee in tees {
        for boot in boot {
            for model in &listed.cpu_models {
                for vcpus in &listed.vcpus {
                    let shape = shape(tee, (*boot).into(), *vcpus, model);
                    shapes.extend(shape.filter(|shape| !requested.contains(shape)));
                }
            }
        }
    }
    let mut seen = BTreeSet::new();
    shapes.retain(|shape| seen.insert(shape.clone()));
    shapes
}

/// A name for firmware by its digest.
pub fn firmware_name(sha256: &str) -> String {
    let digits = sha256.strip_prefix("sha256:").unwrap_or(sha256);
    format!("ovmf-{}", digits.get(..12).unwrap_or(digits))
}

/// The key of a row.
pub fn row_id(firmware: &str, shape: &LaunchShape) -> String {
    let id = format!(
        "{firmware}.{}.{}.{:#x}.{}",
        shape.cpu_model,
        shape.vcpus.get(),
        shape.guest_features.0,
        shape.tee
    );
    match shape.boot {
        BootMethod::DirectKernel => id,
        boot @ BootMethod::Igvm => format!("{id}.{boot}"),
    }
}

/// A row of the status.
pub fn row(
    firmware: &str,
    shape: &LaunchShape,
    digest: LaunchDigest,
    lifecycle: LifecycleState,
) -> LaunchDigestRow {
    LaunchDigestRow {
        id: row_id(firmware, shape),
        firmware: firmware.to_owned(),
        cpu_model: shape.cpu_model.clone(),
        vcpus: shape.vcpus.get(),
        guest_features: format!("{:#x}", shape.guest_features.0),
        tee: shape.tee.into(),
        boot: shape.boot.into(),
        digest: digest.to_string(),
        state: row_state(lifecycle),
    }
}

/// The state of an image's rows.
pub fn row_state(lifecycle: LifecycleState) -> DigestState {
    match lifecycle {
        LifecycleState::Active | LifecycleState::Deprecated => DigestState::Accepted,
        LifecycleState::Revoked => DigestState::Revoked,
    }
}
