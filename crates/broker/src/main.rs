//! The broker's process: in a cluster, or by a configuration file without one.

use std::alloc::System;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use assay_attest::TrustAnchors;
use assay_attest::policy::DenyList;
use assay_broker::appraisal::VerifierIdentity;
use assay_broker::audit::AuditLog;
use assay_broker::collateral::CollateralStore;
use assay_broker::config::Config;
use assay_broker::keys::{SERVER_RENEWAL, server_names};
use assay_broker::kubernetes::KubernetesInventory;
use assay_broker::secrets::config::{OpenSecrets, SecretsConfig};
use assay_broker::server::{renew_tls, router};
use assay_broker::service::{NONCE_CACHE, Service, ServiceParts};
use assay_broker::standalone::{
    Standalone, parse_deny_list, parse_simulated_root, serve_metrics, serve_svsm,
};
use assay_broker::startup::{get_or_create_keys, publish_ca};
use assay_protocol::broker::{BoundedNonceCache, NonceIssuer};
use assay_tee::Sha256Digest;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use clap::{Args, Parser};
use jiff::Timestamp;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing_subscriber::EnvFilter;
use zeroizing_alloc::ZeroAlloc;

/// Time for requests in flight when the process is told to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);

/// Verifier and key broker of Assay.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file of a broker without Kubernetes, which takes no other
    /// options.
    #[arg(long, conflicts_with_all = ClusterArguments::OPTIONS)]
    config: Option<PathBuf>,
    /// Check the configuration and everything that it names, and end.
    #[arg(long, requires = "config", conflicts_with = "print_ca")]
    check_config: bool,
    /// Print the certificate authority that guests must name and trust, and end.
    /// It is made, if there is none.
    #[arg(long, requires = "config")]
    print_ca: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
}

/// Options of a broker in a cluster.
#[derive(Args)]
struct ClusterArguments {
    /// Address to serve on, over TLS 1.3.
    #[arg(long, env = "ASSAY_BROKER_LISTEN", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Namespace of this installation.
    #[arg(long, env = "POD_NAMESPACE", required_unless_present = "config")]
    namespace: Option<String>,
    /// PEM of a development root. Evidence of simulated processors under it is
    /// accepted where an AttestationPolicy names SimulatedSNP. It protects
    /// nothing. Without this option no simulated evidence is ever accepted.
    #[arg(long, env = "ASSAY_SIMULATED_ROOT")]
    simulated_root: Option<PathBuf>,
    /// File, JSON, of what is refused under every AttestationPolicy: `chips`, SHA-256
    /// of CHIP_ID; `keys`, SHA-256 of an endorsement key's SubjectPublicKeyInfo, as
    /// records show them; `providers`, CSP_ID. It is read once.
    #[arg(long, env = "ASSAY_DENY_LIST")]
    deny_list: Option<PathBuf>,
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
    /// File that says which store the values are in, as YAML or JSON. Without it
    /// they are in Secrets of the workloads' namespaces.
    #[arg(long, env = "ASSAY_SECRETS_CONFIG")]
    secrets_config: Option<PathBuf>,
    /// Address for metrics, over plain HTTP. Without it there are none.
    #[arg(long, env = "ASSAY_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// Address for the attestation proxies of COCONUT-SVSM guests, over plain HTTP,
    /// which is all that they speak. Without it there is none.
    #[arg(long, env = "ASSAY_SVSM_LISTEN")]
    svsm_listen: Option<SocketAddr>,
}

impl ClusterArguments {
    /// What would be ignored beside --config.
    const OPTIONS: [&str; 10] = [
        "listen",
        "namespace",
        "simulated_root",
        "deny_list",
        "audit_log",
        "collateral_dir",
        "collateral_url",
        "secrets_config",
        "metrics_listen",
        "svsm_listen",
    ];
}

/// Values pass through buffers of libraries; what is freed is wiped.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    leave_no_core_dump().context("cannot switch core dumps off")?;
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(std::io::stderr)
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .init();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a cryptography provider is installed already"))?;
    match &arguments.config {
        Some(path) => standalone(&Config::load(path)?, &arguments).await,
        None => cluster(arguments.cluster).await,
    }
}

async fn standalone(config: &Config, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.check_config {
        let checked = Standalone::check(config)?;
        for note in &checked.notes {
            println!("note: {note}");
        }
        println!("the configuration is good: {} objects", checked.objects);
        return Ok(());
    }
    if arguments.print_ca {
        print!("{}", Standalone::ca(config)?);
        return Ok(());
    }
    let mut broker = Standalone::start(config)?;
    let stop = broker.stopper();
    tokio::spawn(async {
        if terminated().await {
            stop();
        }
    });
    broker.finished().await.context("cannot serve")
}

