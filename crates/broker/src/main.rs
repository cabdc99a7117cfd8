//! The broker's process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use assay_attest::TrustAnchors;
use assay_attest::evidence::parse_certificates;
use assay_broker::appraisal::VerifierIdentity;
use assay_broker::audit::AuditLog;
use assay_broker::collateral::{CollateralStore, Fetch, HttpFetch, REQUEST_INTERVAL};
use assay_broker::keys::{BrokerKeys, SERVER_RENEW_DAYS, server_names};
use assay_broker::kubernetes::KubernetesInventory;
use assay_broker::secrets::kubernetes::KubernetesSecrets;
use assay_broker::server::router;
use assay_broker::service::{Chain, Service, ServiceParts};
use assay_broker::startup::{get_or_create_keys, publish_ca};
use assay_protocol::broker::{BoundedNonceCache, NonceIssuer};
use assay_tee::Sha256Digest;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use clap::Parser;
use jiff::Timestamp;
use tracing_subscriber::EnvFilter;

/// Time for requests in flight when the process is told to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);
/// Accepted attestations that are remembered for five minutes: 200 in a second.
const NONCE_CACHE: usize = 65_536;

/// Verifier and key broker of Assay.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address to serve on, over TLS 1.3.
    #[arg(long, env = "ASSAY_BROKER_LISTEN", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Namespace of this installation.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// PEM of a development root. Evidence of simulated processors under it is
    /// accepted where an AttestationPolicy names SimulatedSNP. It protects
    /// nothing. Without this option no simulated evidence is ever accepted.
    #[arg(long, env = "ASSAY_SIMULATED_ROOT")]
    simulated_root: Option<PathBuf>,
    /// File that keeps every release and refusal as a hash chain, for `assay
    /// audit verify`. Nothing is released that cannot be written to it.
    #[arg(long, env = "ASSAY_AUDIT_LOG")]
    audit_log: Option<PathBuf>,
    /// Directory of what the processor's vendor publishes: revocation lists,
    /// which an AttestationPolicy requires by default, and certificates that
    /// hosts leave out. `assay collateral fetch` fills it; so does the broker
    /// with --collateral-url.
    #[arg(long, env = "ASSAY_COLLATERAL_DIR")]
    collateral_dir: Option<PathBuf>,
    /// Key distribution service to fetch from, or a mirror of it. AMD's is
    /// https://kdsintf.amd.com. Without this option nothing is fetched.
    #[arg(long, env = "ASSAY_COLLATERAL_URL", requires = "collateral_dir")]
    collateral_url: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .init();
    run(Arguments::parse()).await
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a cryptography provider is installed already"))?;
    let anchors = match &arguments.simulated_root {
        Some(path) => {
            let anchor = read_simulated_root(path)?;
            tracing::warn!(%anchor, "simulated evidence can be accepted: it protects nothing");
            TrustAnchors::with_simulated(anchor)
        }
        None => TrustAnchors::amd(),
    };
    let audit = arguments.audit_log.as_deref().map(AuditLog::open);
    let audit = audit.transpose()?;
    let collateral = collateral(&arguments, anchors)?;
    let client = kube::Client::try_default()
        .await
        .context("cannot configure the API client")?;
    let namespace = &arguments.namespace;
    let keys = get_or_create_keys(&client, namespace, Timestamp::now()).await?;
    publish_ca(&client, namespace, &keys.ca).await?;

    let secrets = Arc::new(KubernetesSecrets::new(client.clone()));
    let (inventory, watches) = KubernetesInventory::start(client);
    let synced = inventory.synced();
    tokio::spawn(watches);
    let ready = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let ready = ready.clone();
        async move { ready.store(synced.await, Ordering::Relaxed) }
    });

    let service = Service::new(ServiceParts {
        inventory,
        secrets,
        verifier: VerifierIdentity {
            ca: keys.ca.clone(),
            anchors,
        },
        nonces: NonceIssuer::new(keys.nonce_key()),
        used_nonces: Box::new(BoundedNonceCache::new(NONCE_CACHE)),
        tokens: keys.token_key()?,
        collateral,
        audit,
        clock: Arc::new(Timestamp::now),
    });
    let names = server_names(namespace);
    let tls = RustlsConfig::from_config(keys.server_config(&names, Timestamp::now())?);
    tokio::spawn(renew_certificate(keys, names, tls.clone()));

    let handle = Handle::new();
    tokio::spawn(shut_down(handle.clone(), ready.clone()));
    tracing::info!(listen = %arguments.listen, %namespace, "serving");
    axum_server::bind_rustls(arguments.listen, tls)
        .http1_only()
        .handle(handle)
        .serve(router(service, ready).into_make_service_with_connect_info::<SocketAddr>())
        .await
        .with_context(|| format!("cannot serve on {}", arguments.listen))
}

fn collateral(
    arguments: &Arguments,
    anchors: TrustAnchors,
) -> anyhow::Result<Option<Arc<CollateralStore>>> {
    let Some(directory) = &arguments.collateral_dir else {
        return Ok(None);
    };
    let source = arguments.collateral_url.as_deref().map(HttpFetch::new);
    let source = source.transpose().context("cannot use --collateral-url")?;
    let source = source.map(|fetch| -> Box<dyn Fetch> { Box::new(fetch) });
    Ok(Some(Arc::new(CollateralStore::new(
        directory,
        anchors,
        source,
        REQUEST_INTERVAL,
        Arc::new(Timestamp::now),
    ))))
}

fn read_simulated_root(path: &std::path::Path) -> anyhow::Result<Sha256Digest> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certificates =
        parse_certificates(&pem).with_context(|| format!("cannot use {}", path.display()))?;
    let [root] = certificates.as_slice() else {
        anyhow::bail!("{} must hold exactly one certificate", path.display());
    };
    Ok(Sha256Digest::of(root))
}

/// Makes another TLS certificate long before the one in use ends.
async fn renew_certificate(keys: BrokerKeys, names: Vec<String>, tls: RustlsConfig) {
    let mut interval = tokio::time::interval(Duration::from_secs(SERVER_RENEW_DAYS * 24 * 3600));
    interval.tick().await;
    loop {
        interval.tick().await;
        match keys.server_config(&names, Timestamp::now()) {
            Ok(config) => tls.reload_from_config(config),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot renew the TLS certificate");
            }
        }
    }
}

/// Ends serving on SIGTERM or SIGINT: not ready at once, requests in flight are
/// answered.
async fn shut_down(handle: Handle<SocketAddr>, ready: Arc<AtomicBool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!("cannot listen for signals");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down");
    ready.store(false, Ordering::Relaxed);
    handle.graceful_shutdown(Some(SHUTDOWN_GRACE));
}
