//! AttestationRecords of a broker outside a cluster, written into the cluster, so
//! that the operator there opens and closes the gates of pods by them.
//!
//! The cluster gets to know what was found and decides nothing here: no release
//! waits for it, and an identity that writes records and does nothing else is all
//! that the broker needs. A record is owned by its pod, so that the cluster collects
//! the one of a pod that does not exist.

pub mod queue;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use assay_crds::names::BROKER;
use assay_crds::v1alpha1::AttestationRecord;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::config::AuthInfo;
use kube::{Client, ResourceExt as _};
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use self::queue::{Next, PublicationQueue, RecordKey, pause};
use crate::config::{ConfigError, is_loopback};
use crate::directory::records::RecordDirectory;
use crate::inventory::InventoryError;
use crate::kubernetes::status_patch;
use crate::metrics::{Metrics, Publication};
use crate::record::spent_at;
use crate::service::{Chain, Clock};
use crate::state::check_private;

/// Records that are written at a time: the API server may be far away.
const CONCURRENCY: usize = 16;
/// Longest time for one answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// The cluster that records are written into.
///
/// No kubeconfig: one may name a program to run, and this process holds keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterConfig {
    /// URL of the API server. Plain HTTP is for the loopback interface alone.
    pub server: String,
    /// File with the token of an identity that may create and patch
    /// AttestationRecords. It is read again every minute.
    pub token_file: PathBuf,
    /// PEM of the authorities that the server's certificate must chain to.
    pub ca_file: PathBuf,
}

impl ClusterConfig {
    /// Checks what can be checked without asking the cluster.
    ///
    /// # Errors
    /// When the URL is none, the token can be read by others, or the authorities are
    /// none.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.configure().map(drop)
    }

    /// A client of the cluster. It opens no connection yet.
    ///
    /// # Errors
    /// As [`ClusterConfig::validate`].
    ///
    /// # Panics
    /// Outside a runtime of tokio.
    pub fn client(&self) -> Result<Client, ConfigError> {
        Client::try_from(self.configure()?)
            .map_err(|source| ConfigError::cannot_use("records.kubernetes")(source.into()))
    }

    fn configure(&self) -> Result<kube::Config, ConfigError> {
        let field = "records.kubernetes.server";
        let url = Url::parse(&self.server)
            .ok()
            .filter(|url| url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url)));
        let server = url.and_then(|_| self.server.parse().ok()).ok_or_else(|| {
            let got = &self.server;
            ConfigError::field(field, format!("{got:?} is not https://host[:port]"))
        })?;
        check_private(&self.token_file).map_err(|source| {
            ConfigError::cannot_use("records.kubernetes.tokenFile")(source.into())
        })?;
        let field = "records.kubernetes.caFile";
        let pem = fs::read(&self.ca_file).map_err(|source| {
            let path = self.ca_file.clone();
            ConfigError::cannot_use(field)(Box::new(ConfigError::Read { path, source }))
        })?;
        let authorities: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem)
            .map(|certificate| certificate.map(|der| der.to_vec()))
            .collect();
        let authorities = authorities
            .ok()
            .filter(|authorities| !authorities.is_empty())
            .ok_or_else(|| ConfigError::field(field, "is not PEM of certificates"))?;
        let mut config = kube::Config::new(server);
        config.root_cert = Some(authorities);
        config.auth_info = AuthInfo {
            token_file: Some(self.token_file.display().to_string()),
            ..AuthInfo::default()
        };
        config.read_timeout = Some(ANSWER_DEADLINE);
        config.reset_reader_on_write = true;
        // What fails is tried again here, where it is counted.
        config.default_retry = false;
        Ok(config)
    }
}

