//! Kubernetes Secrets of the workload's namespace. The operator grants the broker
//! the right to each by name.

use assay_crds::names::{RELEASE_CLASS_LABEL, RELEASE_CLASS_SIMULATED};
use assay_crds::v1alpha1::confidential_deployment::SecretKeyReference;
use futures::future::{BoxFuture, FutureExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use zeroize::Zeroizing;

use super::{Location, ReleaseClass, SecretStore, SecretStoreError, StoredSecret};
use crate::release::ResourcePath;

/// The API server's Secrets.
pub struct KubernetesSecrets(Client);

impl KubernetesSecrets {
    /// Reads as `client`.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

impl SecretStore for KubernetesSecrets {
    fn read<'a>(
        &'a self,
        path: &'a ResourcePath,
        reference: &'a SecretKeyReference,
    ) -> BoxFuture<'a, Result<Option<StoredSecret>, SecretStoreError>> {
        async {
            let secrets: Api<Secret> = Api::namespaced(self.0.clone(), &path.namespace);
            let secret = secrets.get_opt(&reference.name).await;
            let secret = secret.map_err(|source| SecretStoreError {
                store: "Kubernetes",
                source: source.into(),
            })?;
            Ok(secret.map(|secret| stored(secret, &reference.key)))
        }
        .boxed()
    }

    fn locate(&self, path: &ResourcePath, reference: &SecretKeyReference) -> Location {
        locate(path, reference)
    }
}

/// Takes one value out of a Secret.
pub(crate) fn stored(secret: Secret, key: &str) -> StoredSecret {
    let labels = secret.metadata.labels.as_ref();
    let mark = labels.and_then(|labels| labels.get(RELEASE_CLASS_LABEL));
    // Every value is wiped, not only the one that is released.
    let values: Vec<(String, Zeroizing<Vec<u8>>)> = secret
        .data
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key, Zeroizing::new(value.0)))
        .collect();
    StoredSecret {
        class: ReleaseClass::of_mark(mark.map(String::as_str)),
        value: values
            .into_iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value),
    }
}

pub(crate) fn locate(path: &ResourcePath, reference: &SecretKeyReference) -> Location {
    let SecretKeyReference { name, key } = reference;
    Location {
        secret: format!("Secret {name:?}"),
        place: format!("in namespace {}", path.namespace),
        value: format!("key {key:?}"),
        mark: format!("label {RELEASE_CLASS_LABEL}={RELEASE_CLASS_SIMULATED}"),
    }
}
