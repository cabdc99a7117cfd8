//! Where images go: to a registry, or to a directory that is carried to one.

use anyhow::{Context as _, Result};
use assay_image::oci::OciImage;
use assay_registry::{DockerConfig, LayoutWriter, NoProgress, Registry, RegistryOptions};
use std::path::Path;

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
    Layout(LayoutWriter),
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
        let layout = LayoutWriter::create(path).context("make the layout")?;
        Ok(Self::Layout(layout))
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
                    .block_on(client.push(&tag, image, &NoProgress))
                    .with_context(|| format!("push {tag}"))
            }
            Self::Layout(layout) => {
                layout.add(name, image).context("fill the layout")?;
                Ok(format!("{name}@{}", image.manifest_digest))
            }
        }
    }
}
