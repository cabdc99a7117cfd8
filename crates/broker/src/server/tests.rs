//! The routes over real TLS on the loopback interface.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use assay_protocol::guest::{GuestSession, HttpRequest, HttpResponse};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::fixtures;
use crate::keys::{BrokerKeys, server_names};
use crate::service::tests::{FakeCluster, parts};

struct Broker {
    address: SocketAddr,
    client: Arc<ClientConfig>,
    handle: Handle<SocketAddr>,
    ready: Arc<AtomicBool>,
}

fn serve() -> Broker {
    let keys = BrokerKeys::generate(Timestamp::now()).unwrap();
    let tls = keys
        .server_config(&server_names("assay-system"), Timestamp::now())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let service = Service::new(parts(FakeCluster::new(), Arc::new(fixtures::now)));
    let handle = Handle::new();
    let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(tls))
        .unwrap()
        .handle(handle.clone())
        .serve(router(service, ready.clone()).into_make_service());
    tokio::spawn(server);

    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(keys.ca.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Broker {
        address,
        client: Arc::new(client),
        handle,
        ready,
    }
}

impl Broker {
    async fn send(&self, request: HttpRequest) -> HttpResponse {
        let (address, client) = (self.address, self.client.clone());
        tokio::task::spawn_blocking(move || exchange(address, client, &request))
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> u16 {
        let path = path.to_owned();
        self.send(HttpRequest {
            method: "GET",
            path,
            headers: vec![],
            body: vec![],
        })
        .await
        .status
    }
}

/// One request on a connection of its own.
fn exchange(address: SocketAddr, client: Arc<ClientConfig>, request: &HttpRequest) -> HttpResponse {
    let name = ServerName::try_from("assay-broker.assay-system.svc").unwrap();
    let connection = ClientConnection::new(client, name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    let mut head = format!(
        "{} {} HTTP/1.1\r\nhost: assay-broker\r\nconnection: close\r\ncontent-length: {}\r\n",
        request.method,
        request.path,
        request.body.len()
    );
    for (name, value) in &request.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&request.body).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    HttpResponse {
        status,
        headers,
        body: body.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn a_guest_attests_and_gets_its_secret_over_tls() {
    let broker = serve();
    let session = GuestSession::new().unwrap();
    let response = broker.send(session.auth_request().unwrap()).await;
    let session = session.on_challenge(&response).unwrap();
    let instance = fixtures::instance();
    let guest = fixtures::launch(1, &instance);
    let evidence = fixtures::evidence(&guest, session.report_data().unwrap());
    let document = String::from_utf8(instance.encode().unwrap()).unwrap();
    let request = session.attest_request(evidence, &document).unwrap();
    let session = session.on_token(&broker.send(request).await).unwrap();
    let request = session.resource_request("shop/web/greeting").unwrap();
    let secret = session.on_resource(&broker.send(request).await).unwrap();
    assert_eq!(secret.as_slice(), fixtures::SECRET_VALUE);
    broker.handle.shutdown();
}

#[tokio::test]
async fn probes_keys_and_refusals() {
    let broker = serve();
    assert_eq!(broker.get("/healthz").await, 200);
    assert_eq!(broker.get("/readyz").await, 503);
    broker.ready.store(true, Ordering::Relaxed);
    assert_eq!(broker.get("/readyz").await, 200);
    assert_eq!(broker.get("/.well-known/jwks.json").await, 200);
    assert_eq!(broker.get("/kbs/v0/resource/shop/web/greeting").await, 401);
    assert_eq!(broker.get("/kbs/v0/resource/shop/web").await, 404);

    let post = |path: &str, body: Vec<u8>| HttpRequest {
        method: "POST",
        path: path.to_owned(),
        headers: vec![],
        body,
    };
    let junk = broker.send(post(AUTH_PATH, b"junk".to_vec())).await;
    assert_eq!(junk.status, 400);
    let error: assay_protocol::messages::ErrorInformation =
        serde_json::from_slice(&junk.body).unwrap();
    assert_eq!(error.kind(), "InvalidRequest");
    let large = broker
        .send(post(ATTEST_PATH, vec![b' '; MAX_BODY + 1]))
        .await;
    assert_eq!(large.status, 413);
    broker.handle.shutdown();
}
