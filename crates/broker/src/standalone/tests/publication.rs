//! A broker without a cluster and a cluster that gets its records.

use std::collections::VecDeque;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::*;

/// A write that the API server was asked for.
struct Write {
    path: String,
    query: String,
    token: String,
    body: Value,
}

/// An API server that takes whatever it is given, unless told to fail.
#[derive(Default)]
struct ApiServer {
    writes: Vec<Write>,
    failures: VecDeque<u16>,
}

type Shared = Arc<Mutex<ApiServer>>;

async fn answer(
    State(server): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut server = server.lock().unwrap();
    if let Some(code) = server.failures.pop_front() {
        let status = json!({ "kind": "Status", "status": "Failure", "code": code });
        let code = StatusCode::from_u16(code).unwrap();
        return (code, axum::Json(status)).into_response();
    }
    assert_eq!(method, Method::PATCH, "it may do nothing else: {uri}");
    assert_eq!(headers["content-type"], "application/apply-patch+yaml");
    let body: Value = serde_json::from_slice(&body).unwrap();
    server.writes.push(Write {
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        token: headers["authorization"].to_str().unwrap().to_owned(),
        body,
    });
    // What comes back is read as a record, and nothing of it is used.
    let mut record = serde_json::to_value(fixtures::record()).unwrap();
    record["metadata"]["resourceVersion"] = "77".into();
    axum::Json(record).into_response()
}

/// A broker that publishes into the returned API server.
async fn world_in_a_cluster() -> (World, Shared) {
    // The API client's TLS; another test may have installed the same provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let server = Shared::default();
    let routes = Router::new().fallback(answer).with_state(server.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let config = format!(
        "{FILES}\n\
         [records.kubernetes]\n\
         server = \"http://{address}\"\n\
         tokenFile = \"publisher.token\"\n\
         caFile = \"cluster.crt\"\n"
    );
    let directory = directory(&config);
    let token = directory.path().join("publisher.token");
    fs::write(&token, "t0ken").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let authority = BrokerKeys::generate(Timestamp::now()).unwrap().ca;
    fs::write(directory.path().join("cluster.crt"), authority).unwrap();
    (start(directory), server)
}

impl World {
    /// Waits until the cluster has every record as it is.
    async fn published(&self) {
        let everything = async {
            while self.broker.inventory().records().unpublished() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let deadline = Duration::from_secs(30);
        tokio::time::timeout(deadline, everything).await.unwrap();
    }
}

#[tokio::test]
async fn the_cluster_gets_the_record_of_its_pod() {
    let (world, server) = world_in_a_cluster().await;
    world.attest().await.unwrap();
    world.published().await;
    let path = format!(
        "/apis/assay.dev/v1alpha1/namespaces/shop/attestationrecords/{}",
        fixtures::POD
    );
    {
        let server = server.lock().unwrap();
        let [base, status] = server.writes.as_slice() else {
            panic!("{} writes", server.writes.len())
        };
        assert_eq!(base.path, path);
        assert_eq!(status.path, format!("{path}/status"));
        for write in [base, status] {
            assert_eq!(write.token, "Bearer t0ken");
            assert!(write.query.contains("fieldManager=assay-broker"));
            // Versions of the directory mean nothing there.
            assert_eq!(write.body["metadata"]["resourceVersion"], Value::Null);
            assert_eq!(write.body["metadata"]["generation"], Value::Null);
        }
        let owner = &base.body["metadata"]["ownerReferences"][0];
        assert_eq!(owner["kind"], "Pod");
        assert_eq!(owner["uid"], fixtures::POD_UID);
        assert_eq!(base.body["spec"]["podRef"]["uid"], fixtures::POD_UID);
        assert_eq!(base.body["status"], Value::Null);
        let written = serde_json::to_value(world.record()).unwrap();
        assert_eq!(status.body["status"], written);
    }
    // A rejection gets there, too, and takes the pod out of its Services.
    world.advance(SignedDuration::from_secs(1));
    assert_refused(
        world.attest_as(9, &world.instance()).await,
        "MeasurementUnknown",
    );
    world.published().await;
    let verdict = server.lock().unwrap().writes.last().unwrap().body["status"]["verdict"].clone();
    assert_eq!(verdict, "Rejected");
    // Who sees nothing new writes nothing.
    let writes = server.lock().unwrap().writes.len();
    world.broker.inventory().objects().reload();
    world.published().await;
    assert_eq!(server.lock().unwrap().writes.len(), writes);
}

#[tokio::test]
async fn a_cluster_that_refuses_holds_up_no_release() {
    let (world, server) = world_in_a_cluster().await;
    for failures in [[503, 500], [403, 422]] {
        server.lock().unwrap().failures.extend(failures);
        let before = server.lock().unwrap().writes.len();
        let session = world.attest().await.unwrap();
        assert!(world.secret(&session).await.is_ok());
        let text = world.metrics().await;
        assert!(
            text.contains("assay_broker_records_unpublished 1\n"),
            "{text}"
        );
        world.published().await;
        assert!(server.lock().unwrap().writes.len() >= before + 2);
        world.advance(SignedDuration::from_secs(1));
    }
    let text = world.metrics().await;
    for line in [
        "assay_broker_record_publications_total{outcome=\"Failed\"} 4",
        "assay_broker_records_unpublished 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn what_was_not_published_is_when_the_broker_starts_again() {
    let (world, server) = world_in_a_cluster().await;
    server.lock().unwrap().failures.extend([503; 64]);
    world.attest().await.unwrap();
    // None of the first broker's attempts counts.
    server.lock().unwrap().failures.extend([503; 64]);
    let world = world.restart().await;
    assert!(server.lock().unwrap().writes.is_empty());
    server.lock().unwrap().failures.clear();
    world.published().await;
    assert_eq!(server.lock().unwrap().writes.len(), 2);

    // A record that says nothing any more is not.
    world.advance(SignedDuration::from_hours(1));
    let world = world.restart().await;
    world.published().await;
    assert_eq!(server.lock().unwrap().writes.len(), 2);
}
