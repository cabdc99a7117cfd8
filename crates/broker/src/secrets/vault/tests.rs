//! Against a server on the loopback interface that answers in the shapes that the
//! API documentation of Vault and OpenBao gives.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum_server::tls_rustls::RustlsConfig;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::fixtures;
use crate::keys::BrokerKeys;
use crate::release::decide_secret;
use crate::secrets::config::SecretsConfig;
use crate::service::{Chain, Clock};

/// What the server knows, and what it was asked.
#[derive(Default)]
pub(crate) struct Server {
    /// Tokens that it accepts.
    tokens: Vec<String>,
    /// Tokens that it has issued.
    issued: usize,
    /// Seconds for which it issues them.
    ttl: u32,
    renewable: bool,
    /// Seconds that a renewal gives.
    renewal: Option<u32>,
    /// Status of every answer, if not by what is there.
    status: Option<u16>,
    /// Answers by path.
    pub(crate) answers: BTreeMap<String, Value>,
    pub(crate) requests: Vec<String>,
    bodies: Vec<Value>,
    namespaces: Vec<Option<String>>,
}

pub(crate) type Shared = Arc<Mutex<Server>>;

fn errors(status: StatusCode) -> Response {
    let body = json!({ "errors": ["the words of the server, with correct horse battery staple"] });
    (status, axum::Json(body)).into_response()
}

async fn answer(
    State(server): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut server = server.lock().unwrap();
    let path = uri.to_string();
    server.requests.push(format!("{method} {path}"));
    let header = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    server.namespaces.push(header("x-vault-namespace"));
    assert_eq!(header("x-vault-request").as_deref(), Some("true"));
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    server.bodies.push(body.clone());
    if let Some(status) = server.status {
        return errors(StatusCode::from_u16(status).unwrap());
    }
    let lease = |server: &Server, token: &str, seconds: u32| {
        json!({ "auth": {
            "client_token": token, "accessor": "a", "policies": ["assay"],
            "lease_duration": seconds, "renewable": server.renewable,
        }})
    };
    if path.ends_with("/login") {
        let good = match path.as_str() {
            "/v1/auth/approle/login" => {
                body == json!({ "role_id": "broker", "secret_id": "s3cret" })
            }
            "/v1/auth/kubernetes/login" => body == json!({ "role": "broker", "jwt": "j.w.t" }),
            _ => return errors(StatusCode::NOT_FOUND),
        };
        if !good {
            return errors(StatusCode::BAD_REQUEST);
        }
        server.issued += 1;
        let token = format!("hvs.{}", server.issued);
        server.tokens.push(token.clone());
        let seconds = server.ttl;
        return axum::Json(lease(&server, &token, seconds)).into_response();
    }
    let token = header("x-vault-token").unwrap_or_default();
    if !server.tokens.contains(&token) {
        return errors(StatusCode::FORBIDDEN);
    }
    match path.as_str() {
        "/v1/auth/token/renew-self" => match server.renewal {
            Some(seconds) => axum::Json(lease(&server, &token, seconds)).into_response(),
            None => errors(StatusCode::BAD_REQUEST),
        },
        "/v1/auth/token/lookup-self" => {
            let data = json!({ "ttl": server.ttl, "renewable": server.renewable, "id": token });
            axum::Json(json!({ "data": data })).into_response()
        }
        path => match server.answers.get(path) {
            Some(answer) => axum::Json(answer.clone()).into_response(),
            None => errors(StatusCode::NOT_FOUND),
        },
    }
}

/// The server, and a store that reads from it.
struct World {
    server: Shared,
    store: Arc<dyn SecretStore>,
    client: Arc<VaultClient>,
    clock: Arc<Mutex<Timestamp>>,
    directory: tempfile::TempDir,
}

