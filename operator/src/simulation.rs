//! The development PKI of an installation that allows simulated guests.
//!
//! It is made once, at the first start with simulation enabled, and kept in a
//! Secret of the installation's namespace; the broker gets its root. It guards
//! nothing: whoever can read a launch ConfigMap has the key. Evidence under it is
//! refused wherever a policy does not name the simulated TEE.

use std::collections::BTreeMap;

use assay_crds::names;
use assay_psp_sim::pki::PkiError;
use assay_workload::simulation::SimulationPki;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ObjectMeta;

use crate::apply::{ApplyError, Writer};
use crate::manifest::{MANAGED_BY, MANAGED_BY_LABEL};

/// Key of the Secret: PEM of the VCEK's private key.
pub const VCEK_KEY_KEY: &str = "vcek.key";
/// Key of the Secret: PEM of VCEK, ASK and ARK, in this order.
pub const VCEK_CHAIN_KEY: &str = "vcek-chain.pem";
/// The development PKI could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// It could not be made.
    #[error("cannot make a development PKI")]
    Generate(#[source] PkiError),
    /// The Secret's content is not one.
    #[error(
        "Secret {secret} holds no development PKI; delete it and restart the operator to make one",
        secret = names::SIMULATION_SECRET
    )]
    Parse(#[source] PkiError),
    /// A key of the Secret is missing or is no text.
    #[error(
        "Secret {secret} has no {key}; delete it and restart the operator to make one",
        secret = names::SIMULATION_SECRET
    )]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// The Secret was there and is not any more.
    #[error("Secret {secret} was deleted meanwhile", secret = names::SIMULATION_SECRET)]
    Vanished,
    /// The API server could not be read or written.
    #[error("cannot keep the development PKI in the cluster")]
    Store(#[source] ApplyError),
}

fn from_secret(secret: &Secret) -> Result<SimulationPki, SimulationError> {
    let text = |key: &'static str| {
        secret
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .and_then(|value| String::from_utf8(value.0.clone()).ok())
            .ok_or(SimulationError::MissingKey { key })
    };
    SimulationPki::from_pem(text(VCEK_KEY_KEY)?, text(VCEK_CHAIN_KEY)?)
        .map_err(SimulationError::Parse)
}

fn to_secret(pki: &SimulationPki, namespace: &str) -> Secret {
    let entry = |key: &str, value: &str| (key.to_owned(), ByteString(value.into()));
    Secret {
        metadata: metadata(namespace, names::SIMULATION_SECRET),
        data: Some(BTreeMap::from([
            entry(VCEK_KEY_KEY, &pki.vcek_key),
            entry(VCEK_CHAIN_KEY, &pki.vcek_chain),
        ])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

fn to_root_config_map(pki: &SimulationPki, namespace: &str) -> ConfigMap {
    ConfigMap {
        metadata: metadata(namespace, names::SIMULATION_ROOT_CONFIG_MAP),
        data: Some([(names::SIMULATION_ROOT_KEY.to_owned(), pki.ark.clone())].into()),
        ..ConfigMap::default()
    }
}

fn metadata(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some([(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned())].into()),
        ..ObjectMeta::default()
    }
}

/// Gets the installation's development PKI, or makes it, and gives its root to
/// the broker.
///
/// # Errors
/// When the Secret holds something else, or the API server cannot be reached.
pub async fn bootstrap(
    writer: &Writer,
    namespace: &str,
    now: Timestamp,
) -> Result<SimulationPki, SimulationError> {
    tracing::warn!(
        "SIMULATION IS ENABLED: simulated guests prove the logic and are protected by nothing; \
         anybody who can read this cluster's ConfigMaps can forge their evidence"
    );
    let read = async || {
        let secret = writer.get_secret(namespace, names::SIMULATION_SECRET).await;
        secret.map_err(SimulationError::Store)
    };
    let mut secret = read().await?;
    if secret.is_none() {
        let fresh = SimulationPki::generate(now).map_err(SimulationError::Generate)?;
        let fresh = to_secret(&fresh, namespace);
        secret = writer
            .create_secret(namespace, &fresh)
            .await
            .map_err(SimulationError::Store)?;
    }
    let secret = match secret {
        Some(secret) => secret,
        None => read().await?.ok_or(SimulationError::Vanished)?,
    };
    let pki = from_secret(&secret)?;
    writer
        .apply_config_map(namespace, &to_root_config_map(&pki, namespace))
        .await
        .map_err(SimulationError::Store)?;
    Ok(pki)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pki_survives_its_secret() {
        let pki = SimulationPki::generate(Timestamp::from_second(1_760_000_000).unwrap()).unwrap();
        let secret = to_secret(&pki, "assay-system");
        assert_eq!(from_secret(&secret).unwrap(), pki);

        let mut broken = secret.clone();
        broken.data.as_mut().unwrap().remove(VCEK_KEY_KEY);
        assert!(matches!(
            from_secret(&broken),
            Err(SimulationError::MissingKey { key: VCEK_KEY_KEY })
        ));
        let other =
            SimulationPki::generate(Timestamp::from_second(1_760_000_000).unwrap()).unwrap();
        let foreign = to_secret(&other, "assay-system")
            .data
            .unwrap()
            .remove(VCEK_KEY_KEY)
            .unwrap();
        broken
            .data
            .as_mut()
            .unwrap()
            .insert(VCEK_KEY_KEY.to_owned(), foreign);
        assert!(matches!(
            from_secret(&broken),
            Err(SimulationError::Parse(_))
        ));
    }
}
