//! HTTP: requests to calls of the [`Service`], its answers to responses.

mod clients;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use assay_protocol::broker::Profile;
use assay_protocol::messages::TokenResponse;
use assay_protocol::messages::{ATTEST_PATH, AUTH_PATH, RESOURCE_PATH, SESSION_COOKIE};
use assay_protocol::svsm::{SVSM_PATH, SVSM_RESOURCE};
use assay_protocol::volume::VOLUME_PATH;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest as _, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use tokio::sync::Semaphore;
use tower_http::timeout::TimeoutLayer;

use self::clients::Clients;
use crate::inventory::Inventory;
use crate::metrics::{self, Operation};
use crate::release::ResourcePath;
use crate::service::{Chain, Refusal, Service};

/// Most bytes of a request's body.
const MAX_BODY: usize = 256 * 1024;
/// Longest time for a request, reading its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests that are worked on at a time; more are told to try again.
const MAX_CONCURRENT: usize = 256;

/// What the routes share.
struct Shared<I> {
    service: Arc<Service<I>>,
    ready: Arc<AtomicBool>,
}

impl<I: Inventory> Shared<I> {
    /// The answer to a request, and a note of how long it took.
    fn answer(
        &self,
        operation: Operation,
        started: Instant,
        result: Result<impl IntoResponse, Refusal>,
    ) -> Response {
        let response = match result {
            Ok(granted) => granted.into_response(),
            Err(error) => refusal(&error),
        };
        let status = response.status().as_u16();
        let metrics = self.service.metrics();
        metrics.request(operation, status, started.elapsed());
        response
    }
}

/// The routes, to be served with the clients' addresses. `ready` says whether
/// `/readyz` succeeds.
pub fn router<I: Inventory>(service: Arc<Service<I>>, ready: Arc<AtomicBool>) -> Router {
    let protocol = Router::new()
        .route(AUTH_PATH, post(authenticate::<I>))
        .route(ATTEST_PATH, post(attest::<I>))
        .route(
            &format!("{RESOURCE_PATH}/{{repository}}/{{type}}/{{tag}}"),
            get(resource::<I>),
        )
        .route(
            &format!("{VOLUME_PATH}/{{namespace}}/{{deployment}}/{{volume}}/open"),
            post(open_volume::<I>),
        )
        .route(
            &format!("{VOLUME_PATH}/{{namespace}}/{{deployment}}/{{volume}}/close"),
            post(close_volume::<I>),
        );
    let routes = limited(protocol)
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz::<I>))
        .route("/.well-known/jwks.json", get(jwks::<I>));
    bounded(routes).with_state(Arc::new(Shared { service, ready }))
}

/// The routes of the SVSM profile, to be served with the clients' addresses. They may
/// be served in the clear: what is released is encrypted to the key in the evidence,
/// and an SVSM cannot tell one broker from another anyway.
pub fn svsm_router<I: Inventory>(service: Arc<Service<I>>) -> Router {
    let base = format!("{SVSM_PATH}/{{document}}");
    let secret = SVSM_RESOURCE.join("/");
    let protocol = Router::new()
        .route(&format!("{base}{AUTH_PATH}"), post(authenticate_svsm::<I>))
        .route(&format!("{base}{ATTEST_PATH}"), post(attest_svsm::<I>))
        .route(
            &format!("{base}{RESOURCE_PATH}/{secret}"),
            get(resource_svsm::<I>),
        );
    let ready = Arc::new(AtomicBool::new(true));
    bounded(limited(protocol)).with_state(Arc::new(Shared { service, ready }))
}

/// As [`limit`] says, counted for these routes alone.
fn limited<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    let permits = Arc::new(Semaphore::new(MAX_CONCURRENT));
    let clients = Clients::default();
    routes.layer(middleware::from_fn(move |client, request, next| {
        limit(permits.clone(), clients.clone(), client, request, next)
    }))
}

fn bounded<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            REQUEST_TIMEOUT,
        ))
}

/// What monitoring reads, to be served where guests do not reach it.
pub fn metrics_router<I: Inventory>(service: Arc<Service<I>>) -> Router {
    let metrics = |State(service): State<Arc<Service<I>>>| async move {
        let text = service.encode_metrics();
        ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
    };
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(service)
}

/// Makes or reads another certificate `every` so often, long before the one in use
/// ends. While that fails, the old one stays.
pub async fn renew_tls<E: std::error::Error + 'static>(
    every: Duration,
    in_use: RustlsConfig,
    make: impl Fn() -> Result<Arc<ServerConfig>, E>,
) {
    let mut interval = tokio::time::interval(every);
    interval.tick().await;
    loop {
        interval.tick().await;
        match make() {
            Ok(tls) => in_use.reload_from_config(tls),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot renew the TLS certificate");
            }
        }
    }
}

/// Lets a request pass that is one of few of its client and, once its body is
/// there, one of few at all: slow clients use up their own share and no other's.
async fn limit(
    permits: Arc<Semaphore>,
    clients: Clients,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let Some(_admission) = clients.admit(address.ip()) else {
        return refusal(&Refusal::Unavailable);
    };
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts.clone(), body);
    let body = match Bytes::from_request(request, &()).await {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    match permits.try_acquire() {
        Ok(_permit) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Err(_) => refusal(&Refusal::Unavailable),
    }
}

