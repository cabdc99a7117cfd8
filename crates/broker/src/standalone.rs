//! The broker as one process without Kubernetes: its objects are files that the
//! key holder keeps, so that no cluster needs to be trusted.
//!
//! What is lost with the API server is who says that a pod exists: see
//! [`crate::identity::Witness`]. Everything else is decided by the same functions.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use assay_attest::TrustAnchors;
use assay_attest::evidence::parse_certificates;
use assay_attest::policy::DenyList;
use assay_protocol::broker::{BoundedNonceCache, NonceIssuer};
use assay_tee::Sha256Digest;
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::task::JoinHandle;

use crate::appraisal::VerifierIdentity;
use crate::audit::{AuditLog, AuditLogError};
use crate::collateral::CollateralStore;
use crate::config::{CollateralConfig, Config, ConfigError, TlsSource};
use crate::directory::DirectoryInventory;
use crate::directory::objects::{Objects, ReadError, Reading};
use crate::directory::records::{MAX_RECORDS, RecordDirectory, RecordError};
use crate::inventory::Inventory;
use crate::keys::{BrokerKeys, KeysError, parse_server_config};
use crate::manifests::Rules;
use crate::metrics::Metrics;
use crate::publication::queue::PublicationQueue;
use crate::publication::{ClusterConfig, Publisher};
use crate::secrets::config::OpenSecrets;
use crate::server::{metrics_router, renew_tls, router, svsm_router};
use crate::service::{Chain, Clock, NONCE_CACHE, Service, ServiceParts, Volumes};
use crate::state::{StateDirectory, StateError, check_private};
use crate::volume::declared::declared_volumes;
use crate::volume::store::VolumeDirectory;

