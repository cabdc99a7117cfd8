//! A registry in memory, honest or lying.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use assay_image::oci::{Blob, ImageOptions, Layer, OciImage, media_type};
use assay_image::tarball::{Owner, TarBuilder};
use assay_tee::Sha256Digest;
use axum::Router;
use axum::body::Bytes as Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::*;
use crate::push::explicit_tag;

/// Paths to content, and the uploads that were made.
#[derive(Default)]
struct Store {
    content: HashMap<String, Vec<u8>>,
    uploads: usize,
    /// Paths that were asked for, with the range.
    requests: Vec<(String, Option<String>)>,
    /// Answers with content break off after so many bytes.
    break_after: Option<usize>,
    /// Ranges are not understood.
    no_ranges: bool,
    /// What the next requests are answered with instead.
    faults: VecDeque<Fault>,
    /// Who may come in.
    guard: Option<Guard>,
    /// Manifests, where the registry lists referrers.
    referrers: Option<Vec<(Sha256Digest, Value)>>,
}

#[derive(Clone, Copy)]
struct Fault {
    status: StatusCode,
    retry_after: Option<&'static str>,
}

impl From<StatusCode> for Fault {
    fn from(status: StatusCode) -> Self {
        Self {
            status,
            retry_after: None,
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        match self.retry_after {
            Some(value) => (self.status, [("Retry-After", value)]).into_response(),
            None => self.status.into_response(),
        }
    }
}

/// How a registry lets in `user` with the password `secret`.
#[derive(Clone, Copy)]
enum Guard {
    Basic,
    /// By the token of this number, which grows with every one that is fetched.
    Token(usize),
}

/// `user:secret`.
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

/// Refuses a request, where there is a guard and nothing that it wants.
fn refusal(store: &mut Store, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
    let said = headers.get("authorization");
    let said = said.map(|value| value.to_str().unwrap().to_owned());
    let host = headers["host"].to_str().unwrap();
    let challenge = match store.guard? {
        Guard::Basic if said.as_deref() == Some(BASIC) => return None,
        Guard::Basic => "Basic realm=\"registry\"".to_owned(),
        Guard::Token(number) if uri.path() == "/token" => {
            assert!(
                uri.query()
                    .unwrap()
                    .contains("scope=repository%3Ateam%2Fapp%3Apull")
            );
            if said.as_deref() != Some(BASIC) {
                return Some(StatusCode::UNAUTHORIZED.into_response());
            }
            let number = number + 1;
            store.guard = Some(Guard::Token(number));
            let token = json!({"token": number.to_string(), "expires_in": 300});
            return Some(token.to_string().into_response());
        }
        Guard::Token(number) if said == Some(format!("Bearer {number}")) => return None,
        Guard::Token(_) => format!("Bearer realm=\"http://{host}/token\",service=\"r\""),
    };
    let challenge = [("WWW-Authenticate", challenge)];
    Some((StatusCode::UNAUTHORIZED, challenge).into_response())
}

/// What names `subject`, as distribution-spec 1.1 has it.
fn referrers_index(all: &[(Sha256Digest, Value)], subject: &str) -> String {
    let manifests: Vec<_> = all
        .iter()
        .filter(|(_, document)| document["subject"]["digest"] == subject)
        .map(|(digest, document)| {
            json!({
                "mediaType": media_type::MANIFEST,
                "digest": digest.to_string(),
                "size": 1,
                "artifactType": document["artifactType"],
            })
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": manifests}).to_string()
}

type Shared = Arc<Mutex<Store>>;

async fn handle(
    State(store): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut store = store.lock().unwrap();
    let path = uri.path().to_owned();
    if let Some(refusal) = refusal(&mut store, &uri, &headers) {
        return refusal;
    }
    // Any answer to the question how to authenticate, but a challenge, says that it
    // is not needed.
    if path != "/v2/"
        && let Some(fault) = store.faults.pop_front()
    {
        return fault.into_response();
    }
    if let Some(subject) = path.strip_prefix("/v2/team/app/referrers/") {
        return match store.referrers.as_ref() {
            None => StatusCode::NOT_FOUND.into_response(),
            Some(all) => referrers_index(all, subject).into_response(),
        };
    }
    match method {
        Method::GET | Method::HEAD if path == "/v2/" => StatusCode::OK.into_response(),
        Method::GET | Method::HEAD => {
            let range = headers.get("range");
            let range = range.map(|range| range.to_str().unwrap().to_owned());
            store.requests.push((path.clone(), range.clone()));
            match store.content.get(&path) {
                Some(content) => answer(&store, content, range.as_deref()),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
        Method::POST => (
            StatusCode::ACCEPTED,
            [("Location", "/upload/1?state=x".to_owned())],
        )
            .into_response(),
        Method::PUT => {
            let key = if path == "/upload/1" {
                store.uploads += 1;
                let length: usize = headers["content-length"].to_str().unwrap().parse().unwrap();
                assert_eq!(length, body.len());
                let digest = uri.query().unwrap().rsplit_once("digest=").unwrap().1;
                format!("/v2/team/app/blobs/{}", digest.replace("%3A", ":"))
            } else {
                let document: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(
                    headers["content-type"],
                    document["mediaType"].as_str().unwrap()
                );
                if let Some(all) = &mut store.referrers {
                    all.push((Sha256Digest::of(&body), document));
                }
                let by_digest = format!("/v2/team/app/manifests/{}", Sha256Digest::of(&body));
                store.content.insert(by_digest, body.to_vec());
                path
            };
            store.content.insert(key.clone(), body.to_vec());
            (StatusCode::CREATED, [("Location", key)]).into_response()
        }
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

fn answer(store: &Store, content: &[u8], range: Option<&str>) -> Response {
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let start: usize = start.map_or(0, |start| start.parse().unwrap());
    let (status, content) = match content.get(start..) {
        Some(rest) if range.is_some() && !store.no_ranges => (StatusCode::PARTIAL_CONTENT, rest),
        Some(_) => (StatusCode::OK, content),
        None => return StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
    };
    let Some(end) = store.break_after.filter(|end| *end < content.len()) else {
        return (status, content.to_vec()).into_response();
    };
    let begin = Body::copy_from_slice(&content[..end]);
    let end = async {
        // Until then the server sends nothing.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("broken"))
    };
    let chunks = stream::iter([Ok(begin)]).chain(stream::once(end));
    (status, axum::body::Body::from_stream(chunks)).into_response()
}

async fn serve() -> (String, Registry, Shared) {
    let store = Shared::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let router = Router::new()
        .fallback(handle)
        .with_state(Arc::clone(&store));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let options = RegistryOptions {
        plain_http_hosts: vec![host.clone()],
        ..RegistryOptions::default()
    };
    (host, Registry::new(options).unwrap(), store)
}

fn image() -> OciImage {
    let mut tar = TarBuilder::new();
    tar.file("hello", 0o644, Owner::ROOT, vec![7; 100_000]);
    let layers = [
        Layer::tar(tar.finish()),
        Layer::gzip(&TarBuilder::new().finish()).unwrap(),
    ];
    OciImage::assemble(ImageOptions::default(), &layers).unwrap()
}

#[tokio::test]
async fn what_is_pushed_is_pulled() {
    let (host, registry, store) = serve().await;
    let image = image();
    let reference = registry
        .push(&format!("{host}/team/app:v1"), &image, &NoProgress)
        .await
        .unwrap();
    assert_eq!(
        reference,
        format!("{host}/team/app@{}", image.manifest_digest)
    );
    assert_eq!(store.lock().unwrap().uploads, 3);

    let directory = tempfile::tempdir().unwrap();
    let on_disk = Registry::new(RegistryOptions {
        plain_http_hosts: vec![host.clone()],
        scratch: Some(Scratch::new(directory.path()).unwrap()),
        ..RegistryOptions::default()
    });
    let on_disk = on_disk.unwrap();
    for (registry, reference) in [
        (&registry, reference.clone()),
        (&on_disk, reference),
        (&registry, format!("{host}/team/app:v1")),
    ] {
        let pulled = registry.pull(&reference).await.unwrap();
        assert_eq!(pulled.digest, image.manifest_digest);
        assert_eq!(pulled.manifest_digest, image.manifest_digest);
        assert_eq!(pulled.config, image.config.content().to_bytes());
        let layers: Vec<_> = image
            .layers
            .iter()
            .map(|layer| layer.content().to_bytes())
            .collect();
        assert_eq!(pulled.layers, layers);
    }

    // Without a tag, and with every blob there already.
    let again = registry
        .push(&format!("{host}/team/app"), &image, &NoProgress)
        .await
        .unwrap();
    assert!(again.ends_with(&image.manifest_digest.to_string()));
    assert_eq!(store.lock().unwrap().uploads, 3);
}

#[tokio::test]
async fn an_index_is_followed_to_linux_amd64() {
    let (host, registry, store) = serve().await;
    let image = image();
    registry
        .push(&format!("{host}/team/app:amd64"), &image, &NoProgress)
        .await
        .unwrap();
    let entry = |digest: Sha256Digest, architecture: &str| {
        format!(
            r#"{{"mediaType":"{}","digest":"{digest}","size":1,
                "platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
            media_type::MANIFEST
        )
    };
    let index = |entries: &[String]| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        )
        .into_bytes()
    };
    let arm = entry(Sha256Digest::of(b"arm"), "arm64");
    let both = index(&[arm.clone(), entry(image.manifest_digest, "amd64")]);
    let index_digest = Sha256Digest::of(&both);
    {
        let content = &mut store.lock().unwrap().content;
        content.insert(format!("/v2/team/app/manifests/{index_digest}"), both);
        content.insert("/v2/team/app/manifests/arm".to_owned(), index(&[arm]));
    }
    let pulled = registry
        .pull(&format!("{host}/team/app@{index_digest}"))
        .await
        .unwrap();
    assert_eq!(pulled.digest, index_digest);
    assert_eq!(pulled.manifest_digest, image.manifest_digest);

    let error = registry
        .pull(&format!("{host}/team/app:arm"))
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::NoPlatform { .. }), "{error}");
}

#[tokio::test]
async fn a_lying_registry_is_caught() {
    let (host, registry, store) = serve().await;
    let image = image();
    let reference = registry
        .push(&format!("{host}/team/app:v1"), &image, &NoProgress)
        .await
        .unwrap();
    let layer = format!("/v2/team/app/blobs/{}", image.layers[0].digest());
    let manifest = format!("/v2/team/app/manifests/{}", image.manifest_digest);

    let set = |key: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut store = store.lock().unwrap();
        let content = store.content.get_mut(key).unwrap();
        let before = content.clone();
        change(content);
        before
    };
    let flips: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes[600] ^= 1,
        |bytes| bytes.push(0),
        |bytes| bytes.truncate(1000),
    ];
    for flip in flips {
        let before = set(&layer, &flip);
        registry.pull(&reference).await.unwrap_err();
        set(&layer, &|bytes| bytes.clone_from(&before));
    }
    registry.pull(&reference).await.unwrap();

    set(&manifest, &|bytes| bytes.push(b' '));
    registry.pull(&reference).await.unwrap_err();
}

#[tokio::test]
async fn references_are_checked_before_the_network() {
    let registry = Registry::new(RegistryOptions::default()).unwrap();
    let error = registry.pull("registry.invalid/UPPER").await.unwrap_err();
    assert!(
        matches!(error, RegistryError::ParseReference { .. }),
        "{error}"
    );
    let by_digest = format!("registry.invalid/app@{}", Sha256Digest::of(b""));
    let error = registry
        .push(&by_digest, &image(), &NoProgress)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::PushToDigest { .. }),
        "{error}"
    );
}

