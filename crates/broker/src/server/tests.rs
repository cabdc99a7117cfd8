//! The routes over real TLS on the loopback interface.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use assay_protocol::guest::{GuestSession, HttpRequest, HttpResponse};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA384, digest};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
    PublicKeyComponents,
};
use aws_lc_rs::signature::KeyPair as _;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use super::*;
use crate::fixtures;
use crate::keys::{BrokerKeys, server_names};
use crate::service::tests::{FakeCluster, parts};

/// A name that the server's certificate has.
pub(crate) const SERVER_NAME: &str = "assay-broker.assay-system.svc";

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
    let service = Arc::new(Service::new(parts(
        FakeCluster::new(),
        Arc::new(fixtures::now),
    )));
    let handle = Handle::new();
    let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(tls))
        .unwrap()
        .handle(handle.clone())
        .serve(router(service, ready.clone()).into_make_service_with_connect_info::<SocketAddr>());
    tokio::spawn(server);

    Broker {
        address,
        client: client(&keys.ca),
        handle,
        ready,
    }
}

/// A client that trusts `ca` and nobody else.
pub(crate) fn client(ca: &str) -> Arc<ClientConfig> {
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
    Arc::new(client)
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

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

fn secure(client: Arc<ClientConfig>, stream: TcpStream) -> TlsStream {
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    StreamOwned::new(ClientConnection::new(client, name).unwrap(), stream)
}

/// One request on a connection of its own.
pub(crate) fn exchange(
    address: SocketAddr,
    client: Arc<ClientConfig>,
    request: &HttpRequest,
) -> HttpResponse {
    let mut stream = secure(client, TcpStream::connect(address).unwrap());
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

/// A client of Confidential Containers: its types, its evidence, an RSA key, and
/// of a session only the cookie that it was given last.
#[tokio::test]
async fn a_client_of_confidential_containers_gets_its_secret() {
    let broker = serve();
    let request = |method, path: &str, cookie: Option<&str>, body: serde_json::Value| HttpRequest {
        method,
        path: path.to_owned(),
        headers: Vec::from_iter(cookie.map(|cookie| ("cookie", cookie.to_owned()))),
        body: body.to_string().into_bytes(),
    };
    let given = |response: &HttpResponse| {
        let mut headers = response.headers.iter();
        let (_, cookie) = headers.find(|(name, _)| name == "set-cookie").unwrap();
        cookie.split(';').next().unwrap().to_owned()
    };
    let auth = kbs_types::Request {
        version: "0.4.0".to_owned(),
        tee: kbs_types::Tee::Snp,
        extra_params: json!({"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}),
    };
    let auth = serde_json::to_value(auth).unwrap();
    let response = broker.send(request("POST", AUTH_PATH, None, auth)).await;
    assert_eq!(response.status, 200);
    let session = given(&response);
    let challenge: kbs_types::Challenge = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(challenge.extra_params["selected-hash-algorithm"], "sha384");

    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = PublicKeyComponents::<Vec<u8>>::from(key.public_key());
    let runtime_data = kbs_types::RuntimeData {
        nonce: challenge.nonce,
        tee_pubkey: kbs_types::TeePubKey::RSA {
            alg: "RSA-OAEP-256".to_owned(),
            k_mod: BASE64_URL_SAFE_NO_PAD.encode(public.n),
            k_exp: BASE64_URL_SAFE_NO_PAD.encode(public.e),
        },
    };
    // A sorted map without spaces is canonical JSON here.
    let mut bound = serde_json::to_value(&runtime_data).unwrap();
    bound["additional-evidence"] = "".into();
    let digest = digest(&SHA384, bound.to_string().as_bytes());
    let mut report_data = [0; 64];
    report_data[..48].copy_from_slice(digest.as_ref());
    let instance = fixtures::instance();
    let evidence = fixtures::evidence(&fixtures::launch(1, &instance), report_data);
    let attestation = kbs_types::Attestation {
        init_data: Some(kbs_types::InitData {
            format: "json".to_owned(),
            body: String::from_utf8(instance.encode().unwrap()).unwrap(),
        }),
        runtime_data,
        tee_evidence: kbs_types::CompositeEvidence {
            primary_evidence: fixtures::coco_evidence(&evidence),
            additional_evidence: String::new(),
        },
    };
    let attestation = serde_json::to_value(attestation).unwrap();
    let attest = request("POST", ATTEST_PATH, Some(&session), attestation);
    let response = broker.send(attest).await;
    assert_eq!(response.status, 200);
    let attested = given(&response);

    let resource = |cookie| {
        let path = "/kbs/v0/resource/shop/web/greeting";
        request("GET", path, cookie, serde_json::Value::Null)
    };
    for cookie in [None, Some(session.as_str())] {
        let refused = broker.send(resource(cookie)).await;
        assert_eq!(refused.status, 401);
        let error: kbs_types::ErrorInformation = serde_json::from_slice(&refused.body).unwrap();
        assert!(error.error_type.ends_with("/TokenVerificationFailed"));
    }
    let response = broker.send(resource(Some(&attested))).await;
    assert_eq!(response.status, 200);
    let response: kbs_types::Response = serde_json::from_slice(&response.body).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let key = PrivateDecryptingKey::from_pkcs8(der.as_ref()).unwrap();
    let key = OaepPrivateDecryptingKey::new(key).unwrap();
    let mut content_key = vec![0; key.min_output_size()];
    let content_key = key
        .decrypt(
            &OAEP_SHA256_MGF1SHA256,
            &response.encrypted_key,
            &mut content_key,
            None,
        )
        .unwrap();
    let aad = Aad::from(response.protected.generate_aad().unwrap());
    let nonce = Nonce::try_assume_unique_for_key(&response.iv).unwrap();
    let mut content = [response.ciphertext, response.tag].concat();
    let secret = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, content_key).unwrap())
        .open_in_place(nonce, aad, &mut content)
        .unwrap();
    assert_eq!(secret, fixtures::SECRET_VALUE);
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

impl Broker {
    /// Begins a request from the loopback address that ends in `host`, whose body
    /// of one byte is `body` or yet to come.
    async fn post_from(&self, host: u8, body: &'static [u8]) -> TlsStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::from(([127, 0, 0, host], 0)))
            .unwrap();
        let stream = socket.connect(self.address).await.unwrap();
        let stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let client = self.client.clone();
        let send = move || {
            let mut stream = secure(client, stream);
            let head = format!(
                "POST {AUTH_PATH} HTTP/1.1\r\nhost: assay-broker\r\nconnection: close\r\n\
                 content-length: 1\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
            stream
        };
        tokio::task::spawn_blocking(send).await.unwrap()
    }

    /// The status that a whole request from `host` is answered with.
    async fn status_from(&self, host: u8) -> String {
        let mut stream = self.post_from(host, b"?").await;
        let read = move || {
            let mut head = [0; "HTTP/1.1 200".len()];
            stream.read_exact(&mut head).unwrap();
            String::from_utf8_lossy(&head[9..]).into_owned()
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_use_up_their_own_share() {
    let broker = serve();
    let mut slow = Vec::new();
    let hosts = u8::try_from(MAX_CONCURRENT / clients::MAX_PER_CLIENT).unwrap() + 1;
    for host in 2..2 + hosts {
        for _ in 0..clients::MAX_PER_CLIENT {
            slow.push(broker.post_from(host, b"").await);
        }
        let full = async {
            while broker.status_from(host).await != "503" {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(REQUEST_TIMEOUT / 2, full)
            .await
            .unwrap_or_else(|_| panic!("client {host} has no limit"));
    }
    assert!(slow.len() > MAX_CONCURRENT);
    assert_eq!(broker.status_from(1).await, "400");
    broker.handle.shutdown();
}
