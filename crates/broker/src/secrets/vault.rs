//! HashiCorp Vault and OpenBao: the key-value engine, version 2.
//!
//! Secret `{name}` of a ConfidentialDeployment is `{prefix}/{namespace}/{name}` of
//! the engine, and `{key}` a field of it. Its class is in its custom metadata. See
//! "KV secrets engine, version 2 (API)" of either project.

pub mod client;
pub mod config;
pub mod transit;

use std::collections::BTreeMap;
use std::sync::Arc;

use assay_crds::names::{RELEASE_CLASS_LABEL, RELEASE_CLASS_SIMULATED};
use assay_crds::v1alpha1::confidential_deployment::SecretKeyReference;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::future::{BoxFuture, FutureExt as _};
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use self::client::{Answer, VaultClient, VaultError};
use self::config::KvConfig;
use super::{Location, ReleaseClass, SecretStore, SecretStoreError, StoredSecret};
use crate::release::ResourcePath;

const STORE: &str = "Vault";
/// Custom metadata that says how a field is written.
const ENCODING: &str = "assay.dev/encoding";
/// Value of [`ENCODING`]: fields are base64.
const BASE64: &str = "base64";

/// Values of a key-value engine.
pub struct VaultKv {
    client: Arc<VaultClient>,
    config: KvConfig,
}

/// The answer to a read. `data` is nothing where the version was deleted.
#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    data: Version<'a>,
}

#[derive(Deserialize)]
struct Version<'a> {
    /// Values stay where they were received, which is wiped.
    #[serde(borrow)]
    data: Option<BTreeMap<String, &'a RawValue>>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    custom_metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    destroyed: bool,
}

impl VaultKv {
    /// Reads through `client`.
    pub fn new(client: Arc<VaultClient>, config: KvConfig) -> Self {
        Self { client, config }
    }

    fn name(&self, path: &ResourcePath, reference: &SecretKeyReference) -> String {
        let prefix = self.config.prefix.trim_matches('/');
        let separator = if prefix.is_empty() { "" } else { "/" };
        format!("{prefix}{separator}{}/{}", path.namespace, reference.name)
    }

    async fn read(
        &self,
        path: &ResourcePath,
        reference: &SecretKeyReference,
    ) -> Result<Option<StoredSecret>, VaultError> {
        // The path must be the one that is meant, whatever a deployment names.
        if !is_segment(&reference.name) {
            return Err(VaultError::Name(reference.name.clone()));
        }
        let name = self.name(path, reference);
        let mount = self.config.mount.trim_matches('/');
        let pinned = format!("{}/{}", path.namespace, reference.name);
        let version = match self.config.versions.get(&pinned) {
            Some(version) => format!("?version={version}"),
            None => String::new(),
        };
        let request = format!("{mount}/data/{name}{version}");
        match self.client.request(Method::GET, &request, None).await? {
            Answer::Missing => Ok(None),
            Answer::Found(body) => stored(&body, &reference.key),
        }
    }
}

/// Takes one field out of an answer.
fn stored(body: &[u8], key: &str) -> Result<Option<StoredSecret>, VaultError> {
    let read: Read<'_> = serde_json::from_slice(body).map_err(|_| VaultError::Malformed)?;
    let Version { data, metadata } = read.data;
    let Some(fields) = data.filter(|_| !metadata.destroyed) else {
        return Ok(None);
    };
    let custom = metadata.custom_metadata.unwrap_or_default();
    let mark = |name| custom.get(name).map(String::as_str);
    let value = fields.get(key).map(|value| {
        // Its error would hold a part of the value.
        let text: String = serde_json::from_str(value.get()).map_err(|_| VaultError::NoText)?;
        let text = Zeroizing::new(text);
        match mark(ENCODING) {
            None => Ok(Zeroizing::new(text.as_bytes().to_vec())),
            Some(BASE64) => BASE64_STANDARD
                .decode(text.as_bytes())
                .map(Zeroizing::new)
                .map_err(|_| VaultError::NoBase64),
            Some(_) => Err(VaultError::Encoding),
        }
    });
    Ok(Some(StoredSecret {
        class: ReleaseClass::of_mark(mark(RELEASE_CLASS_LABEL)),
        value: value.transpose()?,
    }))
}

/// Whether `name` is one part of a path, and none that leads elsewhere.
fn is_segment(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(allowed)
}

impl SecretStore for VaultKv {
    fn read<'a>(
        &'a self,
        path: &'a ResourcePath,
        reference: &'a SecretKeyReference,
    ) -> BoxFuture<'a, Result<Option<StoredSecret>, SecretStoreError>> {
        async {
            let read = VaultKv::read(self, path, reference).await;
            read.map_err(|source| SecretStoreError {
                store: STORE,
                source: source.into(),
            })
        }
        .boxed()
    }

    fn locate(&self, path: &ResourcePath, reference: &SecretKeyReference) -> Location {
        Location {
            secret: format!("secret {:?}", self.name(path, reference)),
            place: format!("in the engine {}", self.config.mount),
            value: format!("field {:?}", reference.key),
            mark: format!("custom metadata {RELEASE_CLASS_LABEL}={RELEASE_CLASS_SIMULATED}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
