//! Values that a store keeps as ciphertext of the transit engine, opened when they
//! are released. Whoever has the store and not the server has nothing.

use std::sync::Arc;

use assay_crds::v1alpha1::confidential_deployment::SecretKeyReference;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::future::{BoxFuture, FutureExt as _};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::client::{Answer, VaultClient, VaultError};
use super::config::{TransitBinding, TransitConfig};
use crate::release::ResourcePath;
use crate::secrets::{Location, SecretStore, SecretStoreError, StoredSecret};

/// A store whose values the transit engine opens.
pub struct Transit {
    inner: Box<dyn SecretStore>,
    client: Arc<VaultClient>,
    config: TransitConfig,
}

#[derive(Deserialize)]
struct Decrypted<'a> {
    #[serde(borrow)]
    data: Plaintext<'a>,
}

#[derive(Deserialize)]
struct Plaintext<'a> {
    /// Base64, which has nothing to escape: it stays where it was received.
    plaintext: &'a str,
}

impl Transit {
    /// Opens the values of `inner`.
    pub fn new(
        inner: Box<dyn SecretStore>,
        client: Arc<VaultClient>,
        config: TransitConfig,
    ) -> Self {
        Self {
            inner,
            client,
            config,
        }
    }

    async fn decrypt(
        &self,
        path: &ResourcePath,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let ciphertext = str::from_utf8(ciphertext)
            .ok()
            .map(str::trim_end)
            .filter(|text| text.starts_with("vault:v"))
            .ok_or(VaultError::NoCiphertext)?;
        let mut body = json!({ "ciphertext": ciphertext });
        if self.config.bind == TransitBinding::Resource {
            body["associated_data"] = BASE64_STANDARD.encode(path.to_string()).into();
        }
        let mount = self.config.mount.trim_matches('/');
        let request = format!("{mount}/decrypt/{}", self.config.key);
        let answer = self.client.request(Method::POST, &request, Some(&body));
        let Answer::Found(answer) = answer.await? else {
            return Err(VaultError::Status {
                path: request,
                status: 404,
            });
        };
        let decrypted: Decrypted<'_> =
            serde_json::from_slice(&answer).map_err(|_| VaultError::Malformed)?;
        let value = BASE64_STANDARD.decode(decrypted.data.plaintext);
        value.map(Zeroizing::new).map_err(|_| VaultError::Malformed)
    }
}

impl SecretStore for Transit {
    fn read<'a>(
        &'a self,
        path: &'a ResourcePath,
        reference: &'a SecretKeyReference,
    ) -> BoxFuture<'a, Result<Option<StoredSecret>, SecretStoreError>> {
        self.inner.read(path, reference)
    }

    fn open<'a>(
        &'a self,
        path: &'a ResourcePath,
        value: Zeroizing<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, SecretStoreError>> {
        async move {
            let ciphertext = self.inner.open(path, value).await?;
            let opened = self.decrypt(path, &ciphertext).await;
            opened.map_err(|source| SecretStoreError {
                store: "Transit",
                source: source.into(),
            })
        }
        .boxed()
    }

    fn locate(&self, path: &ResourcePath, reference: &SecretKeyReference) -> Location {
        self.inner.locate(path, reference)
    }
}
