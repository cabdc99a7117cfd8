//! The configuration file of a broker without Kubernetes.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use assay_crds::duration::Duration as ApiDuration;
use reqwest::Url;
use serde::Deserialize;

use crate::publication::ClusterConfig;
use crate::secrets::config::SecretsConfig;
use crate::volume::declared::{VolumeConfig, declared_volumes};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a configuration.
    #[error("{} is not a configuration", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A field is wrong.
    #[error("{field}: {remedy}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong, and the remedy.
        remedy: String,
    },
    /// What a field names cannot be used.
    #[error("cannot use {field}")]
    Use {
        /// The field.
        field: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ConfigError {
    pub(crate) fn field(field: &'static str, remedy: impl Into<String>) -> Self {
        Self::Field {
            field,
            remedy: remedy.into(),
        }
    }

    pub(crate) fn cannot_use(
        field: &'static str,
    ) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |source| Self::Use { field, source }
    }
}

/// The configuration. Paths are relative to its file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Address to serve on, over TLS 1.3.
    pub listen: SocketAddr,
    /// Directory for keys, records and the audit log; made if it does not exist.
    pub state_directory: PathBuf,
    /// The server's certificate.
    pub tls: TlsConfig,
    /// What there is.
    pub inventory: InventoryConfig,
    /// Where the values are.
    pub secrets: SecretsConfig,
    /// Volumes that the broker makes keys for.
    #[serde(default)]
    pub volumes: Vec<VolumeConfig>,
    /// Where records go beside the state directory.
    #[serde(default)]
    pub records: RecordsConfig,
    /// The audit log; `audit.jsonl` in the state directory, if absent.
    #[serde(default)]
    pub audit_log: Option<PathBuf>,
    /// Address for metrics, over plain HTTP; nowhere, if absent.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddr>,
    /// Address for the proxies of COCONUT-SVSM guests, over plain HTTP; nowhere, if
    /// absent.
    #[serde(default)]
    pub svsm_listen: Option<SocketAddr>,
    /// What the processor's vendor publishes.
    #[serde(default)]
    pub collateral: Option<CollateralConfig>,
    /// PEM of a development root. Evidence of simulated processors under it is
    /// accepted where a policy names SimulatedSNP. It protects nothing.
    #[serde(default)]
    pub simulated_root: Option<PathBuf>,
    /// JSON of what is refused under every policy: `chips`, `keys`, `providers`.
    #[serde(default)]
    pub deny_list: Option<PathBuf>,
}

/// The server's certificate: made by the broker for `names`, or brought along as
/// `certificate`, `key` and `ca`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsConfig {
    /// Names and addresses by which guests know the broker.
    #[serde(default)]
    pub names: Vec<String>,
    /// PEM of the server's certificate and its intermediates.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// PEM of its key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// PEM of the authorities that guests are to trust.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// Where the server's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSource {
    /// The broker's own authority issues it.
    Issued {
        /// Names and addresses in it.
        names: Vec<String>,
    },
    /// It is in files.
    Files {
        /// PEM of the chain.
        certificate: PathBuf,
        /// PEM of the key.
        key: PathBuf,
        /// PEM of the authorities.
        ca: PathBuf,
    },
}

/// What there is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InventoryConfig {
    /// Directory of ConfidentialDeployments, MeasuredImages and
    /// AttestationPolicies as YAML or JSON.
    pub directory: PathBuf,
    /// Time between looks at it. It is also read before every release.
    #[serde(default = "reload_interval")]
    pub reload_interval: ApiDuration,
    /// Whether policies for hardware may leave out the chips that they allow.
    #[serde(default)]
    pub any_chip: bool,
}

/// What the processor's vendor publishes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CollateralConfig {
    /// Directory that keeps it.
    pub directory: PathBuf,
    /// Key distribution service to fetch from; without one nothing is fetched.
    #[serde(default)]
    pub url: Option<String>,
}

/// Where records go beside the state directory.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordsConfig {
    /// The cluster whose pods the guests are of.
    #[serde(default)]
    pub kubernetes: Option<ClusterConfig>,
}

fn reload_interval() -> ApiDuration {
    ApiDuration::from_secs(5)
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When it cannot be read, has a field that is unknown or wrong, or lacks one.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: source.into(),
        })?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        config.tls.source()?;
        config.secrets.validate()?;
        declared_volumes(&config.volumes)?;
        Ok(config)
    }

    /// Makes paths relative to `base`.
    fn resolve(&mut self, base: &Path) {
        let paths = [&mut self.state_directory, &mut self.inventory.directory];
        let optional = [
            &mut self.audit_log,
            &mut self.simulated_root,
            &mut self.deny_list,
            &mut self.tls.certificate,
            &mut self.tls.key,
            &mut self.tls.ca,
        ];
        let collateral = self.collateral.as_mut().map(|config| &mut config.directory);
        let cluster = self.records.kubernetes.as_mut();
        let cluster = cluster.map(|cluster| [&mut cluster.token_file, &mut cluster.ca_file]);
        let paths = paths
            .into_iter()
            .chain(optional.into_iter().flatten())
            .chain(collateral)
            .chain(cluster.into_iter().flatten());
        for path in paths {
            *path = base.join(&path);
        }
        self.secrets.resolve(base);
    }
}