/// Time between looks at a certificate that somebody else renews, and between
/// looks at whether ours is to be renewed.
const TLS_RELOAD: Duration = Duration::from_hours(12);
/// Time for requests in flight when the broker is told to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or what it names, cannot be used.
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    /// The state directory cannot be used.
    #[error("cannot use stateDirectory")]
    State(#[from] StateError),
    /// The records cannot be used.
    #[error("cannot use the records in stateDirectory")]
    Records(#[from] RecordError),
    /// The inventory has errors. A running broker goes on with what it knew; one
    /// that starts knows nothing.
    #[error("inventory.directory: {}", list(.0))]
    Inventory(BTreeMap<PathBuf, ReadError>),
    /// The keys cannot be used.
    #[error("cannot use the keys")]
    Keys(#[from] KeysError),
    /// The audit log cannot be used.
    #[error("cannot use auditLog")]
    Audit(#[from] AuditLogError),
    /// The address cannot be served on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn list(errors: &BTreeMap<PathBuf, ReadError>) -> String {
    let lines = errors
        .iter()
        .map(|(path, error)| format!("\n  {}: {}", path.display(), Chain(error)));
    lines.collect()
}

/// What a configuration comes to, for a person who checks it.
#[derive(Debug)]
pub struct Checked {
    /// Objects of the inventory.
    pub objects: usize,
    /// What is allowed and accepts nothing.
    pub notes: Vec<String>,
}

/// A broker that serves.
pub struct Standalone {
    /// Where it serves.
    pub address: SocketAddr,
    /// Where metrics are, if anywhere.
    pub metrics_address: Option<SocketAddr>,
    /// Where the proxies of SVSMs are served, if anywhere.
    pub svsm_address: Option<SocketAddr>,
    /// PEM of the authorities that guests must name and trust.
    pub ca: String,
    inventory: DirectoryInventory,
    ready: Arc<AtomicBool>,
    handle: Handle<SocketAddr>,
    serving: JoinHandle<std::io::Result<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Standalone {
    /// Checks a configuration and everything that it names, without making keys or
    /// serving.
    ///
    /// # Errors
    /// The first thing that would keep the broker from starting.
    pub fn check(config: &Config) -> Result<Checked, StartError> {
        Opened::open(config, &(Arc::new(Timestamp::now) as Clock))?;
        if let TlsSource::Files { .. } = config.tls.source()? {
            tls_files(config)?;
        }
        let Reading {
            objects,
            errors,
            notes,
        } = Objects::new(&config.inventory.directory, rules(config)).reload();
        if !errors.is_empty() {
            return Err(StartError::Inventory(errors));
        }
        Ok(Checked { objects, notes })
    }

    /// The authorities that guests must name and trust; made, if there are none.
    ///
    /// # Errors
    /// When they can be neither read nor made.
    pub fn ca(config: &Config) -> Result<String, StartError> {
        match config.tls.source()? {
            TlsSource::Files { .. } => Ok(tls_files(config)?.1),
            TlsSource::Issued { .. } => {
                // A running broker has the directory, and the file is there then.
                let state = match StateDirectory::open(&config.state_directory) {
                    Err(StateError::Locked { .. }) => None,
                    state => Some(state?),
                };
                match state {
                    Some(state) => Ok(state.get_or_create_keys(Timestamp::now())?.ca),
                    None => Ok(crate::state::read_ca(&config.state_directory)?),
                }
            }
        }
    }

    /// Starts to serve, as tasks of the runtime that it is called in.
    ///
    /// # Panics
    /// Outside a runtime of tokio.
    ///
    /// # Errors
    /// When anything that the configuration names cannot be used. Errors in the
    /// inventory are among them.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_at(config, Arc::new(Timestamp::now))
    }

    /// As [`Standalone::start`], with a clock for the decisions.
    ///
    /// # Errors
    /// As [`Standalone::start`].
    pub fn start_at(config: &Config, clock: Clock) -> Result<Self, StartError> {
        let Opened {
            anchors,
            denied,
            secrets,
            collateral,
        } = Opened::open(config, &clock)?;
        let state = StateDirectory::open(&config.state_directory)?;
        let keys = state.get_or_create_keys(Timestamp::now())?;
        let mut records = RecordDirectory::open(&state.records(), MAX_RECORDS, clock.clone())?;
        let metrics = Arc::<Metrics>::default();
        let cluster = config.records.kubernetes.as_ref();
        let cluster = cluster.map(ClusterConfig::client).transpose()?;
        let cluster = cluster.map(|client| (client, Arc::new(PublicationQueue::new(MAX_RECORDS))));
        if let Some((_, queue)) = &cluster {
            records = records.published_by(queue.clone());
        }
        let records = Arc::new(records);
        let publisher = cluster.map(|(client, queue)| {
            Publisher::new(
                records.clone(),
                queue,
                client,
                metrics.clone(),
                clock.clone(),
            )
        });
        let directory = &config.inventory.directory;
        let (inventory, reading) = DirectoryInventory::open(directory, rules(config), records);
        if !reading.errors.is_empty() {
            return Err(StartError::Inventory(reading.errors));
        }
        for note in &reading.notes {
            tracing::warn!(note, "the inventory is not complete");
        }
        let audit = config
            .audit_log
            .clone()
            .unwrap_or_else(|| state.audit_log());
        let audit = AuditLog::open(&audit)?;
        let declared = declared_volumes(&config.volumes)?;
        let volumes = (!declared.is_empty()).then(|| Volumes {
            declared,
            store: Arc::new(VolumeDirectory::new(&state.volumes())),
        });
        let (tls, ca) = tls(config, &keys)?;

        let listen = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let service = Service::new(ServiceParts {
            inventory: inventory.clone(),
            secrets: secrets.store,
            verifier: VerifierIdentity {
                ca: ca.clone(),
                anchors,
                denied,
                chains: Arc::default(),
            },
            nonces: NonceIssuer::new(keys.nonce_key()),
            used_nonces: Box::new(BoundedNonceCache::new(NONCE_CACHE)),
            tokens: keys.token_key()?,
            collateral,
            audit: Some(audit),
            volumes,
            metrics,
            clock,
        });
        let service = Arc::new(service);
        let ready = Arc::new(AtomicBool::new(true));
        let handle = Handle::new();
        let tls = RustlsConfig::from_config(tls);
        let server = axum_server::from_tcp_rustls(listener, tls.clone())
            .map_err(listen)?
            .http1_only()
            .handle(handle.clone());
        let metrics = match config.metrics_listen {
            Some(address) => Some(serve_metrics(address, service.clone())?),
            None => None,
        };
        let svsm = match config.svsm_listen {
            Some(address) => Some(serve_svsm(address, service.clone())?),
            None => None,
        };
        let routes = router(service, ready.clone());
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        let serving = tokio::spawn(async move {
            // Held for as long as anything is served.
            let _state = state;
            server.serve(routes).await
        });
        let (metrics_address, metrics) = metrics.unzip();
        let (svsm_address, svsm) = svsm.unzip();
        let mut tasks = vec![
            tokio::spawn(reload(inventory.clone(), config.inventory.interval())),
            tokio::spawn(OpenSecrets::keep_alive(secrets.server)),
            tokio::spawn({
                let config = config.clone();
                renew_tls(TLS_RELOAD, tls, move || {
                    self::tls(&config, &keys).map(|(tls, _)| tls)
                })
            }),
        ];
        tasks.extend(metrics);
        tasks.extend(svsm);
        tasks.extend(publisher.map(|publisher| tokio::spawn(publisher.run())));
        tracing::info!(%address, objects = reading.objects, "serving");
        Ok(Self {
            address,
            metrics_address,
            svsm_address,
            ca,
            inventory,
            ready,
            handle,
            serving,
            tasks,
        })
    }

    /// The inventory, to look at it and to have it read anew.
    pub fn inventory(&self) -> &DirectoryInventory {
        &self.inventory
    }

    /// A way to end serving while [`Standalone::finished`] waits.
    pub fn stopper(&self) -> impl FnOnce() + Send + use<> {
        let (ready, handle) = (self.ready.clone(), self.handle.clone());
        move || {
            ready.store(false, Ordering::Relaxed);
            handle.graceful_shutdown(Some(SHUTDOWN_GRACE));
        }
    }

    /// Waits until serving ends, and everything else with it.
    ///
    /// # Errors
    /// When it ended by an error.
    pub async fn finished(&mut self) -> std::io::Result<()> {
        let served = (&mut self.serving).await.map_err(std::io::Error::other);
        // They hold what another broker may now want.
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        served?
    }
}

/// Ends serving at once.
impl Drop for Standalone {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.serving.abort();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What a configuration names beside state, inventory and TLS. A check opens it as
/// a start does.
struct Opened {
    anchors: TrustAnchors,
    denied: DenyList,
    secrets: OpenSecrets,
    collateral: Option<Arc<CollateralStore>>,
}

impl Opened {
    fn open(config: &Config, clock: &Clock) -> Result<Self, StartError> {
        let anchors = anchors(config)?;
        if let Some(cluster) = &config.records.kubernetes {
            cluster.validate()?;
        }
        Ok(Self {
            anchors,
            denied: denied(config)?,
            secrets: config.secrets.open(None, clock.clone())?,
            collateral: collateral(config.collateral.as_ref(), anchors, clock.clone())?,
        })
    }
}

/// Serves metrics over plain HTTP, as a task; says where.
///
/// # Errors
/// When the address cannot be served on.
pub fn serve_metrics<I: Inventory>(
    address: SocketAddr,
    service: Arc<Service<I>>,
) -> Result<(SocketAddr, JoinHandle<()>), StartError> {
    serve_plain(address, "metrics", metrics_router(service))
}

/// Serves the proxies of SVSMs over plain HTTP, which is all that they speak, as a
/// task; says where.
///
/// # Errors
/// When the address cannot be served on.
pub fn serve_svsm<I: Inventory>(
    address: SocketAddr,
    service: Arc<Service<I>>,
) -> Result<(SocketAddr, JoinHandle<()>), StartError> {
    serve_plain(address, "the SVSM profile", svsm_router(service))
}

fn serve_plain(
    address: SocketAddr,
    what: &'static str,
    routes: Router,
) -> Result<(SocketAddr, JoinHandle<()>), StartError> {
    let listen = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(listen)?;
    let local = listener.local_addr().map_err(listen)?;
    let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(error = %Chain(&error), "cannot serve {what}");
        }
    });
    Ok((local, task))
}

fn rules(config: &Config) -> Rules {
    Rules {
        any_chip: config.inventory.any_chip,
    }
}

fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|source| {
        let path = path.to_owned();
        ConfigError::cannot_use(field)(Box::new(ConfigError::Read { path, source }))
    })
}

