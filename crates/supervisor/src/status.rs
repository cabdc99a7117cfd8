//! `/healthz` and `/readyz` for the kubelet's probes.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;

use assay_supervisor::{Progress, Qmp};
use assay_tee::Tee;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What the probes look at.
#[derive(Debug, Clone)]
pub(crate) struct Probes {
    pub(crate) qmp: Qmp,
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) tee: Tee,
}

/// Binds the address; the returned future serves it.
pub(crate) async fn bind(
    address: SocketAddr,
    probes: Probes,
) -> io::Result<impl Future<Output = io::Result<()>> + Send> {
    let listener = TcpListener::bind(address).await?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(probes);
    Ok(axum::serve(listener, router).into_future())
}

/// 200 while QEMU's main loop answers. A paused or looping guest is alive: the
/// firmware's refusal of a UKI is such a loop, and restarting would hide it.
async fn healthz(State(probes): State<Probes>) -> (StatusCode, String) {
    match probes.qmp.execute("query-status").await {
        Ok(()) => (StatusCode::OK, "QEMU answers\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

/// 200 from the workload's start to its end.
async fn readyz(State(probes): State<Probes>) -> (StatusCode, String) {
    let progress = probes.progress.borrow();
    let mut body = format!("phase={}", progress.phase);
    if !probes.tee.is_hardware() {
        // Writing to a string cannot fail.
        let _ = write!(body, " tee={} (SIMULATION: protects nothing)", probes.tee);
    }
    body.push('\n');
    let status = if progress.running {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, body)
}
