//! Whether an image can be built and measured, before anything is started.

use assay_crds::v1alpha1::MeasuredImage;
use assay_crds::v1alpha1::measured_image::SourceType;
use assay_workload::recipe::build_recipe;
use assay_workload::shapes::MAX_ROWS;
use kube::ResourceExt as _;

/// Longest name: it becomes a label's value.
const MAX_NAME_LEN: usize = 63;

/// Checks the specification.
///
/// # Errors
/// A sentence that names the field and the remedy.
pub(super) fn validate(image: &MeasuredImage) -> Result<(), String> {
    let spec = &image.spec;
    if image.name_any().len() > MAX_NAME_LEN {
        return Err(format!(
            "metadata.name is longer than {MAX_NAME_LEN} characters, but it becomes a label: \
             create the MeasuredImage under a shorter name"
        ));
    }
    match (spec.source.type_, &spec.source.build, &spec.source.oci) {
        (SourceType::Build, Some(build), None) => {
            build_recipe(build).validate().map_err(|error| {
                let mut text = format!("spec.source.build: {error}");
                if let Some(cause) = std::error::Error::source(&error) {
                    text = format!("{text}: {cause}");
                }
                text
            })?;
        }
        (SourceType::Oci, None, Some(_)) => {}
        _ => {
            return Err(
                "spec.source must have exactly the member that spec.source.type names".to_owned(),
            );
        }
    }
    let listed = spec
        .shapes
        .vcpus
        .len()
        .saturating_mul(spec.shapes.cpu_models.len())
        .saturating_mul(spec.shapes.boot.len().max(1));
    if listed > MAX_ROWS {
        return Err(format!(
            "spec.shapes lists {listed} shapes, at most {MAX_ROWS} have room in the status: list \
             fewer; what deployments ask for is added by itself"
        ));
    }
    if spec.shapes.vcpus.is_empty() != spec.shapes.cpu_models.is_empty() {
        return Err("spec.shapes needs both vcpus and cpuModels, or neither".to_owned());
    }
    if !spec.shapes.boot.is_empty() && spec.shapes.vcpus.is_empty() {
        return Err(
            "spec.shapes.boot goes with vcpus and cpuModels: list them, or leave it out".to_owned(),
        );
    }
    Ok(())
}