fn anchors(config: &Config) -> Result<TrustAnchors, ConfigError> {
    let Some(path) = &config.simulated_root else {
        return Ok(TrustAnchors::amd());
    };
    let anchor = parse_simulated_root(&read("simulatedRoot", path)?)
        .map_err(|remedy| ConfigError::field("simulatedRoot", remedy))?;
    tracing::warn!(%anchor, "simulated evidence can be accepted: it protects nothing");
    Ok(TrustAnchors::with_simulated(anchor))
}

fn denied(config: &Config) -> Result<DenyList, ConfigError> {
    let Some(path) = &config.deny_list else {
        return Ok(DenyList::default());
    };
    let denied = parse_deny_list(&read("denyList", path)?)
        .map_err(|remedy| ConfigError::field("denyList", remedy))?;
    tracing::info!(path = %path.display(), "denied under every policy");
    Ok(denied)
}

/// Reads a deny list. One that cannot be read would deny nothing.
///
/// # Errors
/// In words, when it is none.
pub fn parse_deny_list(json: &[u8]) -> Result<DenyList, String> {
    serde_json::from_slice(json).map_err(|error| {
        format!("is no JSON with chips, keys and providers, all of them lists: {error}")
    })
}

/// The digest of the one certificate in `pem`.
///
/// # Errors
/// In words, when there is none or more than one.
pub fn parse_simulated_root(pem: &[u8]) -> Result<Sha256Digest, String> {
    let certificates = parse_certificates(pem).map_err(|error| Chain(&error).to_string())?;
    match certificates.as_slice() {
        [root] => Ok(Sha256Digest::of(root)),
        roots => Err(format!(
            "holds {} certificates; leave only the root",
            roots.len()
        )),
    }
}

