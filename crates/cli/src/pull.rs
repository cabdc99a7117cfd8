//! `assay pull`: an artifact's files, every hash recomputed before one of them
//! is written.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_image::manifest::{FIRMWARE_PATH, MANIFEST_PATH, ROOT_DISK_PATH, UKI_PATH};
use assay_image::read::read_artifact;
use assay_registry::{Pulled, Scratch};
use assay_tee::canonical::encode_canonical;

use crate::output_file;
use crate::registry::RegistryArgs;

/// Options of `assay pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The artifact: host/repository@sha256:…
    reference: String,
    /// Directory to write manifest.json, uki.efi, firmware.fd and, where the
    /// artifact has one, rootfs.img to
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Pulls, verifies, writes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let client = args.registry.client()?;
    let pulled = client
        .runtime
        .block_on(client.registry.pull(&args.reference))
        .with_context(|| format!("pull {}", args.reference))?;
    write_artifact(&pulled, &client.scratch, &args.output)
}

/// Writes the files of an artifact that is what it says.
pub(crate) fn write_artifact(pulled: &Pulled, scratch: &Scratch, directory: &Path) -> Result<()> {
    let layers = scratch.uncompress(pulled.stored_layers()?)?;
    let artifact = read_artifact(&pulled.config, &layers)?;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let manifest = encode_canonical(&artifact.manifest).context("encode the manifest")?;
    let files = [
        (MANIFEST_PATH, Some(manifest.into())),
        (UKI_PATH, Some(artifact.uki)),
        (FIRMWARE_PATH, Some(artifact.firmware)),
        (ROOT_DISK_PATH, artifact.root_disk),
    ];
    for (name, bytes) in files {
        let Some(bytes) = bytes else { continue };
        let path = directory.join(name);
        output_file::write(&path, &bytes.into())?;
    }
    Ok(())
}