#[test]
fn only_a_written_tag_is_a_tag() {
    assert_eq!(explicit_tag("localhost:5000/team/app"), None);
    assert_eq!(explicit_tag("localhost:5000/team/app:v1"), Some("v1"));
    assert_eq!(explicit_tag("app:v1"), Some("v1"));
}

/// Counts what it is told.
#[derive(Default)]
struct Counter {
    expected: std::sync::atomic::AtomicU64,
    here: std::sync::atomic::AtomicU64,
}

impl TransferProgress for Counter {
    fn expect(&self, bytes: u64) {
        self.expected
            .fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.here
            .fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    fn retreat(&self, bytes: u64) {
        self.here
            .fetch_sub(bytes, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Counter {
    fn check(self) {
        assert_eq!(self.expected.into_inner(), self.here.into_inner());
    }
}

struct CachedPull {
    registry: Registry,
    store: Shared,
    cache: BlobCache,
    directory: tempfile::TempDir,
    reference: String,
    image: OciImage,
}

impl CachedPull {
    async fn new() -> Self {
        let (host, registry, store) = serve().await;
        let image = image();
        let reference = registry
            .push(&format!("{host}/team/app"), &image, &NoProgress)
            .await;
        store.lock().unwrap().requests.clear();
        let directory = tempfile::tempdir().unwrap();
        Self {
            registry,
            store,
            cache: BlobCache::open(directory.path()).unwrap(),
            directory,
            reference: reference.unwrap(),
            image,
        }
    }

    async fn pull(&self, counter: &Counter) -> Result<Pulled, RegistryError> {
        let pulled = self
            .registry
            .pull_with(&self.reference, Some(&self.cache), counter);
        pulled.await
    }

    async fn pull_well(&self) {
        let counter = Counter::default();
        let pulled = self.pull(&counter).await.unwrap();
        assert_eq!(pulled.layers[0], self.layer().content().to_bytes());
        assert_eq!(pulled.layers.len(), self.image.layers.len());
        counter.check();
    }

    fn layer(&self) -> &Blob {
        &self.image.layers[0]
    }

    fn file(&self, kind: &str) -> std::path::PathBuf {
        let name = self.layer().digest().to_hex();
        self.directory.path().join(kind).join(name)
    }

    /// Ranges that were asked for of the first layer since the last call.
    fn ranges(&self) -> Vec<Option<String>> {
        let layer = format!("/v2/team/app/blobs/{}", self.layer().digest());
        let requests = std::mem::take(&mut self.store.lock().unwrap().requests);
        let of_layer = requests.into_iter().filter(|(path, _)| *path == layer);
        of_layer.map(|(_, range)| range).collect()
    }
}

fn ranges(starts: &[usize]) -> Vec<Option<String>> {
    let range = |start: &usize| (*start > 0).then(|| format!("bytes={start}-"));
    starts.iter().map(range).collect()
}

#[tokio::test]
async fn what_a_cache_has_needs_no_registry() {
    let test = CachedPull::new().await;
    test.pull_well().await;
    assert_eq!(test.ranges(), ranges(&[0]));
    test.store.lock().unwrap().content.clear();
    test.pull_well().await;
    assert!(test.store.lock().unwrap().requests.is_empty());

    // A cache that was damaged is no source.
    std::fs::write(test.file("blobs/sha256"), b"other").unwrap();
    test.pull(&Counter::default()).await.unwrap_err();
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke_off() {
    let test = CachedPull::new().await;
    test.store.lock().unwrap().break_after = Some(30_000);
    // Four times 30,000 bytes and the header of the archive.
    test.pull_well().await;
    let starts = [0, 30_000, 60_000, 90_000];
    assert_eq!(test.ranges(), ranges(&starts));

    let test = CachedPull::new().await;
    test.store.lock().unwrap().break_after = Some(20_000);
    let error = test.pull(&Counter::default()).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::TransferBlob { .. }),
        "{error}"
    );
    assert_eq!(test.ranges().len(), 5);
    test.store.lock().unwrap().break_after = None;
    test.pull_well().await;
    assert_eq!(test.ranges(), ranges(&[100_000]));
}

#[tokio::test]
async fn what_was_left_of_a_transfer_is_not_believed() {
    let test = CachedPull::new().await;
    let layer = test.layer().content().to_bytes();
    let mut damaged = layer[..50_000].to_vec();
    damaged[7] ^= 1;
    let whole = vec![0; layer.len()];
    let long = vec![0; layer.len() + 1];
    for (left, starts) in [
        (layer[..50_000].to_vec(), &[50_000][..]),
        (damaged, &[50_000, 0]),
        (whole, &[0]),
        (long, &[0]),
    ] {
        let _ = std::fs::remove_file(test.file("blobs/sha256"));
        std::fs::write(test.file("partial"), left).unwrap();
        test.pull_well().await;
        assert_eq!(test.ranges(), ranges(starts));
    }
    // A registry that sends everything from the start is as good.
    test.store.lock().unwrap().no_ranges = true;
    std::fs::remove_file(test.file("blobs/sha256")).unwrap();
    std::fs::write(test.file("partial"), &layer[..50_000]).unwrap();
    test.pull_well().await;
    assert_eq!(test.ranges(), ranges(&[50_000]));
}

#[tokio::test]
async fn a_lying_registry_leaves_nothing_in_a_cache() {
    let test = CachedPull::new().await;
    let layer = format!("/v2/team/app/blobs/{}", test.layer().digest());
    let honest = test.store.lock().unwrap().content[&layer].clone();
    let flips: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes[600] ^= 1,
        |bytes| bytes.push(0),
        |bytes| bytes.truncate(1000),
    ];
    for flip in flips {
        let mut content = honest.clone();
        flip(&mut content);
        test.store
            .lock()
            .unwrap()
            .content
            .insert(layer.clone(), content);
        test.pull(&Counter::default()).await.unwrap_err();
        assert!(!test.file("blobs/sha256").exists());
    }
    test.store.lock().unwrap().content.insert(layer, honest);
    test.pull_well().await;
}

/// Every request of a push and of a pull fails once, one after the other.
#[tokio::test]
async fn what_a_registry_fails_at_for_a_while_is_done_again() {
    let statuses = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    futures::future::join_all(statuses.map(|status| async move {
        let (host, registry, store) = serve().await;
        let image = image();
        let fail = |times| {
            let faults = vec![Fault::from(status); times];
            store.lock().unwrap().faults.extend(faults);
        };
        fail(1);
        let target = format!("{host}/team/app");
        let reference = registry.push(&target, &image, &NoProgress).await.unwrap();
        assert!(store.lock().unwrap().faults.is_empty());
        fail(3);
        let pulled = registry.pull(&reference).await.unwrap();
        assert_eq!(pulled.layers[0], image.layers[0].content().to_bytes());
        assert!(store.lock().unwrap().faults.is_empty());
    }))
    .await;
}

#[tokio::test]
async fn what_a_registry_refuses_is_asked_for_once() {
    let (host, registry, store) = serve().await;
    let image = image();
    let reference = registry
        .push(&format!("{host}/team/app"), &image, &NoProgress)
        .await;
    let reference = reference.unwrap();
    for (status, words) in [
        (StatusCode::UNAUTHORIZED, "was given no credentials"),
        (StatusCode::FORBIDDEN, "403"),
        (StatusCode::NOT_FOUND, "404"),
    ] {
        store.lock().unwrap().faults.push_back(status.into());
        let pulled = registry.pull(&reference).await;
        let error = pulled.err().unwrap();
        assert!(
            matches!(error, RegistryError::FetchManifest { .. }),
            "{error}"
        );
        assert!(!error.is_transient());
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(words), "{cause}");
        assert!(store.lock().unwrap().faults.is_empty());
    }
}

#[tokio::test]
async fn a_registry_that_keeps_failing_is_named_with_its_status() {
    let (host, registry, store) = serve().await;
    let reference = registry
        .push(&format!("{host}/team/app"), &image(), &NoProgress)
        .await;
    let reference = reference.unwrap();
    let always = vec![Fault::from(StatusCode::BAD_GATEWAY); 100];
    store.lock().unwrap().faults.extend(always);
    let error = registry.pull(&reference).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.is_transient() && cause.contains("502"), "{cause}");
}

