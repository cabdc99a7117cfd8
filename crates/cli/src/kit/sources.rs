//! What a kit is packed from, as one tree.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use assay_image::deb::parse_deb;
use assay_image::flatten::{StoredLayer, flatten};
use assay_image::oci::{ImageConfig, LayerCompression};
use assay_image::packages::{DPKG_STATUS_DIRECTORY, parse_deb_control};
use assay_image::rope::Rope;
use assay_image::tarball::{Owner, TarBuilder};
use assay_image::tree::Tree;
use assay_registry::{Pulled, read_layout};
use assay_tee::Sha256Digest;

use super::only_image;
use crate::registry::RegistryArgs;

/// What a kit is packed from. Where several have a file, the last one's counts:
/// images first, then directories, then packages.
#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
    /// Image with a kernel in it: host/repository@sha256:…, or an OCI layout
    #[arg(long, value_name = "IMAGE")]
    image: Vec<String>,
    /// Directory with an unpacked or installed system
    #[arg(long, value_name = "DIR")]
    root: Vec<PathBuf>,
    /// Debian package
    #[arg(long, value_name = "FILE")]
    deb: Vec<PathBuf>,
}

/// What is read of a directory. The rest of a system is of no use in a kit, and
/// much of it only root can read.
const WANTED: [&str; 16] = [
    "boot",
    "usr/lib/modules",
    "usr/lib/systemd/boot/efi",
    "usr/share/ovmf",
    "usr/share/OVMF",
    "usr/share/edk2/ovmf",
    "var/lib/dpkg/status",
    "var/lib/dpkg/status.d",
    "var/lib/dpkg/info",
    "lib/apk/db/installed",
    "usr/lib/apk/db/installed",
    "usr/lib/sysimage/rpm",
    "var/lib/rpm",
    "usr/share/rpm",
    "etc/os-release",
    "usr/lib/os-release",
];

/// What packages take for granted: `lib` and `usr/lib` are one directory.
const MERGED: [(&str, &str); 4] = [
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
];

impl SourceArgs {
    /// All sources, one over the other. `paths` are read of directories besides
    /// what a kit usually consists of.
    pub(super) fn tree(&self, registry: &RegistryArgs, paths: &[&str]) -> Result<Tree> {
        ensure!(
            !(self.image.is_empty() && self.root.is_empty() && self.deb.is_empty()),
            "name what to pack the kit from: --deb, --root or --image"
        );
        let mut layers = Layers::default();
        for image in &self.image {
            let pulled = pull(image, registry)?;
            layers
                .image(&pulled)
                .with_context(|| format!("cannot use {image}"))?;
        }
        for root in &self.root {
            let tar = directory(root, paths)
                .with_context(|| format!("cannot read {}", root.display()))?;
            layers.tar(&tar);
        }
        if !self.deb.is_empty() {
            let mut links = TarBuilder::new();
            for (link, target) in MERGED {
                links.symlink(link, target, Owner::ROOT);
            }
            layers.tar(&links.finish());
        }
        for path in &self.deb {
            layers
                .deb(path)
                .with_context(|| format!("cannot use {}", path.display()))?;
        }
        layers.flatten()
    }
}

fn pull(image: &str, registry: &RegistryArgs) -> Result<Pulled> {
    let directory = Path::new(image);
    if directory.is_dir() {
        return Ok(read_layout(directory, only_image(directory, None)?, None)?);
    }
    let client = registry.client()?;
    client
        .runtime
        .block_on(client.registry.pull(image))
        .with_context(|| format!("cannot pull {image}"))
}

/// An image's files.
pub(crate) fn flatten_image(pulled: &Pulled) -> Result<Tree> {
    let mut layers = Layers::default();
    layers.image(pulled)?;
    layers.flatten()
}

/// Layers with their uncompressed digests.
#[derive(Default)]
struct Layers {
    stored: Vec<StoredLayer>,
    diff_ids: Vec<Sha256Digest>,
}

impl Layers {
    fn image(&mut self, pulled: &Pulled) -> Result<()> {
        let config: ImageConfig = serde_json::from_slice(&pulled.config)
            .context("cannot read the image configuration")?;
        self.stored.extend(pulled.stored_layers()?);
        self.diff_ids.extend(config.rootfs.diff_ids);
        Ok(())
    }

    fn tar(&mut self, tar: &Rope) {
        self.diff_ids.push(tar.sha256());
        self.stored.push(StoredLayer {
            bytes: tar.to_bytes(),
            compression: LayerCompression::None,
        });
    }

    fn deb(&mut self, path: &Path) -> Result<()> {
        let package = parse_deb(&fs::read(path)?.into())?;
        let known = parse_deb_control(&package.control).context("its control file has no name")?;
        let mut status = TarBuilder::new();
        let stanza = format!("{DPKG_STATUS_DIRECTORY}/{}", known.name);
        status.file(stanza, 0o644, Owner::ROOT, package.control.into_bytes());
        self.tar(&Rope::from(package.data));
        self.tar(&status.finish());
        Ok(())
    }

    fn flatten(self) -> Result<Tree> {
        Ok(flatten(&self.stored, &self.diff_ids)?)
    }
}

/// What is wanted of a directory, as an archive.
fn directory(root: &Path, paths: &[&str]) -> Result<Rope> {
    let mut tar = TarBuilder::new();
    for wanted in WANTED.iter().chain(paths) {
        let wanted = wanted.trim_start_matches('/');
        let mut pending = vec![PathBuf::from(wanted)];
        while let Some(relative) = pending.pop() {
            let path = root.join(&relative);
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            let failed = || format!("cannot read {}", path.display());
            let name = relative.as_os_str().as_bytes();
            if metadata.is_dir() {
                for entry in fs::read_dir(&path).with_context(failed)? {
                    pending.push(relative.join(entry.with_context(failed)?.file_name()));
                }
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).with_context(failed)?;
                tar.symlink(name, target.as_os_str().as_bytes(), Owner::ROOT);
            } else if metadata.is_file() {
                let content = fs::read(&path).with_context(failed)?;
                tar.file(name, 0o644, Owner::ROOT, content);
            }
        }
    }
    Ok(tar.finish())
}
