//! The artifact to boot, in a directory: brought along, built, or pulled.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use assay_crds::v1alpha1::MeasuredImage;
use assay_image::artifact::build;
use assay_image::manifest::{FIRMWARE_PATH, MANIFEST_PATH, ROOT_DISK_PATH, UKI_PATH};
use assay_image::read::{ArtifactContent, ReadArtifact, read_artifact_content};
use assay_image::recipe::PinnedReference;
use bytes::Bytes;

use super::absolute;
use crate::build::write_files;
use crate::inputs::{Layouts, Sources, image_recipe};
use crate::progress::Progress;
use crate::pull::write_artifact;

/// An artifact whose every hash was recomputed.
pub(super) struct LocalArtifact {
    /// Where its files are; absolute.
    pub(super) directory: PathBuf,
    /// What it is.
    pub(super) read: ReadArtifact,
    /// What it is called.
    pub(super) reference: String,
}

impl LocalArtifact {
    /// Reads and checks the files of a directory.
    pub(super) fn read(directory: &Path, reference: &str) -> Result<Self> {
        let directory = absolute(directory)?;
        let file = |name: &str| match fs::read(directory.join(name)) {
            Ok(content) => Ok(Some(Bytes::from(content))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error)
                .with_context(|| format!("cannot read {}", directory.join(name).display())),
        };
        let needed = |name: &str| -> Result<Bytes> {
            file(name)?.with_context(|| {
                format!(
                    "{} has no {name}; give the directory that `assay build -o` or `assay pull \
                     -o` wrote to",
                    directory.display()
                )
            })
        };
        let content = ArtifactContent {
            manifest: needed(MANIFEST_PATH)?,
            uki: needed(UKI_PATH)?,
            firmware: needed(FIRMWARE_PATH)?,
            root_disk: file(ROOT_DISK_PATH)?,
        };
        let mut read = read_artifact_content(&content)
            .with_context(|| format!("cannot boot what is in {}", directory.display()))?;
        // QEMU reads the file; nobody else needs a copy.
        read.root_disk = None;
        Ok(Self {
            directory,
            read,
            reference: reference.to_owned(),
        })
    }
}

/// Builds or pulls the artifact of an image to a directory.
pub(super) fn make(
    image: &MeasuredImage,
    sources: &Sources<'_>,
    layouts: Layouts<'_>,
    directory: &Path,
    progress: &Progress,
) -> Result<LocalArtifact> {
    let reference = match &image.spec.source.oci {
        Some(oci) => pull(&oci.reference, sources, directory, progress)?,
        None => build_to(image, sources, layouts, directory, progress)?,
    };
    let step = progress.step("recompute every hash");
    let artifact = LocalArtifact::read(directory, &reference)?;
    step.done();
    Ok(artifact)
}

fn build_to(
    image: &MeasuredImage,
    sources: &Sources<'_>,
    layouts: Layouts<'_>,
    directory: &Path,
    progress: &Progress,
) -> Result<String> {
    let inputs = sources.inputs(image_recipe(image)?, layouts, progress)?;
    let step = progress.step("build");
    let artifact = build(&inputs)?;
    let packed = artifact.to_image()?;
    write_files(directory, &artifact)?;
    step.done();
    let repository = &inputs.recipe.output_repository;
    Ok(format!("{repository}@{}", packed.manifest_digest))
}

fn pull(
    reference: &str,
    sources: &Sources<'_>,
    directory: &Path,
    progress: &Progress,
) -> Result<String> {
    let pinned: PinnedReference = reference
        .parse()
        .with_context(|| format!("spec.source.oci.reference: {reference:?}"))?;
    let step = progress.step(&format!("pull artifact {pinned}"));
    let pulled = sources.pull("artifact", &pinned, None, &step)?;
    step.done();
    ensure!(
        pulled.digest == pinned.digest(),
        "got {} where {pinned} was asked for",
        pulled.digest
    );
    write_artifact(&pulled, &sources.scratch, directory)?;
    Ok(pinned.to_string())
}