impl InventoryConfig {
    /// Time between looks at the directory.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.reload_interval.as_secs().into())
    }
}

impl TlsConfig {
    /// Where the certificate comes from.
    ///
    /// # Errors
    /// When it says both, or neither in full.
    pub fn source(&self) -> Result<TlsSource, ConfigError> {
        match (&self.certificate, &self.key, &self.ca) {
            (None, None, None) if self.names.is_empty() => Err(ConfigError::field(
                "tls.names",
                "is missing; list the names and addresses by which guests reach the broker, or \
                 give certificate, key and ca",
            )),
            (None, None, None) => Ok(TlsSource::Issued {
                names: self.names.clone(),
            }),
            (Some(certificate), Some(key), Some(ca)) if self.names.is_empty() => {
                Ok(TlsSource::Files {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    ca: ca.clone(),
                })
            }
            (Some(_), Some(_), Some(_)) => Err(ConfigError::field(
                "tls.names",
                "is for certificates that the broker issues itself; remove it, or certificate, key \
                 and ca",
            )),
            _ => Err(ConfigError::field(
                "tls",
                "certificate, key and ca belong together; give all three or none",
            )),
        }
    }
}

/// Whether the host of `url` is an address of the loopback interface, which what is
/// sent does not leave. A name may lead anywhere.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Chain;

    const GOOD: &str = r#"
listen = "127.0.0.1:8443"
stateDirectory = "state"
tls.names = ["broker.example"]
inventory.directory = "/etc/objects"
secrets.files.directory = "secrets"
"#;

    fn load(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.toml");
        fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| Chain(&error).to_string())
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = load(GOOD).unwrap();
        assert!(config.state_directory.is_absolute());
        assert!(config.state_directory.ends_with("state"));
        assert_eq!(config.inventory.directory, Path::new("/etc/objects"));
        assert_eq!(config.inventory.interval(), Duration::from_secs(5));
        let files = config.secrets.files.unwrap();
        assert!(files.directory.is_absolute());
        let names = vec!["broker.example".to_owned()];
        assert_eq!(config.tls.source().unwrap(), TlsSource::Issued { names });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let without = |line: &str| {
            assert!(GOOD.contains(line));
            GOOD.replace(line, "")
        };
        let with = |lines: &str| format!("{GOOD}{lines}");
        for (text, words) in [
            (
                without("listen = \"127.0.0.1:8443\""),
                "missing field `listen`",
            ),
            (with("auditlog = \"x\""), "unknown field `auditlog`"),
            (with("inventory.anychip = true"), "unknown field `anychip`"),
            (
                with("inventory.reloadInterval = \"5\""),
                "not a duration such as 90s",
            ),
            (
                without("tls.names = [\"broker.example\"]"),
                "missing field `tls`",
            ),
            (
                GOOD.replace("[\"broker.example\"]", "[]"),
                "tls.names: is missing; list the names",
            ),
            (
                with("tls.key = \"k\""),
                "tls: certificate, key and ca belong together",
            ),
            (
                with("tls.key = \"k\"\ntls.certificate = \"c\"\ntls.ca = \"a\""),
                "tls.names: is for certificates that the broker issues itself",
            ),
            (
                without("secrets.files.directory = \"secrets\""),
                "missing field `secrets`",
            ),
            (
                GOOD.replace("secrets.files.directory = \"secrets\"", "secrets = {}"),
                "secrets: names no store; add one of files and kv",
            ),
            (
                with("[[volumes]]\nresource = \"shop/data\""),
                "volumes.resource: \"shop/data\" is not namespace/deployment/volume",
            ),
            (
                with("[[volumes]]\nresource = \"shop/../data\""),
                "volumes.resource: \"shop/../data\" is not namespace/deployment/volume",
            ),
            (
                with(&"[[volumes]]\nresource = \"shop/web/data\"\n".repeat(2)),
                "volumes.resource: \"shop/web/data\" is there twice",
            ),
            (
                with("[[volumes]]\nresource = \"shop/web/data\"\nkeyVersion = 0"),
                "is not a configuration: TOML parse error",
            ),
            ("listen = ".to_owned(), "is not a configuration"),
        ] {
            let error = load(&text).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        let missing = Config::load(Path::new("/nonexistent/broker.toml")).unwrap_err();
        assert!(matches!(missing, ConfigError::Read { .. }));
    }
}