#[tokio::test]
async fn documents_are_found_by_their_image_in_either_kind_of_registry() {
    for native in [true, false] {
        let (host, registry, store) = serve().await;
        store.lock().unwrap().referrers = native.then(Vec::new);
        let repository = format!("{host}/team/app");
        let image = image();
        registry
            .push(&repository, &image, &NoProgress)
            .await
            .unwrap();
        let subject = Subject {
            repository: &repository,
            manifest: &image.manifest,
        };
        let document = |media_type, content: &'static [u8]| Referrer {
            media_type,
            content: content.into(),
        };
        let statement = document("application/vnd.in-toto+json", b"{\"a\":1}");
        let sbom = document("application/spdx+json", b"{\"b\":1}");
        let mut digests = Vec::new();
        // The second time nothing is new.
        for document in [&statement, &sbom, &statement] {
            digests.push(registry.push_referrer(subject, document).await.unwrap());
        }
        assert_eq!(digests[0], digests[2]);
        for (document, digest) in [(statement, digests[0]), (sbom, digests[1])] {
            let found = registry
                .referrers(&repository, image.manifest_digest, document.media_type)
                .await
                .unwrap();
            assert!(found.contains(&digest), "native: {native}");
            let reference = format!("{repository}@{digest}");
            let pulled = registry.pull(&reference).await.unwrap();
            assert_eq!(pulled.layers, [document.content]);
        }
        let tag = format!(
            "/v2/team/app/manifests/sha256-{}",
            image.manifest_digest.to_hex()
        );
        let index = store.lock().unwrap().content.get(&tag).cloned();
        assert_eq!(index.is_some(), !native);
        if let Some(index) = index {
            let index: Value = serde_json::from_slice(&index).unwrap();
            assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
        }
    }
}

