//! Options of commands that reach registries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_registry::{DockerConfig, Registry, RegistryOptions, Scratch};

use crate::scratch::ScratchArgs;

/// How to reach registries.
#[derive(Debug, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Registry host that speaks plain HTTP; may be given more than once
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// Registry credentials, in the format of ~/.docker/config.json
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    #[command(flatten)]
    scratch: ScratchArgs,
}

/// A client for registries, and what it runs on.
pub(crate) struct Client {
    pub(crate) registry: Registry,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) scratch: Scratch,
}

impl RegistryArgs {
    pub(crate) fn client(&self) -> Result<Client> {
        let scratch = self.scratch.open()?;
        let options = RegistryOptions {
            plain_http_hosts: self.plain_http.clone(),
            docker_config: self
                .docker_config
                .as_deref()
                .map(read_credentials)
                .transpose()?,
            scratch: Some(scratch.clone()),
        };
        Ok(Client {
            registry: Registry::new(options)?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start the async runtime")?,
            scratch,
        })
    }
}

/// Credentials in a file of a person's choice.
pub(crate) fn read_credentials(path: &Path) -> Result<DockerConfig> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    DockerConfig::parse(&bytes).with_context(|| path.display().to_string())
}