const APP_ROLE: &str = r#"{"appRole": {"roleId": "broker", "secretIdFile": "secret-id"}}"#;
const KUBERNETES: &str = r#"{"kubernetes": {"role": "broker", "jwtFile": "jwt"}}"#;
const TOKEN: &str = r#"{"token": {"file": "token"}}"#;
const DATA: &str = "/v1/secret/data/assay/shop/web-secrets";

/// A KV version as the API answers it.
fn version(data: &Value, custom: &Value) -> Value {
    json!({
        "request_id": "r", "lease_id": "", "lease_duration": 0, "renewable": false,
        "data": {
            "data": data,
            "metadata": {
                "created_time": "2026-11-25T00:00:00Z", "custom_metadata": custom,
                "deletion_time": "", "destroyed": false, "version": 2,
            },
        },
    })
}

fn simulated() -> Value {
    json!({ "assay.dev/release-class": "simulated" })
}

/// A server that issues tokens for a quarter of an hour.
fn server() -> Shared {
    let server = Shared::default();
    {
        let mut server = server.lock().unwrap();
        server.ttl = 900;
        server.renewable = true;
        server.renewal = Some(900);
        let value = version(&json!({ "greeting": "hello" }), &simulated());
        server.answers.insert(DATA.to_owned(), value);
    }
    server
}

/// Serves on the loopback interface; says at which URL.
pub(crate) async fn serve() -> (Shared, String) {
    let server = server();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new()
        .fallback(answer)
        .with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (server, format!("http://{address}"))
}