async fn cluster(arguments: ClusterArguments) -> anyhow::Result<()> {
    let anchors = match &arguments.simulated_root {
        Some(path) => {
            let anchor = read_simulated_root(path)?;
            tracing::warn!(%anchor, "simulated evidence can be accepted: it protects nothing");
            TrustAnchors::with_simulated(anchor)
        }
        None => TrustAnchors::amd(),
    };
    let denied = match &arguments.deny_list {
        Some(path) => {
            let list = std::fs::read(path)
                .with_context(|| format!("cannot read the deny list {}", path.display()))?;
            parse_deny_list(&list)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("cannot use {}", path.display()))?
        }
        None => DenyList::default(),
    };
    let audit = arguments.audit_log.as_deref().map(AuditLog::open);
    let audit = audit.transpose()?;
    let collateral = collateral(&arguments, anchors)?;
    let client = kube::Client::try_default()
        .await
        .context("cannot configure the API client")?;
    let namespace = arguments.namespace.as_deref().unwrap_or_default();
    let keys = get_or_create_keys(&client, namespace, Timestamp::now()).await?;
    publish_ca(&client, namespace, &keys.ca).await?;

    let secrets = match &arguments.secrets_config {
        Some(path) => SecretsConfig::load(path)?,
        None => SecretsConfig::kubernetes(),
    };
    let secrets = secrets.open(Some(&client), Arc::new(Timestamp::now))?;
    tokio::spawn(OpenSecrets::keep_alive(secrets.server));
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
        secrets: secrets.store,
        verifier: VerifierIdentity {
            ca: keys.ca.clone(),
            anchors,
            denied,
            chains: Arc::default(),
        },
        nonces: NonceIssuer::new(keys.nonce_key()),
        used_nonces: Box::new(BoundedNonceCache::new(NONCE_CACHE)),
        tokens: keys.token_key()?,
        collateral: Some(collateral),
        audit,
        // Replicas share no disk, and the broker's Role updates no Secret.
        volumes: None,
        metrics: Arc::default(),
        clock: Arc::new(Timestamp::now),
    });
    let service = Arc::new(service);
    if let Some(address) = arguments.metrics_listen {
        serve_metrics(address, service.clone()).context("cannot use --metrics-listen")?;
    }
    if let Some(address) = arguments.svsm_listen {
        serve_svsm(address, service.clone()).context("cannot use --svsm-listen")?;
    }
    let names = server_names(namespace);
    let tls = RustlsConfig::from_config(keys.server_config(&names, Timestamp::now())?);
    tokio::spawn(renew_tls(SERVER_RENEWAL, tls.clone(), move || {
        keys.server_config(&names, Timestamp::now())
    }));

    let handle = Handle::new();
    tokio::spawn({
        let (handle, ready) = (handle.clone(), ready.clone());
        async move {
            if terminated().await {
                // Not ready at once; requests in flight are answered.
                ready.store(false, Ordering::Relaxed);
                handle.graceful_shutdown(Some(SHUTDOWN_GRACE));
            }
        }
    });
    tracing::info!(listen = %arguments.listen, %namespace, "serving");
    axum_server::bind_rustls(arguments.listen, tls)
        .http1_only()
        .handle(handle)
        .serve(router(service, ready).into_make_service_with_connect_info::<SocketAddr>())
        .await
        .with_context(|| format!("cannot serve on {}", arguments.listen))
}

fn collateral(
    arguments: &ClusterArguments,
    anchors: TrustAnchors,
) -> anyhow::Result<Arc<CollateralStore>> {
    let clock = Arc::new(Timestamp::now);
    let Some(directory) = &arguments.collateral_dir else {
        return Ok(CollateralStore::in_memory(anchors, clock).into());
    };
    let url = arguments.collateral_url.as_deref();
    let store = CollateralStore::open(directory, anchors, url, clock)
        .context("cannot use --collateral-url")?;
    Ok(Arc::new(store))
}

fn read_simulated_root(path: &std::path::Path) -> anyhow::Result<Sha256Digest> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_simulated_root(&pem)
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("cannot use {}", path.display()))
}

/// Values must not reach a disk, nor another process of the same user.
fn leave_no_core_dump() -> rustix::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Waits for SIGTERM or SIGINT; false when nobody can tell.
async fn terminated() -> bool {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!("cannot listen for signals");
        return false;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down");
    true
}
