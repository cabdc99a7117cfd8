//! Where images go: to a registry, or to a directory that is carried to one.

use anyhow::{Context as _, Result};
use assay_image::oci::{Blob, OciImage};
use assay_registry::{DockerConfig, Registry, RegistryOptions};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Media type of a manifest (image-spec 1.1).
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The tag that images are pushed with. Nothing of ours asks for it.
const TAG: &str = "dev";

/// A place for images, by name.
pub(crate) enum Destination {
    /// A registry.
    Registry {
        /// `host[:port]`, and the path below which all repositories are.
        prefix: String,
        client: Registry,
        runtime: tokio::runtime::Runtime,
    },
    /// A directory.
    Layout(Layout),
}

impl Destination {
    /// A registry without TLS and without users, as the local cluster's.
    pub(crate) fn plain_http(prefix: &str) -> Result<Self> {
        let host = prefix.split('/').next().unwrap_or(prefix);
        let options = RegistryOptions {
            plain_http_hosts: vec![host.to_owned()],
            ..RegistryOptions::default()
        };
        Self::registry(prefix, options)
    }

    /// A registry with TLS, with the credentials that `docker login` and the
    /// like keep.
    pub(crate) fn https(prefix: &str) -> Result<Self> {
        let options = RegistryOptions {
            docker_config: DockerConfig::of_user()?,
            ..RegistryOptions::default()
        };
        Self::registry(prefix, options)
    }

    fn registry(prefix: &str, options: RegistryOptions) -> Result<Self> {
        Ok(Self::Registry {
            prefix: prefix.to_owned(),
            client: Registry::new(options).context("set up the registry client")?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the async runtime")?,
        })
    }

    /// An OCI image layout, which is made or replaced.
    pub(crate) fn directory(path: &Path) -> Result<Self> {
        Layout::create(path).map(Self::Layout)
    }

    /// Stores an image, and returns its reference by digest.
    pub(crate) fn store(&mut self, name: &str, image: &OciImage) -> Result<String> {
        match self {
            Self::Registry {
                prefix,
                client,
                runtime,
            } => {
                let tag = format!("{prefix}/{name}:{TAG}");
                runtime
                    .block_on(client.push(&tag, image))
                    .with_context(|| format!("push {tag}"))
            }
            Self::Layout(layout) => layout.add(name, image),
        }
    }
}

/// An OCI image layout (image-spec 1.1, `image-layout.md`).
pub(crate) struct Layout {
    directory: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    fn create(directory: &Path) -> Result<Self> {
        let layout = Self {
            directory: directory.to_owned(),
            manifests: Vec::new(),
        };
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        layout.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(layout)
    }

    fn add(&mut self, name: &str, image: &OciImage) -> Result<String> {
        let manifest = Blob::new(image.manifest.clone());
        for blob in image.layers.iter().chain([&image.config, &manifest]) {
            let path = format!("blobs/sha256/{}", blob.digest().to_hex());
            self.write(&path, &blob.content().to_bytes())?;
        }
        let digest = image.manifest_digest.to_string();
        self.manifests.push(json!({
            "mediaType": MANIFEST,
            "digest": digest,
            "size": manifest.size(),
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": name},
        }));
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        self.write("index.json", index.to_string().as_bytes())?;
        Ok(format!("{name}@{digest}"))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(path);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_image::oci::{ImageOptions, Layer};
    use assay_image::tarball::{Owner, TarBuilder};
    use assay_registry::read_layout;

    fn image(content: &[u8]) -> OciImage {
        let mut tar = TarBuilder::new();
        tar.file("x", 0o644, Owner::ROOT, content.to_vec());
        OciImage::assemble(ImageOptions::default(), &[Layer::tar(tar.finish())]).unwrap()
    }

    #[test]
    fn a_layout_holds_every_image_under_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let images = [("one", image(b"1")), ("two", image(b"2"))];
        let mut layout = Destination::directory(directory.path()).unwrap();
        for (name, image) in &images {
            let reference = layout.store(name, image).unwrap();
            assert_eq!(reference, format!("{name}@{}", image.manifest_digest));
        }
        let index = fs::read(directory.path().join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        for (entry, (name, image)) in index["manifests"].as_array().unwrap().iter().zip(&images) {
            assert_eq!(
                entry["annotations"]["org.opencontainers.image.ref.name"],
                *name
            );
            assert_eq!(entry["digest"], image.manifest_digest.to_string());
            assert_eq!(entry["size"], image.manifest.len());
            let read = read_layout(directory.path(), image.manifest_digest, None).unwrap();
            assert_eq!(read.layers, [image.layers[0].content().to_bytes()]);
        }
    }
}
