//! How to reach Vault or OpenBao, and what to read there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assay_crds::duration::Duration as ApiDuration;
use reqwest::Url;
use serde::Deserialize;

use crate::config::{ConfigError, is_loopback};

/// How to reach the server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultConfig {
    /// Its URL. Plain HTTP is for an agent on the loopback interface alone.
    pub address: String,
    /// Namespace of the server, sent as `X-Vault-Namespace`.
    #[serde(default)]
    pub namespace: Option<String>,
    /// PEM of the authorities that its certificate must chain to; public ones, if
    /// absent.
    #[serde(default)]
    pub ca: Option<String>,
    /// The same in a file.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Longest time for one request.
    #[serde(default = "timeout")]
    pub timeout: ApiDuration,
    /// How to log in: exactly one way.
    pub auth: AuthConfig,
}

/// How to log in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthConfig {
    /// A token in a file, such as the sink of an agent.
    #[serde(default)]
    pub token: Option<TokenConfig>,
    /// An AppRole.
    #[serde(default)]
    pub app_role: Option<AppRoleConfig>,
    /// The ServiceAccount of a pod.
    #[serde(default)]
    pub kubernetes: Option<KubernetesConfig>,
}

/// A token in a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenConfig {
    /// The file.
    pub file: PathBuf,
}

/// An AppRole.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppRoleConfig {
    /// Where the method is mounted.
    #[serde(default = "app_role_mount")]
    pub mount: String,
    /// The role's id.
    pub role_id: String,
    /// File with the secret id.
    pub secret_id_file: PathBuf,
}

/// The ServiceAccount of a pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesConfig {
    /// Where the method is mounted.
    #[serde(default = "kubernetes_mount")]
    pub mount: String,
    /// The role.
    pub role: String,
    /// File with the ServiceAccount's token.
    #[serde(default = "service_account_token")]
    pub jwt_file: PathBuf,
}

/// What to read of a key-value engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KvConfig {
    /// Where the engine is mounted.
    #[serde(default = "kv_mount")]
    pub mount: String,
    /// Path below which namespaces are.
    #[serde(default = "kv_prefix")]
    pub prefix: String,
    /// Versions to read instead of the latest, by `{namespace}/{name}`.
    #[serde(default)]
    pub versions: BTreeMap<String, u64>,
}

/// What opens values that the store keeps sealed.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransitConfig {
    /// Where the engine is mounted.
    #[serde(default = "transit_mount")]
    pub mount: String,
    /// Name of the key.
    pub key: String,
    /// What a ciphertext is bound to.
    #[serde(default)]
    pub bind: TransitBinding,
}

/// What a ciphertext is bound to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum TransitBinding {
    /// Its associated data is the resource's path, `{namespace}/{deployment}/{name}`:
    /// whoever can write to the store cannot give one workload's value to another.
    #[default]
    Resource,
    /// Nothing.
    None,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            mount: kv_mount(),
            prefix: kv_prefix(),
            versions: BTreeMap::new(),
        }
    }
}

fn timeout() -> ApiDuration {
    ApiDuration::from_secs(5)
}

fn app_role_mount() -> String {
    "approle".to_owned()
}

fn kubernetes_mount() -> String {
    "kubernetes".to_owned()
}

fn service_account_token() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

fn kv_mount() -> String {
    "secret".to_owned()
}

fn kv_prefix() -> String {
    "assay".to_owned()
}

fn transit_mount() -> String {
    "transit".to_owned()
}

impl VaultConfig {
    /// Makes paths relative to `base`.
    pub(crate) fn resolve(&mut self, base: &Path) {
        let AuthConfig {
            token,
            app_role,
            kubernetes,
        } = &mut self.auth;
        let paths = [
            self.ca_file.as_mut(),
            token.as_mut().map(|token| &mut token.file),
            app_role.as_mut().map(|role| &mut role.secret_id_file),
            kubernetes.as_mut().map(|role| &mut role.jwt_file),
        ];
        for path in paths.into_iter().flatten() {
            *path = base.join(&path);
        }
    }

    /// Longest time for one request.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.as_secs().into())
    }

    /// Checks what can be checked without asking the server.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub(crate) fn validate(&self) -> Result<Url, ConfigError> {
        let field = "secrets.vault.address";
        let url = Url::parse(&self.address)
            .map_err(|error| ConfigError::field(field, format!("is not a URL: {error}")))?;
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            _ => {
                return Err(ConfigError::field(
                    field,
                    "is not https: values and tokens would cross the network in the clear; plain \
                     http is for an agent on the loopback interface",
                ));
            }
        }
        if self.ca.is_some() && self.ca_file.is_some() {
            return Err(ConfigError::field(
                "secrets.vault.ca",
                "and caFile are the same; give one",
            ));
        }
        let AuthConfig {
            token,
            app_role,
            kubernetes,
        } = &self.auth;
        let ways = [token.is_some(), app_role.is_some(), kubernetes.is_some()];
        if ways.into_iter().filter(|way| *way).count() != 1 {
            return Err(ConfigError::field(
                "secrets.vault.auth",
                "is not one way to log in; give exactly one of token, appRole and kubernetes",
            ));
        }
        Ok(url)
    }

    /// PEM of the authorities, if not the public ones.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn authorities(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        match (&self.ca, &self.ca_file) {
            (Some(ca), _) => Ok(Some(ca.clone().into_bytes())),
            (None, Some(path)) => match fs::read(path) {
                Ok(pem) => Ok(Some(pem)),
                Err(source) => {
                    let path = path.clone();
                    let source = ConfigError::Read { path, source };
                    Err(ConfigError::cannot_use("secrets.vault.caFile")(
                        source.into(),
                    ))
                }
            },
            (None, None) => Ok(None),
        }
    }
}