fn collateral(
    config: Option<&CollateralConfig>,
    anchors: TrustAnchors,
    clock: Clock,
) -> Result<Option<Arc<CollateralStore>>, ConfigError> {
    let Some(CollateralConfig { directory, url }) = config else {
        return Ok(None);
    };
    let store = CollateralStore::open(directory, anchors, url.as_deref(), clock)
        .map_err(|source| ConfigError::cannot_use("collateral.url")(source.into()))?;
    Ok(Some(Arc::new(store)))
}

/// The server's configuration, and the authorities for guests.
fn tls(config: &Config, keys: &BrokerKeys) -> Result<(Arc<ServerConfig>, String), StartError> {
    match config.tls.source()? {
        TlsSource::Issued { names } => {
            let tls = keys.server_config(&names, Timestamp::now())?;
            Ok((tls, keys.ca.clone()))
        }
        TlsSource::Files { .. } => tls_files(config),
    }
}

fn tls_files(config: &Config) -> Result<(Arc<ServerConfig>, String), StartError> {
    let TlsSource::Files {
        certificate,
        key,
        ca,
    } = config.tls.source()?
    else {
        return Err(ConfigError::field("tls.certificate", "is missing").into());
    };
    let ca = String::from_utf8(read("tls.ca", &ca)?)
        .ok()
        .filter(|ca| parse_certificates(ca.as_bytes()).is_ok())
        .ok_or_else(|| ConfigError::field("tls.ca", "is not PEM of certificates"))?;
    check_private(&key)?;
    let tls = parse_server_config(
        &read("tls.certificate", &certificate)?,
        &zeroize::Zeroizing::new(read("tls.key", &key)?),
    )?;
    Ok((tls, ca))
}

async fn reload(inventory: DirectoryInventory, every: Duration) {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval.tick().await;
    loop {
        interval.tick().await;
        let inventory = inventory.clone();
        // Errors are logged where they are found.
        let _ = tokio::task::spawn_blocking(move || inventory.objects().reload()).await;
    }
}

#[cfg(test)]
mod tests;