async fn authenticate<I: Inventory>(State(shared): State<Arc<Shared<I>>>, body: Bytes) -> Response {
    let started = Instant::now();
    let challenged = shared.service.authenticate(Profile::Kbs, &body);
    let challenged = challenged.map(|(session, challenge)| {
        let cookie = [(header::SET_COOKIE, cookie(&session))];
        (cookie, Json(challenge))
    });
    shared.answer(Operation::Auth, started, challenged)
}

async fn attest<I: Inventory>(
    State(shared): State<Arc<Shared<I>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let started = Instant::now();
    let attested = shared.service.attest(session(&headers), &body).await;
    let attested = attested.map(|token| {
        // Clients of other key brokers ask for resources with the cookie alone. As
        // the session's new name the token needs no memory of sessions.
        let cookie = [(header::SET_COOKIE, cookie(&token))];
        (cookie, Json(TokenResponse { token }))
    });
    shared.answer(Operation::Attest, started, attested)
}

async fn resource<I: Inventory>(
    State(shared): State<Arc<Shared<I>>>,
    Path(path): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let started = Instant::now();
    let token = bearer(&headers).or_else(|| session(&headers));
    let released = shared.service.resource(token, &resource_path(path)).await;
    shared.answer(Operation::Resource, started, released.map(Json))
}

async fn authenticate_svsm<I: Inventory>(
    State(shared): State<Arc<Shared<I>>>,
    Path(document): Path<String>,
    body: Bytes,
) -> Response {
    let started = Instant::now();
    let challenged = shared.service.authenticate_svsm(&document, &body);
    let challenged = challenged.map(|(session, challenge)| {
        let cookie = [(header::SET_COOKIE, svsm_cookie(&session))];
        (cookie, Json(challenge))
    });
    shared.answer(Operation::Auth, started, challenged)
}

async fn attest_svsm<I: Inventory>(
    State(shared): State<Arc<Shared<I>>>,
    Path(document): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let started = Instant::now();
    let service = &shared.service;
    let attested = service.attest_svsm(&document, session(&headers), &body);
    let attested = attested.await.map(|token| {
        let cookie = [(header::SET_COOKIE, svsm_cookie(&token))];
        (cookie, Json(TokenResponse { token }))
    });
    shared.answer(Operation::Attest, started, attested)
}

async fn resource_svsm<I: Inventory>(
    State(shared): State<Arc<Shared<I>>>,
    Path(document): Path<String>,
    headers: HeaderMap,
) -> Response {
    let started = Instant::now();
    let service = &shared.service;
    let released = service.resource_svsm(&document, session(&headers));
    shared.answer(Operation::Resource, started, released.await.map(Json))
}

async fn open_volume<I: Inventory>(
    State(shared): State<Arc<Shared<I>>>,
    Path(path): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let started = Instant::now();
    let (token, path) = (bearer(&headers), resource_path(path));
    let opened = shared.service.open_volume(token, &path, &body).await;
    shared.answer(Operation::Volume, started, opened.map(Json))
}

async fn close_volume<I: Inventory>(
    State(shared): State<Arc<Shared<I>>>,
    Path(path): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let started = Instant::now();
    let (token, path) = (bearer(&headers), resource_path(path));
    let closed = shared.service.close_volume(token, &path, &body).await;
    let closed = closed.map(|()| StatusCode::NO_CONTENT);
    shared.answer(Operation::Volume, started, closed)
}

fn resource_path((namespace, deployment, name): (String, String, String)) -> ResourcePath {
    ResourcePath {
        namespace,
        deployment,
        name,
    }
}

/// Whoever goes on with what files said before serves; how many, and no more, is
/// for everyone to see.
async fn readyz<I: Inventory>(State(shared): State<Arc<Shared<I>>>) -> Response {
    if !shared.ready.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready").into_response();
    }
    match shared.service.health().invalid_files {
        0 => "ok".into_response(),
        number => {
            format!("ok, but {number} invalid files of the inventory: see the log").into_response()
        }
    }
}

async fn jwks<I: Inventory>(State(shared): State<Arc<Shared<I>>>) -> Response {
    Json(shared.service.jwks()).into_response()
}

fn refusal(refusal: &Refusal) -> Response {
    let status =
        StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(refusal.information())).into_response()
}

/// The cookie that makes `session` the client's.
fn cookie(session: &str) -> String {
    format!("{SESSION_COOKIE}={session}; Path=/kbs; Secure; HttpOnly")
}

/// The cookie of the SVSM profile, which may be served in the clear.
fn svsm_cookie(session: &str) -> String {
    format!("{SESSION_COOKIE}={session}; Path={SVSM_PATH}; HttpOnly")
}

/// The session of the request's cookie.
fn session(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == SESSION_COOKIE)
        .map(|(_, value)| value)
}

/// The token of the request's authorization.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

#[cfg(test)]
pub(crate) mod tests;
