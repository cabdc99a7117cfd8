//! Which store the values are in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde::Deserialize;

use super::SecretStore;
use super::files::FileSecrets;
use super::kubernetes::KubernetesSecrets;
use super::vault::VaultKv;
use super::vault::client::VaultClient;
use super::vault::config::{KvConfig, TransitConfig, VaultConfig};
use super::vault::transit::Transit;
use crate::config::ConfigError;
use crate::service::Clock;

/// Time between looks at whether the server's token is to be renewed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where the values are: exactly one of `kubernetes`, `files` and `kv`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretsConfig {
    /// Secrets of the workload's namespace, for a broker in a cluster.
    #[serde(default)]
    pub kubernetes: Option<KubernetesConfig>,
    /// Files of a directory.
    #[serde(default)]
    pub files: Option<FilesConfig>,
    /// A key-value engine of Vault or OpenBao, version 2.
    #[serde(default)]
    pub kv: Option<KvConfig>,
    /// Opens values that the store keeps as ciphertext of a transit engine.
    #[serde(default)]
    pub transit: Option<TransitConfig>,
    /// The server of `kv` and `transit`.
    #[serde(default)]
    pub vault: Option<VaultConfig>,
}

/// Secrets of the workload's namespace. There is nothing to say.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesConfig {}

/// Files of a directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilesConfig {
    /// The directory: `{namespace}/{deployment}/{name}` below it are values.
    pub directory: PathBuf,
}

/// An open store.
pub struct OpenSecrets {
    /// The store.
    pub store: Arc<dyn SecretStore>,
    /// The server behind it, whose token is to be kept.
    pub server: Option<Arc<VaultClient>>,
}

impl OpenSecrets {
    /// Keeps the server's token for as long as this is polled. Never ends.
    pub async fn keep_alive(server: Option<Arc<VaultClient>>) {
        let Some(server) = server else {
            return std::future::pending().await;
        };
        let mut interval = tokio::time::interval(KEEP_ALIVE);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            server.keep_alive().await;
        }
    }
}

impl SecretsConfig {
    /// Kubernetes Secrets, as a broker in a cluster has them unless told otherwise.
    pub fn kubernetes() -> Self {
        Self {
            kubernetes: Some(KubernetesConfig {}),
            ..Self::default()
        }
    }

    /// Reads a file that holds nothing but this: YAML or JSON.
    ///
    /// # Errors
    /// When it cannot be read, or has a field that is unknown or wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config: Self =
            serde_saphyr::from_str(&text).map_err(|source| ConfigError::Parse {
                path: path.to_owned(),
                source: source.into(),
            })?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        config.validate()?;
        Ok(config)
    }

    /// Makes paths relative to `base`.
    pub(crate) fn resolve(&mut self, base: &Path) {
        if let Some(files) = &mut self.files {
            files.directory = base.join(&files.directory);
        }
        if let Some(vault) = &mut self.vault {
            vault.resolve(base);
        }
    }

    /// Checks what can be checked without asking the store.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let stores = [
            self.kubernetes.is_some(),
            self.files.is_some(),
            self.kv.is_some(),
        ];
        match stores.into_iter().filter(|store| *store).count() {
            1 => {}
            0 => {
                return Err(ConfigError::field(
                    "secrets",
                    "names no store; add one of files and kv, or kubernetes in a cluster",
                ));
            }
            _ => {
                return Err(ConfigError::field(
                    "secrets",
                    "names several stores; leave one of kubernetes, files and kv",
                ));
            }
        }
        match (&self.vault, self.kv.is_some() || self.transit.is_some()) {
            (None, true) => Err(ConfigError::field(
                "secrets.vault",
                "is missing; kv and transit need a server",
            )),
            (Some(_), false) => Err(ConfigError::field(
                "secrets.vault",
                "is used by nothing; add kv or transit, or remove it",
            )),
            (None, false) => Ok(()),
            (Some(vault), true) => vault.validate().map(drop),
        }
    }

    /// Opens the store, in a cluster with its `client`.
    ///
    /// # Errors
    /// The first field that is wrong, or names what cannot be used.
    pub fn open(&self, client: Option<&Client>, clock: Clock) -> Result<OpenSecrets, ConfigError> {
        self.validate()?;
        let server = match &self.vault {
            Some(vault) => Some(Arc::new(VaultClient::new(vault, clock)?)),
            None => None,
        };
        let store: Box<dyn SecretStore> = match (&self.files, &self.kv, client, &server) {
            (Some(files), _, _, _) => {
                let store = FileSecrets::open(&files.directory);
                Box::new(store.map_err(|source| {
                    ConfigError::cannot_use("secrets.files.directory")(source.into())
                })?)
            }
            (None, Some(kv), _, Some(server)) => Box::new(VaultKv::new(server.clone(), kv.clone())),
            (None, None, Some(client), _) => Box::new(KubernetesSecrets::new(client.clone())),
            _ => {
                return Err(ConfigError::field(
                    "secrets.kubernetes",
                    "is for a broker in a cluster; use files or kv",
                ));
            }
        };
        let store = match (&self.transit, &server) {
            (Some(transit), Some(server)) => {
                Arc::new(Transit::new(store, server.clone(), transit.clone()))
            }
            _ => Arc::<dyn SecretStore>::from(store),
        };
        Ok(OpenSecrets { store, server })
    }
}