#[tokio::test]
async fn a_transfer_without_a_cache_goes_on_too() {
    let test = CachedPull::new().await;
    test.store.lock().unwrap().break_after = Some(30_000);
    let pulled = test.registry.pull(&test.reference).await.unwrap();
    assert_eq!(pulled.layers[0], test.layer().content().to_bytes());
    assert_eq!(test.ranges(), ranges(&[0, 30_000, 60_000, 90_000]));
}

fn credentials(host: &str, password: &str) -> DockerConfig {
    let config = json!({"auths": {host: {"username": "user", "password": password}}});
    DockerConfig::parse(config.to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn a_private_registry_lets_in_who_has_the_password() {
    for guard in [Guard::Basic, Guard::Token(0)] {
        let (host, nobody, store) = serve().await;
        store.lock().unwrap().guard = Some(guard);
        let owner = nobody.with_credentials(credentials(&host, "secret"));
        let stranger = nobody.with_credentials(credentials(&host, "guessed"));
        let image = image();
        let target = format!("{host}/team/app");
        let reference = owner.push(&target, &image, &NoProgress).await.unwrap();
        owner.pull(&reference).await.unwrap();
        // What one has been granted is not the other's, although both know the host.
        for (registry, sentence) in [
            (&nobody, "was given no credentials"),
            (&stranger, "refuses the credentials that were given"),
        ] {
            let error = registry.pull(&reference).await.unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(error.is_refusal() && cause.contains(sentence), "{cause}");
            assert!(!error.is_transient());
            registry
                .push(&target, &image, &NoProgress)
                .await
                .unwrap_err();
        }
        owner.pull(&reference).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_that_ends_is_replaced() {
    let (host, registry, store) = serve().await;
    store.lock().unwrap().guard = Some(Guard::Token(0));
    let registry = registry.with_credentials(credentials(&host, "secret"));
    let image = image();
    let target = format!("{host}/team/app");
    let reference = registry.push(&target, &image, &NoProgress).await.unwrap();
    registry.pull(&reference).await.unwrap();
    // The one that is known is good for five minutes, and refused now.
    store.lock().unwrap().guard = Some(Guard::Token(100));
    registry.pull(&reference).await.unwrap();
    assert!(matches!(
        store.lock().unwrap().guard,
        Some(Guard::Token(101))
    ));
}

#[tokio::test]
async fn a_registry_that_asks_for_time_gets_it() {
    let (host, registry, store) = serve().await;
    let image = image();
    let target = format!("{host}/team/app");
    let reference = registry.push(&target, &image, &NoProgress).await.unwrap();
    for status in [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::SERVICE_UNAVAILABLE,
    ] {
        store.lock().unwrap().faults.push_back(Fault {
            status,
            retry_after: Some("2"),
        });
        let start = std::time::Instant::now();
        registry.pull(&reference).await.unwrap();
        let waited = start.elapsed();
        assert!(waited >= std::time::Duration::from_secs(2), "{waited:?}");
    }
    // More than one waits here: whoever wants the image is told.
    let hour = Fault {
        status: StatusCode::TOO_MANY_REQUESTS,
        retry_after: Some("3600"),
    };
    store.lock().unwrap().faults.push_back(hour);
    let start = std::time::Instant::now();
    let error = registry.pull(&reference).await.unwrap_err();
    assert!(start.elapsed() < std::time::Duration::from_secs(2));
    assert!(error.is_transient());
    assert_eq!(
        error.retry_after(),
        Some(std::time::Duration::from_hours(1))
    );
    // So too where a blob is asked for.
    let test = CachedPull::new().await;
    let mut faults = vec![Fault::from(StatusCode::INTERNAL_SERVER_ERROR); 2];
    faults.push(hour);
    test.store.lock().unwrap().faults.extend(faults);
    let error = test.pull(&Counter::default()).await.unwrap_err();
    assert!(error.retry_after().is_some(), "{error}");
}

#[tokio::test]
async fn a_push_says_how_far_it_is() {
    let (host, registry, store) = serve().await;
    let image = image();
    let target = format!("{host}/team/app");
    for fault in [None, Some(StatusCode::BAD_GATEWAY)] {
        let counter = Counter::default();
        store.lock().unwrap().content.clear();
        let faults = fault.into_iter().map(Fault::from);
        store.lock().unwrap().faults.extend(faults);
        registry.push(&target, &image, &counter).await.unwrap();
        counter.check();
        // Everything is there already.
        let counter = Counter::default();
        registry.push(&target, &image, &counter).await.unwrap();
        counter.check();
    }
}

/// Without its manifest an image is none.
#[tokio::test]
async fn blobs_alone_are_no_image() {
    let (host, registry, _store) = serve().await;
    let image = image();
    let target = format!("{host}/team/app:v1");
    let blobs = registry.push_blobs(&target, &image, &NoProgress).await;
    blobs.unwrap();
    registry.pull(&target).await.unwrap_err();
    registry.push_manifest(&target, &image).await.unwrap();
    registry.pull(&target).await.unwrap();
}

#[tokio::test]
async fn what_somebody_put_into_a_cache_changes_nothing() {
    use std::os::unix::fs::symlink;
    type Change = fn(&std::path::Path, &std::path::Path);
    let test = CachedPull::new().await;
    let victim = test.directory.path().join("victim");
    std::fs::write(&victim, b"untouched").unwrap();
    let changes: [Change; 3] = [
        |place, _| std::fs::write(place, b"poison").unwrap(),
        |place, victim| symlink(victim, place).unwrap(),
        |place, _| symlink("nowhere", place).unwrap(),
    ];
    for kind in ["blobs/sha256", "partial"] {
        for change in changes {
            let _ = std::fs::remove_file(test.file("blobs/sha256"));
            change(&test.file(kind), &victim);
            test.pull_well().await;
            assert_eq!(std::fs::read(&victim).unwrap(), b"untouched");
        }
    }
}

#[tokio::test]
async fn many_may_pull_through_a_cache_at_once() {
    let test = CachedPull::new().await;
    let pulls = (0..6).map(|_| test.pull_well());
    futures::future::join_all(pulls).await;
    assert_eq!(test.ranges().len(), 1);
}

#[tokio::test]
async fn a_cache_keeps_what_was_used_last() {
    let test = CachedPull::new().await;
    test.pull_well().await;
    let layer = test.layer().size();
    let (old, new) = (
        test.directory.path().join("partial/old"),
        test.directory.path().join("blobs/sha256/new"),
    );
    let past = std::time::SystemTime::UNIX_EPOCH;
    for (path, used) in [(&old, past), (&new, std::time::SystemTime::now())] {
        std::fs::write(path, [0; 5000]).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(used).unwrap();
    }
    let used = std::fs::File::open(test.file("blobs/sha256")).unwrap();
    used.set_modified(past).unwrap();
    // To be read is to be used.
    test.pull_well().await;
    test.cache.trim(layer + 8_000).unwrap();
    assert!(!old.exists() && test.file("blobs/sha256").exists());
    test.cache.trim(0).unwrap();
    assert!(!new.exists() && !test.file("blobs/sha256").exists());
    test.pull_well().await;
}

#[test]
fn a_directory_that_takes_no_files_is_no_cache() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = BlobCache::open(&file).unwrap_err();
    assert!(error.to_string().contains("file/blobs"), "{error}");
}
