//! What a replica needs before it serves: the shared keys, and the certificate
//! authority where operators find it.

use std::collections::BTreeMap;

use assay_crds::names::{BROKER, BROKER_CA_CONFIG_MAP, BROKER_CA_KEY, BROKER_SECRET};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};

use crate::keys::{BrokerKeys, KeysError};

/// Why a replica cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The keys' Secret cannot be read.
    #[error("cannot read Secret {BROKER_SECRET}")]
    ReadSecret(#[source] kube::Error),
    /// The keys' Secret cannot be made.
    #[error("cannot create Secret {BROKER_SECRET}")]
    CreateSecret(#[source] kube::Error),
    /// The keys' Secret vanished while it was read.
    #[error("Secret {BROKER_SECRET} vanished")]
    SecretVanished,
    /// The keys cannot be used.
    #[error("cannot use the keys of Secret {BROKER_SECRET}")]
    Keys(#[source] KeysError),
    /// The certificate authority cannot be published.
    #[error("cannot apply ConfigMap {BROKER_CA_CONFIG_MAP}")]
    PublishCa(#[source] kube::Error),
}

/// Reads the keys that replicas share; makes them, if there are none. Of several
/// replicas that start at once, the first one's keys are everyone's.
///
/// # Errors
/// When the Secret cannot be read or made, or is incomplete: it is never
/// repaired, because running guests trust what was in it.
pub async fn get_or_create_keys(
    client: &Client,
    namespace: &str,
    now: Timestamp,
) -> Result<BrokerKeys, StartupError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = api
        .get_opt(BROKER_SECRET)
        .await
        .map_err(StartupError::ReadSecret)?
    {
        return parse(secret);
    }
    let keys = BrokerKeys::generate(now).map_err(StartupError::Keys)?;
    let data = keys
        .encode()
        .into_iter()
        .map(|(name, value)| (name, ByteString(value)));
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(BROKER_SECRET.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("assay.dev/broker-keys".to_owned()),
        immutable: Some(true),
        data: Some(data.collect()),
        ..Secret::default()
    };
    let params = PostParams {
        field_manager: Some(BROKER.to_owned()),
        ..PostParams::default()
    };
    match api.create(&params, &secret).await {
        Ok(_) => Ok(keys),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let secret = api
                .get_opt(BROKER_SECRET)
                .await
                .map_err(StartupError::ReadSecret)?;
            parse(secret.ok_or(StartupError::SecretVanished)?)
        }
        Err(error) => Err(StartupError::CreateSecret(error)),
    }
}

fn parse(secret: Secret) -> Result<BrokerKeys, StartupError> {
    let entries: BTreeMap<String, Vec<u8>> = secret
        .data
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| (name, value.0))
        .collect();
    BrokerKeys::parse(&entries).map_err(StartupError::Keys)
}

/// Publishes the certificate authority.
///
/// # Errors
/// When the ConfigMap cannot be applied.
pub async fn publish_ca(client: &Client, namespace: &str, ca: &str) -> Result<(), StartupError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let config_map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(BROKER_CA_CONFIG_MAP.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(BROKER_CA_KEY.to_owned(), ca.to_owned())])),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(BROKER).force();
    api.patch(BROKER_CA_CONFIG_MAP, &params, &Patch::Apply(&config_map))
        .await
        .map_err(StartupError::PublishCa)?;
    Ok(())
}
