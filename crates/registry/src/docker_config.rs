//! Registry credentials in the format of `~/.docker/config.json`, which is also
//! the content of a Kubernetes Secret of type `kubernetes.io/dockerconfigjson`.
//!
//! Credential helpers are programs and are not run.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

/// Docker Hub's key, which is not its host name.
const DOCKER_HUB_KEY: &str = "index.docker.io";
const DOCKER_HUB_HOST: &str = "docker.io";

/// Credentials per registry.
#[derive(Clone, Default)]
pub struct DockerConfig {
    by_host: BTreeMap<String, (String, String)>,
}

/// Without the passwords.
impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_host.keys()).finish()
    }
}

/// The credentials cannot be read. A file that is there but broken is an error:
/// going on without it would look like a missing image.
#[derive(Debug, thiserror::Error)]
pub enum ParseDockerConfigError {
    /// Not JSON of the expected form.
    #[error("docker configuration is not valid JSON of the expected form")]
    Json(#[source] serde_json::Error),
    /// An `auth` member is not base64 of `user:password`.
    #[error("docker configuration: auths[{host:?}].auth is not base64 of user:password")]
    Auth {
        /// Key of the entry.
        host: String,
    },
}

/// The credentials that a person's programs keep cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadDockerConfigError {
    /// The file cannot be read.
    #[error("cannot read the registry credentials in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("cannot use the registry credentials in {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ParseDockerConfigError,
    },
}

impl DockerConfig {
    /// What `docker login` and the like keep for this person: `config.json` in
    /// `$DOCKER_CONFIG`, or in `.docker` of the home directory. `None` where there
    /// is none.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn of_user() -> Result<Option<Self>, LoadDockerConfigError> {
        let directory = std::env::var_os("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")));
        let Some(path) = directory.map(|directory| directory.join("config.json")) else {
            return Ok(None);
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoadDockerConfigError::Read { path, source }),
        };
        let config = Self::parse(&bytes);
        let config = config.map_err(|source| LoadDockerConfigError::Parse { path, source })?;
        Ok(Some(config))
    }

    /// Parses the file's content.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseDockerConfigError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            auths: BTreeMap<String, Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            auth: Option<String>,
            username: Option<String>,
            password: Option<String>,
        }
        let file: File = serde_json::from_slice(bytes).map_err(ParseDockerConfigError::Json)?;
        let mut by_host = BTreeMap::new();
        for (key, entry) in file.auths {
            let credentials = match (entry.auth, entry.username, entry.password) {
                (Some(auth), _, _) if !auth.is_empty() => {
                    let decoded = BASE64_STANDARD
                        .decode(&auth)
                        .ok()
                        .and_then(|b| String::from_utf8(b).ok());
                    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
                    let Some((user, password)) = pair else {
                        return Err(ParseDockerConfigError::Auth { host: key });
                    };
                    (user.to_owned(), password.to_owned())
                }
                (_, Some(user), Some(password)) => (user, password),
                // An entry that a credential helper would complete.
                _ => continue,
            };
            by_host.insert(host_of(&key).to_owned(), credentials);
        }
        Ok(Self { by_host })
    }

    /// User and password for a registry (`host` or `host:port`).
    pub fn credentials(&self, registry: &str) -> Option<(&str, &str)> {
        let (user, password) = self.by_host.get(host_of(registry))?;
        Some((user, password))
    }
}

/// `host[:port]` of a key, which may be a URL.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split_once('/').map_or(rest, |(host, _)| host) {
        DOCKER_HUB_KEY => DOCKER_HUB_HOST,
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_key_and_entry_is_found() {
        let config = DockerConfig::parse(
            br#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dTpwOnE="},
                "registry.example:5000": {"username": "a", "password": "b"},
                "helper.example": {}
            }, "credsStore": "desktop"}"#,
        )
        .unwrap();
        assert_eq!(config.credentials("docker.io"), Some(("u", "p:q")));
        assert_eq!(
            config.credentials("registry.example:5000"),
            Some(("a", "b"))
        );
        assert_eq!(config.credentials("registry.example"), None);
        assert_eq!(config.credentials("helper.example"), None);
    }

    #[test]
    fn broken_credentials_are_errors() {
        for auth in ["%%%", "dXNlcg=="] {
            let text = format!(r#"{{"auths": {{"x": {{"auth": "{auth}"}}}}}}"#);
            assert!(matches!(
                DockerConfig::parse(text.as_bytes()),
                Err(ParseDockerConfigError::Auth { .. })
            ));
        }
        assert!(matches!(
            DockerConfig::parse(b"["),
            Err(ParseDockerConfigError::Json(_))
        ));
    }

    #[test]
    fn passwords_are_not_printed() {
        let config =
            DockerConfig::parse(br#"{"auths":{"h":{"username":"u","password":"hunter2"}}}"#);
        assert!(!format!("{:?}", config.unwrap()).contains("hunter2"));
    }
}