/// Why a record is not in the cluster yet.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("cannot read the record")]
    Read(#[source] InventoryError),
    #[error("cannot apply the AttestationRecord")]
    Apply(#[source] kube::Error),
    #[error("cannot apply the AttestationRecord's status")]
    ApplyStatus(#[source] kube::Error),
}

impl PublishError {
    /// Whether the cluster would refuse every record: it cannot be reached, is
    /// overloaded, or does not know the token.
    fn is_an_outage(&self) -> bool {
        match self {
            Self::Read(_) => false,
            Self::Apply(kube::Error::Api(status)) | Self::ApplyStatus(kube::Error::Api(status)) => {
                !(400..500).contains(&status.code) || [401, 408, 429].contains(&status.code)
            }
            Self::Apply(_) | Self::ApplyStatus(_) => true,
        }
    }
}

/// What came of one attempt.
enum Attempt {
    Published,
    /// There is no such record any more, or it says nothing any more.
    Over,
    Failed(PublishError),
}

/// Writes the records of a directory into a cluster, as they change.
///
/// # Guarantees
/// What is in the cluster is replaced by what is newer alone. A record that the
/// cluster refuses keeps no other from being written.
///
/// # Assumptions
/// No other broker writes records of these pods there.
pub struct Publisher {
    records: Arc<RecordDirectory>,
    queue: Arc<PublicationQueue>,
    client: Client,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Publisher {
    /// A publisher of what `queue` says of `records`.
    pub fn new(
        records: Arc<RecordDirectory>,
        queue: Arc<PublicationQueue>,
        client: Client,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        Self {
            records,
            queue,
            client,
            metrics,
            clock,
        }
    }

    /// Publishes for as long as it is polled. Never ends.
    pub async fn run(self) {
        let mut attempts = FuturesUnordered::new();
        let mut outages = 0;
        let mut resumed = Instant::now();
        loop {
            let now = Instant::now();
            let mut wait = None;
            while now >= resumed && attempts.len() < CONCURRENCY {
                match self.queue.next(now) {
                    Next::Publish(key) => attempts.push(self.attempt(key)),
                    Next::At(turn) => {
                        wait = Some(turn);
                        break;
                    }
                    Next::Idle => break,
                }
            }
            if now < resumed {
                wait = Some(resumed);
            }
            tokio::select! {
                Some((key, attempt)) = attempts.next() => {
                    if self.conclude(&key, attempt) {
                        outages = 0;
                    } else if Instant::now() >= resumed {
                        // Those that were under way with it have failed for the
                        // same reason.
                        outages += 1;
                        resumed = Instant::now() + pause(outages);
                    }
                }
                () = self.queue.changed() => {}
                () = async {
                    match wait {
                        Some(turn) => sleep_until(turn).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    /// Takes note of an attempt; false, where the cluster does not answer.
    fn conclude(&self, key: &RecordKey, attempt: Attempt) -> bool {
        let now = Instant::now();
        match attempt {
            Attempt::Published => {
                self.metrics.publication(Publication::Written);
                self.queue.settle(key, now);
                true
            }
            Attempt::Over => {
                self.metrics.publication(Publication::Dropped);
                self.queue.settle(key, now);
                true
            }
            Attempt::Failed(error) => {
                self.metrics.publication(Publication::Failed);
                let RecordKey { namespace, uid } = key;
                tracing::warn!(
                    error = %Chain(&error), namespace, pod_uid = uid,
                    "cannot publish the record: again later"
                );
                if error.is_an_outage() {
                    self.queue.put_back(key, now);
                    return false;
                }
                self.queue.fail(key, now);
                true
            }
        }
    }

    async fn attempt(&self, key: RecordKey) -> (RecordKey, Attempt) {
        let attempt = match self.publish(&key).await {
            Ok(true) => Attempt::Published,
            Ok(false) => Attempt::Over,
            Err(error) => Attempt::Failed(error),
        };
        (key, attempt)
    }

    /// Writes a record as it is now; false, where it is of no use to anybody.
    async fn publish(&self, key: &RecordKey) -> Result<bool, PublishError> {
        let (records, wanted) = (self.records.clone(), key.clone());
        let read = move || records.read(&wanted.namespace, &wanted.uid);
        let read = tokio::task::spawn_blocking(read).await;
        let record = read
            .map_err(|source| InventoryError::Failed {
                action: "read the AttestationRecord",
                source: Box::new(source),
            })
            .flatten()
            .map_err(PublishError::Read)?;
        let now = (self.clock)();
        let Some(record) = record.filter(|record| {
            let status = record.status.as_ref();
            status.is_some_and(|status| now <= spent_at(status))
        }) else {
            return Ok(false);
        };
        let name = record.name_any();
        let api: Api<AttestationRecord> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PatchParams::apply(BROKER).force();
        api.patch(&name, &params, &Patch::Apply(&base(&record)))
            .await
            .map_err(PublishError::Apply)?;
        let status = status_patch(&record, None);
        api.patch_status(&name, &params, &Patch::Apply(&status))
            .await
            .map_err(PublishError::ApplyStatus)?;
        Ok(true)
    }
}

/// The record without what the directory counts itself, and without a status, which
/// is written apart.
fn base(record: &AttestationRecord) -> AttestationRecord {
    let mut base = AttestationRecord::new(&record.name_any(), record.spec.clone());
    base.metadata = ObjectMeta {
        name: record.metadata.name.clone(),
        namespace: record.metadata.namespace.clone(),
        labels: record.metadata.labels.clone(),
        owner_references: record.metadata.owner_references.clone(),
        ..ObjectMeta::default()
    };
    base
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use kube::core::Status;

    #[test]
    fn what_is_wrong_with_the_cluster_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let token = path("token");
        fs::write(&token, "t").unwrap();
        let mode = |mode| fs::set_permissions(&token, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o600);
        let keys = crate::keys::BrokerKeys::generate(jiff::Timestamp::now()).unwrap();
        fs::write(path("ca.crt"), &keys.ca).unwrap();
        fs::write(path("empty"), "").unwrap();
        let good = ClusterConfig {
            server: "https://192.0.2.20:6443".to_owned(),
            token_file: path("token"),
            ca_file: path("ca.crt"),
        };
        good.validate().unwrap();
        let local = ClusterConfig {
            server: "http://127.0.0.1:8001".to_owned(),
            ..good.clone()
        };
        local.validate().unwrap();
        let refused = |change: fn(&mut ClusterConfig), words: &str| {
            let mut config = good.clone();
            change(&mut config);
            let error = config.validate().unwrap_err();
            let text = Chain(&error).to_string();
            assert!(text.contains(words), "{words}: {text}");
        };
        let server = "records.kubernetes.server";
        refused(|c| c.server = "http://192.0.2.20:6443".to_owned(), server);
        refused(|c| c.server = "http://localhost:8001".to_owned(), server);
        refused(|c| c.server = "192.0.2.20:6443".to_owned(), server);
        let token_file = "records.kubernetes.tokenFile";
        refused(|c| c.token_file.push("x"), token_file);
        let ca_file = "records.kubernetes.caFile";
        refused(|c| c.ca_file.set_file_name("absent"), ca_file);
        refused(|c| c.ca_file.set_file_name("empty"), ca_file);
        mode(0o640);
        refused(|_| {}, token_file);
    }

    #[test]
    fn an_outage_is_told_from_a_refusal() {
        let answer = |code: u16| {
            let status = Status::failure("", "").with_code(code);
            PublishError::Apply(kube::Error::Api(Box::new(status))).is_an_outage()
        };
        for code in [400, 403, 404, 409, 422] {
            assert!(!answer(code), "{code}");
        }
        for code in [401, 429, 500, 503] {
            assert!(answer(code), "{code}");
        }
        assert!(PublishError::Apply(kube::Error::LinesCodecMaxLineLengthExceeded).is_an_outage());
    }
}