async fn world(auth: &str, store: &str) -> World {
    let (server, url) = serve().await;
    open(server, &format!(r#""address": "{url}""#), auth, store)
}

/// A store by a configuration whose `vault` begins with `address`.
fn open(server: Shared, address: &str, auth: &str, store: &str) -> World {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("secret-id", "s3cret\n"),
        ("jwt", "j.w.t"),
        ("token", "hvs.file\n"),
    ] {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let path = directory.path().join("secrets.yaml");
    let config =
        format!(r#"{{"vault": {{{address}, "namespace": "team", "auth": {auth}}}, {store}}}"#);
    fs::write(&path, config).unwrap();
    let clock = Arc::new(Mutex::new(fixtures::now()));
    let reading = clock.clone();
    let now: Clock = Arc::new(move || *reading.lock().unwrap());
    let open = SecretsConfig::load(&path).unwrap().open(None, now).unwrap();
    World {
        server,
        store: open.store,
        client: open.server.unwrap(),
        clock,
        directory,
    }
}

async fn kv() -> World {
    world(APP_ROLE, r#""kv": {}"#).await
}

impl World {
    async fn read_key(&self, name: &str, key: &str) -> Result<Option<StoredSecret>, String> {
        let reference = SecretKeyReference {
            name: name.to_owned(),
            key: key.to_owned(),
        };
        let path = fixtures::resource_path();
        let read = self.store.read(&path, &reference).await;
        read.map_err(|error| Chain(&error).to_string())
    }

    async fn read(&self) -> Result<Option<StoredSecret>, String> {
        self.read_key("web-secrets", "greeting").await
    }

    fn advance(&self, seconds: i64) {
        *self.clock.lock().unwrap() += SignedDuration::from_secs(seconds);
    }

    /// Requests since the last look.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().unwrap().requests)
    }

    fn answer(&self, path: &str, answer: Value) {
        let mut server = self.server.lock().unwrap();
        server.answers.insert(path.to_owned(), answer);
    }
}

#[tokio::test]
async fn a_value_and_its_class_are_read() {
    let world = kv().await;
    let stored = world.read().await.unwrap().unwrap();
    assert_eq!(stored.class, ReleaseClass::Simulated);
    assert_eq!(stored.value.unwrap().as_slice(), b"hello");
    assert_eq!(
        world.requests(),
        ["POST /v1/auth/approle/login", &format!("GET {DATA}")]
    );
    let namespaces = world.server.lock().unwrap().namespaces.clone();
    assert!(
        namespaces
            .iter()
            .all(|name| name.as_deref() == Some("team"))
    );
    assert!(world.read_key("other", "greeting").await.unwrap().is_none());
    let stored = world.read_key("web-secrets", "other").await.unwrap();
    assert!(stored.unwrap().value.is_none());
}

/// What is not marked is for hardware, whatever else is in the metadata.
#[tokio::test]
async fn the_class_is_in_the_custom_metadata_alone() {
    let world = kv().await;
    let claims = fixtures::claims();
    let fields = json!({ "greeting": "hello", "assay.dev/release-class": "simulated" });
    for custom in [
        json!(null),
        json!({}),
        json!({ "release-class": "simulated" }),
        json!({ "assay.dev/release-class": "production" }),
    ] {
        world.answer(DATA, version(&fields, &custom));
        let stored = world.read().await.unwrap();
        assert_eq!(stored.as_ref().unwrap().class, ReleaseClass::Hardware);
        assert!(decide_secret(&claims, stored).is_err());
    }
    world.answer(DATA, version(&fields, &simulated()));
    let stored = world.read().await.unwrap();
    assert!(decide_secret(&claims, stored).is_ok());
}

#[tokio::test]
async fn what_was_deleted_is_not_there() {
    let world = kv().await;
    let mut deleted = version(&json!(null), &simulated());
    world.answer(DATA, deleted.clone());
    assert!(world.read().await.unwrap().is_none());
    deleted["data"]["data"] = json!({ "greeting": "hello" });
    deleted["data"]["metadata"]["destroyed"] = true.into();
    world.answer(DATA, deleted);
    assert!(world.read().await.unwrap().is_none());
}

#[tokio::test]
async fn a_pinned_version_is_asked_for() {
    let store = r#""kv": {"prefix": "", "mount": "kv", "versions": {"shop/web-secrets": 3}}"#;
    let world = world(APP_ROLE, store).await;
    let path = "/v1/kv/data/shop/web-secrets?version=3";
    let value = version(&json!({ "greeting": "old" }), &json!(null));
    world.answer(path, value);
    let stored = world.read().await.unwrap().unwrap();
    assert_eq!(stored.value.unwrap().as_slice(), b"old");
    world.read_key("other", "greeting").await.unwrap();
    let requests = world.requests();
    assert_eq!(requests.last().unwrap(), "GET /v1/kv/data/shop/other");
}

#[tokio::test]
async fn values_are_text_or_said_to_be_base64() {
    type Expected = Result<&'static [u8], &'static str>;
    let world = kv().await;
    let custom = |encoding: &str| {
        let mut custom = simulated();
        custom["assay.dev/encoding"] = encoding.into();
        custom
    };
    let rows: [(Value, Value, Expected); 5] = [
        (json!("a\nb\u{e4}"), simulated(), Ok(b"a\nb\xc3\xa4")),
        (json!("AP8="), custom("base64"), Ok(&[0, 255])),
        (json!("not base64"), custom("base64"), Err("is not base64")),
        (
            json!("hello"),
            custom("hex"),
            Err("the encoding in the custom metadata is unknown"),
        ),
        (
            json!({ "a": 1 }),
            simulated(),
            Err("the field is no string"),
        ),
    ];
    for (value, custom, expected) in rows {
        world.answer(
            DATA,
            version(&json!({ "greeting": value, "n": 1 }), &custom),
        );
        match (world.read().await, expected) {
            (Ok(stored), Ok(expected)) => {
                assert_eq!(stored.unwrap().value.unwrap().as_slice(), expected);
            }
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (found, expected) => panic!("{found:?} {expected:?}"),
        }
    }
    // The first version of the engine answers otherwise.
    world.answer(DATA, json!({ "data": { "greeting": "hello" } }));
    let error = world.read().await.unwrap_err();
    assert!(
        error.contains("is it a key-value engine of version 2?"),
        "{error}"
    );
}

#[tokio::test]
async fn no_name_leads_elsewhere() {
    let world = kv().await;
    for name in [
        "..",
        "../db/web-secrets",
        "a/b",
        "a%2fb",
        "a?version=1",
        "",
        ".hidden",
        "a#b",
    ] {
        let error = world.read_key(name, "greeting").await.unwrap_err();
        assert!(error.contains("is no part of a path"), "{name}: {error}");
    }
    assert_eq!(world.requests(), [""; 0]);
}

/// Every failure is told apart, none counts as an absence, and none holds what the
/// server said.
#[tokio::test]
async fn failures_are_told_apart_and_leak_nothing() {
    let world = kv().await;
    world.read().await.unwrap();
    for (status, words) in [
        (
            400,
            "refused secret/data/assay/shop/web-secrets (status 400)",
        ),
        (403, "refused to log in (status 403)"),
        (307, "redirects (status 307)"),
        (429, "asks for fewer requests"),
        (500, "answered 500"),
        (503, "sealed or unavailable"),
    ] {
        world.server.lock().unwrap().status = Some(status);
        let error = world.read().await.unwrap_err();
        assert!(error.contains(words), "{status}: {error}");
        for secret in ["correct horse", "hvs.", "s3cret"] {
            assert!(!error.contains(secret), "{error}");
        }
    }
    world.server.lock().unwrap().status = None;
    assert!(world.read().await.unwrap().is_some());
}

/// The policy may lack the capability: a new token does not help.
#[tokio::test]
async fn a_denied_path_is_asked_for_once_more_with_a_new_token() {
    let world = kv().await;
    world.read().await.unwrap();
    world.requests();
    // Revoked behind the broker's back.
    world.server.lock().unwrap().tokens.clear();
    assert!(world.read().await.unwrap().is_some());
    let get = format!("GET {DATA}");
    assert_eq!(
        world.requests(),
        [get.as_str(), "POST /v1/auth/approle/login", &get]
    );
}

#[tokio::test]
async fn a_token_is_renewed_after_two_thirds_of_its_life() {
    let world = kv().await;
    world.read().await.unwrap();
    world.requests();
    world.advance(599);
    world.client.keep_alive().await;
    assert_eq!(world.requests(), [""; 0]);
    world.advance(1);
    world.client.keep_alive().await;
    assert_eq!(world.requests(), ["POST /v1/auth/token/renew-self"]);
    // Its new life begins then.
    world.advance(599);
    world.read().await.unwrap();
    assert_eq!(world.requests(), [format!("GET {DATA}")]);
}

#[tokio::test]
async fn a_token_that_cannot_be_renewed_is_replaced() {
    type Change = fn(&mut Server);
    let login = "POST /v1/auth/approle/login";
    let renew = "POST /v1/auth/token/renew-self";
    let get = format!("GET {DATA}");
    let rows: [(Change, i64, Vec<&str>); 3] = [
        (
            |server| server.renewal = None,
            700,
            vec![renew, login, &get],
        ),
        (|server| server.renewal = None, 900, vec![login, &get]),
        // At the end of its longest life a server gives no more time.
        (|server| server.renewal = Some(100), 700, vec![renew, &get]),
    ];
    for (change, seconds, requests) in rows {
        let world = kv().await;
        change(&mut world.server.lock().unwrap());
        world.read().await.unwrap();
        world.requests();
        world.advance(seconds);
        world.read().await.unwrap();
        assert_eq!(world.requests(), requests);
    }
    // A server that lets nobody in does not cost a token that is still good.
    let world = kv().await;
    world.read().await.unwrap();
    world.server.lock().unwrap().renewal = None;
    let path = world.directory.path().join("secret-id");
    fs::write(&path, "wrong").unwrap();
    world.advance(700);
    assert!(world.read().await.is_ok());
    world.advance(200);
    let error = world.read().await.unwrap_err();
    assert!(error.contains("refused to log in (status 400)"), "{error}");
    fs::write(&path, "two words").unwrap();
    let error = world.read().await.unwrap_err();
    assert!(
        error.contains("secret-id is empty or holds more"),
        "{error}"
    );
}

#[tokio::test]
async fn a_service_account_logs_in() {
    let world = world(KUBERNETES, r#""kv": {}"#).await;
    assert!(world.read().await.unwrap().is_some());
    assert_eq!(world.requests()[0], "POST /v1/auth/kubernetes/login");
}

/// An agent writes another token into its file when it has one.
#[tokio::test]
async fn a_token_of_a_file_is_looked_up_and_read_anew() {
    let world = world(TOKEN, r#""kv": {}"#).await;
    world.server.lock().unwrap().tokens = vec!["hvs.file".to_owned()];
    assert!(world.read().await.unwrap().is_some());
    let get = format!("GET {DATA}");
    let look = "GET /v1/auth/token/lookup-self";
    assert_eq!(world.requests(), [look, &get]);
    world.server.lock().unwrap().tokens = vec!["hvs.new".to_owned()];
    let error = world.read().await.unwrap_err();
    assert!(error.contains("refused to log in (status 403)"), "{error}");
    fs::write(world.directory.path().join("token"), "hvs.new").unwrap();
    assert!(world.read().await.unwrap().is_some());
    // One that never ends is never renewed.
    world.server.lock().unwrap().ttl = 0;
    world.server.lock().unwrap().tokens = vec!["hvs.root".to_owned()];
    fs::write(world.directory.path().join("token"), "hvs.root").unwrap();
    assert!(world.read().await.unwrap().is_some());
    world.requests();
    world.advance(1_000_000);
    assert!(world.read().await.unwrap().is_some());
    assert_eq!(world.requests(), [get]);
}

/// Over TLS the server is the one that the authorities vouch for, or nobody.
#[tokio::test]
async fn the_server_is_one_of_the_given_authorities() {
    let keys = || BrokerKeys::generate(Timestamp::now()).unwrap();
    let (issuer, other) = (keys(), keys());
    let names = ["127.0.0.1".to_owned()];
    let tls = issuer.server_config(&names, Timestamp::now()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = server();
    let router = axum::Router::new()
        .fallback(answer)
        .with_state(server.clone());
    let tls = RustlsConfig::from_config(tls);
    let serving = axum_server::from_tcp_rustls(listener, tls).unwrap();
    tokio::spawn(serving.serve(router.into_make_service()));
    for (ca, reached) in [
        (Some(&issuer.ca), true),
        (Some(&other.ca), false),
        (None, false),
    ] {
        let ca = ca.map(|ca| format!(r#", "ca": {}"#, json!(ca)));
        let address = format!(r#""address": "{url}"{}"#, ca.unwrap_or_default());
        let world = open(server.clone(), &address, APP_ROLE, r#""kv": {}"#);
        match world.read().await {
            Ok(stored) => assert!(reached && stored.is_some()),
            Err(error) => {
                assert!(
                    !reached && error.contains("cannot reach the server"),
                    "{error}"
                );
            }
        }
    }
}

#[tokio::test]
async fn transit_opens_what_the_store_keeps() {
    let world = world(APP_ROLE, r#""kv": {}, "transit": {"key": "broker"}"#).await;
    let path = fixtures::resource_path();
    let sealed = json!({ "greeting": "vault:v1:c2VhbGVk" });
    world.answer(DATA, version(&sealed, &simulated()));
    let answer = json!({ "data": { "plaintext": "aGVsbG8=" } });
    world.answer("/v1/transit/decrypt/broker", answer);
    let value = world.read().await.unwrap().unwrap().value.unwrap();
    assert_eq!(value.as_slice(), b"vault:v1:c2VhbGVk");
    let opened = world.store.open(&path, value).await.unwrap();
    assert_eq!(opened.as_slice(), b"hello");
    let body = world.server.lock().unwrap().bodies.last().unwrap().clone();
    assert_eq!(
        body,
        json!({
            "ciphertext": "vault:v1:c2VhbGVk",
            "associated_data": BASE64_STANDARD.encode("shop/web/greeting"),
        })
    );
    let open = async |value: &[u8]| {
        let opened = world
            .store
            .open(&path, Zeroizing::new(value.to_vec()))
            .await;
        Chain(&opened.unwrap_err()).to_string()
    };
    // What is no ciphertext is not released as it is.
    let error = open(b"hello").await;
    assert!(error.contains("is no ciphertext"), "{error}");
    // As the server answers to a ciphertext of another resource.
    world.server.lock().unwrap().status = Some(400);
    let error = open(b"vault:v1:b3RoZXI=").await;
    assert!(error.contains("refused transit/decrypt/broker"), "{error}");
    {
        let mut server = world.server.lock().unwrap();
        server.status = None;
        server.answers.remove("/v1/transit/decrypt/broker");
    }
    let error = open(b"vault:v1:c2VhbGVk").await;
    assert!(error.contains("answered 404"), "{error}");
}

#[tokio::test]
async fn a_ciphertext_may_be_bound_to_nothing() {
    let store = r#""kv": {}, "transit": {"key": "broker", "bind": "None"}"#;
    let world = world(APP_ROLE, store).await;
    let answer = json!({ "data": { "plaintext": "aGVsbG8=" } });
    world.answer("/v1/transit/decrypt/broker", answer);
    let value = Zeroizing::new(b"vault:v1:c2VhbGVk\n".to_vec());
    let path = fixtures::resource_path();
    assert!(world.store.open(&path, value).await.is_ok());
    let body = world.server.lock().unwrap().bodies.last().unwrap().clone();
    assert_eq!(body, json!({ "ciphertext": "vault:v1:c2VhbGVk" }));
}

#[test]
fn what_is_wrong_in_a_configuration_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secrets.yaml");
    let vault = |address: &str, auth: &str| {
        format!(r#"{{"kv": {{}}, "vault": {{"address": "{address}", "auth": {auth}}}}}"#)
    };
    let rows = [
        (vault("https://vault.example:8200", APP_ROLE), None),
        (vault("http://127.0.0.1:8100", APP_ROLE), None),
        (vault("http://[::1]:8100", APP_ROLE), None),
        (
            vault("http://vault.example", APP_ROLE),
            Some("secrets.vault.address: is not https"),
        ),
        (
            vault("http://127.0.0.1.example", APP_ROLE),
            Some("secrets.vault.address: is not https"),
        ),
        (
            vault("vault", APP_ROLE),
            Some("secrets.vault.address: is not a URL"),
        ),
        (
            vault("https://vault.example", "{}"),
            Some("secrets.vault.auth: is not one way to log in"),
        ),
        (
            vault("https://vault.example", r#"{"password": {}}"#),
            Some("unknown field `password`"),
        ),
        (
            r#"{"kv": {}}"#.to_owned(),
            Some("secrets.vault: is missing"),
        ),
        (
            r#"{"kv": {}, "files": {"directory": "x"}}"#.to_owned(),
            Some("secrets: names several stores"),
        ),
        (
            vault("https://vault.example", APP_ROLE).replace("\"kv\"", "\"kubernetes\""),
            Some("secrets.vault: is used by nothing"),
        ),
    ];
    for (text, words) in rows {
        fs::write(&path, &text).unwrap();
        let loaded = SecretsConfig::load(&path);
        match (loaded, words) {
            (Ok(_), None) => {}
            (Err(error), Some(words)) => {
                let error = Chain(&error).to_string();
                assert!(error.contains(words), "{text}: {error}");
            }
            (loaded, _) => panic!("{text}: {loaded:?}"),
        }
    }
    let outside = SecretsConfig::kubernetes().open(None, Arc::new(fixtures::now));
    let error = outside.err().unwrap().to_string();
    assert!(error.contains("is for a broker in a cluster"), "{error}");
}
