//! Credentials of private artifacts: a Secret that a MeasuredImage names.
//!
//! The operator has no right to read Secrets. Whoever owns a namespace grants it the
//! one, by name, or does not; without it the operator asks the registry as a stranger.
//! The Secret is read when an artifact is pulled, and not kept.

use std::fmt;

use assay_registry::{DockerConfig, ParseDockerConfigError};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

/// The key of a Secret of type `kubernetes.io/dockerconfigjson`.
const KEY: &str = ".dockerconfigjson";
/// The operator's ServiceAccount, by the chart.
const SERVICE_ACCOUNT: &str = "assay-operator";

/// A Secret, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PullSecret {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PullSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {}/{}", self.namespace, self.name)
    }
}

/// What a Secret has to say.
#[derive(Debug)]
pub enum Credentials {
    /// Credentials.
    Given(DockerConfig),
    /// The operator may not read it.
    Withheld,
}

/// A Secret that may be read cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PullSecretError {
    /// The API server does not answer.
    #[error("cannot read {secret}")]
    Read {
        /// Which.
        secret: PullSecret,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// There is none.
    #[error(
        "{secret} does not exist: create it, of type kubernetes.io/dockerconfigjson, or correct \
         spec.pullSecretRef"
    )]
    Missing {
        /// Which.
        secret: PullSecret,
    },
    /// It is of another type.
    #[error("{secret} has no key {KEY}: create it of type kubernetes.io/dockerconfigjson")]
    NoKey {
        /// Which.
        secret: PullSecret,
    },
    /// It holds something else.
    #[error("cannot use {secret}")]
    Parse {
        /// Which.
        secret: PullSecret,
        /// Why.
        #[source]
        source: ParseDockerConfigError,
    },
}

/// Reads such Secrets.
#[derive(Clone)]
pub struct PullSecrets {
    client: Client,
    installation: String,
}

impl PullSecrets {
    /// A reader of the installation in the namespace `installation`.
    pub fn new(client: Client, installation: String) -> Self {
        Self {
            client,
            installation,
        }
    }

    /// What a Secret has to say.
    ///
    /// # Errors
    /// When it may be read, and cannot be used. Only that it may not be read is none.
    pub async fn read(&self, secret: &PullSecret) -> Result<Credentials, PullSecretError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &secret.namespace);
        match secrets.get_opt(&secret.name).await {
            Ok(found) => parse(secret, found.as_ref()).map(Credentials::Given),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(Credentials::Withheld),
            Err(source) => Err(PullSecretError::Read {
                secret: secret.clone(),
                source,
            }),
        }
    }

    /// How the owner of the namespace lets the operator read the Secret.
    pub fn remedy(&self, secret: &PullSecret) -> String {
        let PullSecret { namespace, name } = secret;
        let installation = &self.installation;
        format!(
            "the operator may not read {secret}: let it, by `kubectl -n {namespace} create role \
             assay-pull --verb=get --resource=secrets --resource-name={name}` and `kubectl -n \
             {namespace} create rolebinding assay-pull --role=assay-pull \
             --serviceaccount={installation}:{SERVICE_ACCOUNT}`"
        )
    }
}

fn parse(secret: &PullSecret, found: Option<&Secret>) -> Result<DockerConfig, PullSecretError> {
    let found = found.ok_or_else(|| PullSecretError::Missing {
        secret: secret.clone(),
    })?;
    let data = found.data.as_ref().and_then(|data| data.get(KEY));
    let data = data.ok_or_else(|| PullSecretError::NoKey {
        secret: secret.clone(),
    })?;
    DockerConfig::parse(&data.0).map_err(|source| PullSecretError::Parse {
        secret: secret.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_secret_that_may_be_read_must_be_usable() {
        let secret = PullSecret {
            namespace: "team".to_owned(),
            name: "pull".to_owned(),
        };
        let with = |key: &str, value: &str| Secret {
            data: Some(BTreeMap::from([(key.to_owned(), ByteString(value.into()))])),
            ..Secret::default()
        };
        let good = r#"{"auths": {"a.test": {"username": "u", "password": "p"}}}"#;
        let parsed = parse(&secret, Some(&with(KEY, good))).unwrap();
        assert_eq!(parsed.credentials("a.test"), Some(("u", "p")));
        for (found, sentence) in [
            (None, "Secret team/pull does not exist: create it"),
            (Some(Secret::default()), "has no key .dockerconfigjson"),
            (
                Some(with("config.json", good)),
                "has no key .dockerconfigjson",
            ),
            (Some(with(KEY, "{")), "cannot use Secret team/pull"),
        ] {
            let error = parse(&secret, found.as_ref()).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
