//! The broker's own keys: a certificate authority, the token key and the nonce
//! key. All replicas share them; the TLS certificate is each replica's own,
//! made at start and again before it ends, and its key is never stored. A broker
//! outside the cluster may bring a certificate instead.

use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::BTreeMap;
use std::time::Duration;
use zeroize::Zeroizing;

use crate::token::{TokenError, TokenKey};

/// Years for which the certificate authority is valid. Guests hold it in their
/// instance data: a change of it restarts every guest.
const CA_YEARS: i64 = 10;
/// Days for which a TLS certificate is valid.
const SERVER_DAYS: i64 = 90;
/// Time after which a running replica makes another TLS certificate.
pub const SERVER_RENEWAL: Duration = Duration::from_hours(30 * 24);

/// Entry with the certificate authority.
pub const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const TOKEN_KEY: &str = "token.key";
const NONCE_KEY: &str = "nonce.key";
/// Entries that nobody else may read.
pub const PRIVATE_ENTRIES: [&str; 3] = [CA_KEY, TOKEN_KEY, NONCE_KEY];

/// Why the broker's keys are not usable.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// There is no randomness.
    #[error("the cryptography library made no key")]
    Random,
    /// A key or certificate could not be made.
    #[error("cannot make {what}")]
    Generate {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// An entry is missing.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// An entry cannot be read.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// The token key is of the wrong kind.
    #[error("the token key cannot be used")]
    Token(#[source] TokenError),
    /// TLS cannot be configured.
    #[error("cannot configure TLS")]
    Tls(#[source] rustls::Error),
}

/// The keys that replicas share.
pub struct BrokerKeys {
    /// PEM of the certificate authority.
    pub ca: String,
    ca_key: KeyPair,
    token_key: KeyPair,
    nonce_key: Zeroizing<[u8; 32]>,
}

impl BrokerKeys {
    /// The entries of [`BrokerKeys::encode`], by name.
    pub const ENTRIES: [&str; 4] = [CA_CERTIFICATE, CA_KEY, TOKEN_KEY, NONCE_KEY];

    /// Makes new keys.
    ///
    /// # Errors
    /// When the cryptography library fails.
    pub fn generate(now: Timestamp) -> Result<Self, KeysError> {
        let key = |what| {
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                .map_err(|source| KeysError::Generate { what, source })
        };
        let ca_key = key("the certificate authority's key")?;
        let mut params = ca_params();
        set_validity(&mut params, now, CA_YEARS * 365);
        let ca = params
            .self_signed(&ca_key)
            .map_err(|source| KeysError::Generate {
                what: "the certificate authority",
                source,
            })?;
        let mut nonce_key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(nonce_key.as_mut_slice()).map_err(|_| KeysError::Random)?;
        Ok(Self {
            ca: ca.pem(),
            ca_key,
            token_key: key("the token key")?,
            nonce_key,
        })
    }

    /// The keys by name, to be stored.
    pub fn encode(&self) -> BTreeMap<String, Vec<u8>> {
        [
            (CA_CERTIFICATE, self.ca.clone().into_bytes()),
            (CA_KEY, self.ca_key.serialize_pem().into_bytes()),
            (TOKEN_KEY, self.token_key.serialize_pem().into_bytes()),
            (NONCE_KEY, self.nonce_key.to_vec()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// Reads what [`BrokerKeys::encode`] gave. An entry that is missing or malformed
    /// is an error: making another would silently cut off every running guest.
    ///
    /// # Errors
    /// With the first entry that is missing or malformed.
    pub fn parse(entries: &BTreeMap<String, Vec<u8>>) -> Result<Self, KeysError> {
        let entry = |name| entries.get(name).ok_or(KeysError::Missing(name));
        let text = |name| str::from_utf8(entry(name)?).map_err(|_| KeysError::Malformed(name));
        let key = |name| {
            KeyPair::from_pem_and_sign_algo(text(name)?, &PKCS_ECDSA_P256_SHA256)
                .map_err(|_| KeysError::Malformed(name))
        };
        let nonce_key: [u8; 32] = entry(NONCE_KEY)?
            .as_slice()
            .try_into()
            .map_err(|_| KeysError::Malformed(NONCE_KEY))?;
        let ca = text(CA_CERTIFICATE)?.to_owned();
        if !ca.contains("-----BEGIN CERTIFICATE-----") {
            return Err(KeysError::Malformed(CA_CERTIFICATE));
        }
        Ok(Self {
            ca,
            ca_key: key(CA_KEY)?,
            token_key: key(TOKEN_KEY)?,
            nonce_key: Zeroizing::new(nonce_key),
        })
    }

    /// The key that signs tokens.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn token_key(&self) -> Result<TokenKey, KeysError> {
        TokenKey::new(&self.token_key).map_err(KeysError::Token)
    }

    /// The key that authenticates nonces.
    pub fn nonce_key(&self) -> &[u8; 32] {
        &self.nonce_key
    }

    /// Makes a TLS key and certificate for `names`, and the configuration of a
    /// server that speaks TLS 1.3 and HTTP/1.1.
    ///
    /// # Errors
    /// When the cryptography library fails or a name cannot be in a certificate.
    pub fn server_config(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<Arc<ServerConfig>, KeysError> {
        let (certificate, key) = self.issue(names, now)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        server_config(vec![certificate.der().clone()], key)
    }

    pub(crate) fn issue(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<(Certificate, KeyPair), KeysError> {
        let failed = |source| KeysError::Generate {
            what: "the TLS certificate",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
        params.distinguished_name = distinguished_name("assay-broker");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, SERVER_DAYS);
        let issuer = Issuer::new(ca_params(), &self.ca_key);
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok((certificate, key))
    }
}

/// The configuration of a server that speaks TLS 1.3 and HTTP/1.1 with a
/// certificate that somebody else issued: PEM of its chain, the server's own
/// first, and of its key.
///
/// # Errors
/// When they cannot be read, or do not belong together.
pub fn parse_server_config(chain: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, KeysError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|_| KeysError::Malformed("tls.certificate"))?;
    if chain.is_empty() {
        return Err(KeysError::Malformed("tls.certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| KeysError::Malformed("tls.key"))?;
    server_config(chain, key)
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, KeysError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(KeysError::Tls)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(KeysError::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Names that the broker's certificate has in `namespace`.
pub fn server_names(namespace: &str) -> Vec<String> {
    let service = assay_crds::names::BROKER;
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        "localhost".to_owned(),
    ]
}

/// What makes the authority the issuer of a certificate: also without its
/// validity, which is only in the stored certificate.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name("assay-broker-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid from yesterday, because clocks differ, for `days`.
fn set_validity(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let date = |days: i64| {
        let date = now
            .to_zoned(TimeZone::UTC)
            .date()
            .saturating_add(days.days());
        rcgen::date_time_ymd(
            i32::from(date.year()),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    params.not_before = date(-1);
    params.not_after = date(days);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    fn keys() -> BrokerKeys {
        BrokerKeys::generate(Timestamp::now()).unwrap()
    }

    /// A handshake in memory: client and server of this process.
    fn handshake(ca: &str, server: Arc<ServerConfig>, name: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            bytes.clear();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert_eq!(
            client.protocol_version(),
            Some(rustls::ProtocolVersion::TLSv1_3)
        );
        Ok(())
    }

    #[test]
    fn a_client_that_trusts_the_ca_connects() {
        let keys = keys();
        let names = server_names("assay-system");
        let config = keys.server_config(&names, Timestamp::now()).unwrap();
        for name in &names {
            handshake(&keys.ca, config.clone(), name).unwrap();
        }
        assert!(handshake(&keys.ca, config.clone(), "elsewhere").is_err());
        assert!(handshake(&self::keys().ca, config, &names[0]).is_err());
    }

    #[test]
    fn another_replica_reads_the_same_keys() {
        let keys = keys();
        let read = BrokerKeys::parse(&keys.encode()).unwrap();
        assert_eq!(read.ca, keys.ca);
        assert_eq!(read.nonce_key(), keys.nonce_key());
        let token = keys.token_key().unwrap().sign(&fixtures::claims()).unwrap();
        assert!(
            read.token_key()
                .unwrap()
                .verify(&token, fixtures::now())
                .is_ok()
        );
        // A certificate that this replica makes chains to the other's authority.
        let names = server_names("assay-system");
        let config = read.server_config(&names, Timestamp::now()).unwrap();
        handshake(&keys.ca, config, &names[0]).unwrap();
    }

    #[test]
    fn incomplete_secrets_are_refused() {
        let good = keys().encode();
        for name in [CA_CERTIFICATE, CA_KEY, TOKEN_KEY, NONCE_KEY] {
            let mut missing = good.clone();
            missing.remove(name);
            assert!(
                matches!(BrokerKeys::parse(&missing), Err(KeysError::Missing(_))),
                "{name}"
            );
            let mut malformed = good.clone();
            malformed.insert(name.to_owned(), b"junk".to_vec());
            assert!(
                matches!(BrokerKeys::parse(&malformed), Err(KeysError::Malformed(_))),
                "{name}"
            );
        }
    }
}
