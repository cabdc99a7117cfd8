//! A guest of a simulated processor and a broker that has no cluster: over TLS,
//! from the challenge to the secret.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;

use assay_crds::v1alpha1::attestation_record::{CheckResult, Verdict};
use assay_crds::v1alpha1::measured_image::LifecycleState;
use assay_protocol::audit::verify_log;
use assay_protocol::guest::{AttestedSession, GuestSession, HttpRequest, HttpResponse};
use assay_tee::InstanceData;
use jiff::SignedDuration;
use serde::Serialize;

use super::*;
use crate::fixtures;
use crate::server::tests::{SERVER_NAME, client, exchange};

mod publication;
mod svsm;
mod volumes;

/// What the key holder has on disk, and the broker that runs by it.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) broker: Standalone,
    clock: Arc<Mutex<Timestamp>>,
}

fn write(path: &Path, object: &impl Serialize) {
    fs::write(path, serde_saphyr::to_string(object).unwrap()).unwrap();
}

/// A directory with everything that a broker needs.
pub(crate) fn directory(secrets: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir_all(path("objects")).unwrap();
    write(&path("objects/deployment.yaml"), &fixtures::deployment());
    write(&path("objects/image.yaml"), &fixtures::image());
    write(&path("objects/policy.yaml"), &fixtures::policy());
    fs::create_dir_all(path("secrets/shop/web")).unwrap();
    let value = path("secrets/shop/web/greeting");
    fs::write(&value, fixtures::SECRET_VALUE).unwrap();
    fs::set_permissions(&value, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path("secrets/shop/web/greeting.class"), "simulated\n").unwrap();
    fs::write(path("ark.der"), &fixtures::endorsement().chain().ark).unwrap();
    let config = format!(
        "listen = \"127.0.0.1:0\"\n\
         stateDirectory = \"state\"\n\
         simulatedRoot = \"ark.der\"\n\
         tls.names = [{SERVER_NAME:?}]\n\
         inventory.directory = \"objects\"\n\
         inventory.reloadInterval = \"1h\"\n\
         metricsListen = \"127.0.0.1:0\"\n\
         {secrets}\n"
    );
    fs::write(path("broker.toml"), config).unwrap();
    directory
}

const FILES: &str = "secrets.files.directory = \"secrets\"";

pub(crate) fn start(directory: tempfile::TempDir) -> World {
    let clock = Arc::new(Mutex::new(Timestamp::now()));
    let reading = clock.clone();
    let config = Config::load(&directory.path().join("broker.toml")).unwrap();
    Standalone::check(&config).unwrap();
    let now: Clock = Arc::new(move || *reading.lock().unwrap());
    let broker = Standalone::start_at(&config, now).unwrap();
    assert_eq!(Standalone::ca(&config).unwrap(), broker.ca);
    World {
        directory,
        broker,
        clock,
    }
}

fn world() -> World {
    start(directory(FILES))
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn advance(&self, by: SignedDuration) {
        *self.clock.lock().unwrap() += by;
    }

    fn instance(&self) -> InstanceData {
        let mut instance = fixtures::instance();
        instance.verifier.ca.clone_from(&self.broker.ca);
        instance
    }

    async fn send(&self, request: HttpRequest) -> HttpResponse {
        let (address, client) = (self.broker.address, client(&self.broker.ca));
        tokio::task::spawn_blocking(move || exchange(address, client, &request))
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> String {
        let request = HttpRequest {
            method: "GET",
            path: path.to_owned(),
            headers: vec![],
            body: vec![],
        };
        String::from_utf8(self.send(request).await.body).unwrap()
    }

    /// A guest whose first page is filled with `fill` attests.
    pub(crate) async fn attest_as(
        &self,
        fill: u8,
        instance: &InstanceData,
    ) -> Result<AttestedSession, String> {
        let session = GuestSession::new().unwrap();
        let response = self.send(session.auth_request().unwrap()).await;
        let session = session.on_challenge(&response).unwrap();
        let guest = fixtures::launch(fill, instance);
        let evidence = fixtures::evidence(&guest, session.report_data().unwrap());
        let document = String::from_utf8(instance.encode().unwrap()).unwrap();
        let request = session.attest_request(evidence, &document).unwrap();
        let token = session.on_token(&self.send(request).await);
        token.map_err(|error| error.to_string())
    }

    pub(crate) async fn attest(&self) -> Result<AttestedSession, String> {
        self.attest_as(1, &self.instance()).await
    }

    pub(crate) async fn resource(
        &self,
        session: &AttestedSession,
        path: &str,
    ) -> Result<Vec<u8>, String> {
        let request = session.resource_request(path).unwrap();
        let value = session.on_resource(&self.send(request).await);
        value
            .map(|value| value.to_vec())
            .map_err(|error| error.to_string())
    }

    pub(crate) async fn secret(&self, session: &AttestedSession) -> Result<Vec<u8>, String> {
        self.resource(session, "shop/web/greeting").await
    }

    async fn metrics(&self) -> String {
        let address = self.broker.metrics_address.unwrap();
        let response = reqwest::get(format!("http://{address}/metrics")).await;
        response.unwrap().text().await.unwrap()
    }

    async fn restart(mut self) -> World {
        self.broker.stopper()();
        self.broker.finished().await.unwrap();
        let World {
            directory, clock, ..
        } = self;
        let now = *clock.lock().unwrap();
        let world = start(directory);
        *world.clock.lock().unwrap() = now;
        world
    }

    fn record_path(&self) -> PathBuf {
        self.path(&format!("state/records/shop/{}.json", fixtures::POD_UID))
    }

    fn record(&self) -> assay_crds::v1alpha1::AttestationRecordStatus {
        let bytes = fs::read(self.record_path()).unwrap();
        let record: assay_crds::v1alpha1::AttestationRecord =
            serde_json::from_slice(&bytes).unwrap();
        record.status.unwrap()
    }
}

pub(crate) fn assert_refused<T>(result: Result<T, String>, reason: &str) {
    let error = result.err().unwrap();
    assert!(error.contains(reason), "{reason}: {error}");
}

#[tokio::test]
async fn a_guest_gets_its_secret_from_a_broker_without_a_cluster() {
    let world = world();
    let session = world.attest().await.unwrap();
    assert_eq!(
        world.secret(&session).await.unwrap(),
        fixtures::SECRET_VALUE
    );
    let status = world.record();
    assert_eq!(status.verdict, Verdict::Accepted);
    let identity = &status.checks[1];
    assert_eq!(identity.name, "InstanceIdentity");
    assert_eq!(identity.result, CheckResult::NotApplicable);
    let log = fs::read(world.path("state/audit.jsonl")).unwrap();
    assert_eq!(verify_log(&log[..]).unwrap().lines, 1);
}

#[tokio::test]
async fn each_refusal_and_its_twin() {
    type Change = fn(&World);
    let rows: [(Change, Change, &str); 6] = [
        (
            |world| fs::remove_file(world.path("secrets/shop/web/greeting.class")).unwrap(),
            |world| {
                fs::write(world.path("secrets/shop/web/greeting.class"), "simulated").unwrap();
            },
            "ReleaseClassMismatch",
        ),
        (
            |world| {
                let mut image = fixtures::image();
                image.spec.lifecycle.state = LifecycleState::Revoked;
                write(&world.path("objects/image.yaml"), &image);
            },
            |world| write(&world.path("objects/image.yaml"), &fixtures::image()),
            "ImageRevoked",
        ),
        (
            |world| {
                let mut policy = fixtures::policy();
                policy.spec.release.clear();
                write(&world.path("objects/policy.yaml"), &policy);
            },
            |world| write(&world.path("objects/policy.yaml"), &fixtures::policy()),
            "PolicyChanged",
        ),
        (
            |world| fs::remove_file(world.path("objects/deployment.yaml")).unwrap(),
            |world| {
                write(
                    &world.path("objects/deployment.yaml"),
                    &fixtures::deployment(),
                );
            },
            "DeploymentMissing",
        ),
        (
            |world| {
                let path = world.path("secrets/shop/web/greeting");
                fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
            },
            |world| {
                let path = world.path("secrets/shop/web/greeting");
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
            },
            "503",
        ),
        (
            |world| fs::rename(world.record_path(), world.path("record")).unwrap(),
            |world| fs::rename(world.path("record"), world.record_path()).unwrap(),
            "RecordMissing",
        ),
    ];
    let world = world();
    let session = world.attest().await.unwrap();
    for (change, mend, reason) in rows {
        change(&world);
        assert_refused(world.secret(&session).await, reason);
        mend(&world);
        assert!(world.secret(&session).await.is_ok(), "{reason}");
    }
    assert_refused(
        world.resource(&session, "shop/db/greeting").await,
        "IdentityMismatch",
    );
    // Every one of them is in the log, but for the request that had no answer.
    let log = fs::read(world.path("state/audit.jsonl")).unwrap();
    assert_eq!(verify_log(&log[..]).unwrap().lines, 12);
}

#[tokio::test]
async fn an_overtaken_or_expired_attestation_opens_nothing() {
    let world = world();
    let first = world.attest().await.unwrap();
    world.advance(SignedDuration::from_secs(1));
    let second = world.attest().await.unwrap();
    assert_refused(world.secret(&first).await, "TokenSuperseded");
    assert!(world.secret(&second).await.is_ok());
    world.advance(SignedDuration::from_mins(6));
    assert_refused(world.secret(&second).await, "TokenVerificationFailed");
}

#[tokio::test]
async fn guests_that_are_none_of_ours_get_nothing() {
    let world = world();
    let tampered = world.attest_as(9, &world.instance()).await;
    assert_refused(tampered, "MeasurementUnknown");
    assert_eq!(world.record().verdict, Verdict::Rejected);

    let mut other = world.instance();
    other.deployment = "db".to_owned();
    assert_refused(world.attest_as(1, &other).await, "DeploymentMissing");
    let mut other = world.instance();
    other.pod.uid = "../../../audit".to_owned();
    assert_refused(world.attest_as(1, &other).await, "PodUidMalformed");
    // Instance data that names another broker is for that one.
    let result = world.attest_as(1, &fixtures::instance()).await;
    assert_refused(result, "VerifierMismatch");
    let records = fs::read_dir(world.path("state/records/shop")).unwrap();
    assert_eq!(records.count(), 1);
    assert!(world.attest().await.is_ok());
}

/// Keys, records and used challenges outlive the process.
#[tokio::test]
async fn a_broker_that_is_started_again_goes_on() {
    let world = world();
    let session = GuestSession::new().unwrap();
    let response = world.send(session.auth_request().unwrap()).await;
    let session = session.on_challenge(&response).unwrap();
    let instance = world.instance();
    let guest = fixtures::launch(1, &instance);
    let evidence = fixtures::evidence(&guest, session.report_data().unwrap());
    let document = String::from_utf8(instance.encode().unwrap()).unwrap();
    let request = session.attest_request(evidence, &document).unwrap();
    let again = || HttpRequest {
        method: request.method,
        path: request.path.clone(),
        headers: request.headers.clone(),
        body: request.body.clone(),
    };
    let session = session.on_token(&world.send(again()).await).unwrap();

    let World {
        directory,
        mut broker,
        clock,
    } = world;
    let config = Config::load(&directory.path().join("broker.toml")).unwrap();
    let locked = Standalone::start(&config);
    assert!(matches!(
        locked,
        Err(StartError::State(StateError::Locked { .. }))
    ));
    let ca = broker.ca.clone();
    broker.stopper()();
    broker.finished().await.unwrap();
    let reading = clock.clone();
    let now: Clock = Arc::new(move || *reading.lock().unwrap());
    let broker = Standalone::start_at(&config, now).unwrap();
    assert_eq!(broker.ca, ca);
    let world = World {
        directory,
        broker,
        clock,
    };
    assert!(world.secret(&session).await.is_ok());
    let replayed = world.send(again()).await;
    assert_eq!(replayed.status, 401);
    let body = String::from_utf8(replayed.body).unwrap();
    assert!(body.contains("InvalidSession"), "{body}");
}

#[tokio::test]
async fn a_deny_list_that_cannot_be_read_is_found_by_the_check() {
    let directory = directory(FILES);
    let path = directory.path().join("denied.json");
    let mut config = Config::load(&directory.path().join("broker.toml")).unwrap();
    config.deny_list = Some(path.clone());
    for (content, says) in [
        (r#"{"chips": "all"}"#, "denyList: is no JSON with chips"),
        (r#"{"chip": []}"#, "unknown field `chip`"),
    ] {
        fs::write(&path, content).unwrap();
        let checked = Standalone::check(&config).unwrap_err();
        let text = Chain(&checked).to_string();
        assert!(text.contains(says), "{text}");
        let started = Standalone::start(&config).err().unwrap();
        assert_eq!(Chain(&started).to_string(), text);
    }
    fs::write(&path, r#"{"providers": ["CN=x"]}"#).unwrap();
    Standalone::check(&config).unwrap();
}

#[tokio::test]
async fn an_invalid_file_is_seen_and_widens_nothing() {
    let world = world();
    assert_eq!(world.get("/readyz").await, "ok");
    let session = world.attest().await.unwrap();
    let policy = world.path("objects/policy.yaml");
    fs::write(&policy, "apiVersion: assay.dev/v1alpha1").unwrap();
    assert!(world.secret(&session).await.is_ok());
    let ready = world.get("/readyz").await;
    assert!(
        ready.contains("1 invalid files of the inventory"),
        "{ready}"
    );
    let health = world.broker.inventory().objects();
    assert_eq!(health.reload_failures(), 1);

    // Who starts with it does not start.
    let config = Config::load(&world.path("broker.toml")).unwrap();
    let error = Standalone::check(&config).unwrap_err();
    let text = Chain(&error).to_string();
    assert!(
        text.contains("policy.yaml") && text.contains("kind is missing"),
        "{text}"
    );
    let World {
        directory, broker, ..
    } = world;
    drop(broker);
    let config = Config {
        state_directory: directory.path().join("other"),
        ..config
    };
    let started = Standalone::start(&config);
    assert!(matches!(started, Err(StartError::Inventory(_))));
}

/// Guests trust the authority that the key holder names.
#[tokio::test]
async fn a_certificate_of_somebody_else_is_served() {
    let directory = directory(FILES);
    let path = directory.path().join("broker.toml");
    let issuer = BrokerKeys::generate(Timestamp::now()).unwrap();
    let (chain, key) = issuer
        .issue(&[SERVER_NAME.to_owned()], Timestamp::now())
        .unwrap();
    fs::write(directory.path().join("tls.crt"), chain.pem()).unwrap();
    fs::write(directory.path().join("ca.crt"), &issuer.ca).unwrap();
    let key_path = directory.path().join("tls.key");
    fs::write(&key_path, key.serialize_pem()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace(
        &format!("tls.names = [{SERVER_NAME:?}]"),
        "tls = { certificate = \"tls.crt\", key = \"tls.key\", ca = \"ca.crt\" }",
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&key_path, fs::Permissions::from_mode(0o644)).unwrap();
    let config = Config::load(&path).unwrap();
    let error = Standalone::start(&config).err().unwrap();
    assert!(matches!(
        error,
        StartError::State(StateError::Permissions { .. })
    ));
    fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600)).unwrap();
    let world = start(directory);
    assert_eq!(world.broker.ca, issuer.ca);
    let session = world.attest().await.unwrap();
    assert!(world.secret(&session).await.is_ok());
}

#[tokio::test]
async fn what_happens_is_counted() {
    let world = world();
    let session = world.attest().await.unwrap();
    world.secret(&session).await.unwrap();
    let refused = world.resource(&session, "shop/web/other").await;
    assert_refused(refused, "NotReleased");
    let _ = world.attest_as(9, &world.instance()).await;
    let mut other = world.instance();
    other.deployment = "db".to_owned();
    let _ = world.attest_as(1, &other).await;
    fs::write(world.path("objects/policy.yaml"), "a: [").unwrap();
    world.broker.inventory().objects().reload();

    let address = world.broker.metrics_address.unwrap();
    let response = reqwest::get(format!("http://{address}/metrics")).await;
    let response = response.unwrap();
    let content_type = response.headers()["content-type"].to_str().unwrap();
    assert!(content_type.starts_with("application/openmetrics-text"));
    let text = response.text().await.unwrap();
    for line in [
        "assay_broker_attestations_total{outcome=\"Accepted\",reason=\"Accepted\",trust_domain=\"Simulated\"} 1",
        "assay_broker_attestations_total{outcome=\"Rejected\",reason=\"MeasurementUnknown\",trust_domain=\"Simulated\"} 1",
        "assay_broker_attestations_total{outcome=\"Unidentified\",reason=\"DeploymentMissing\",trust_domain=\"Unknown\"} 1",
        "assay_broker_releases_total{outcome=\"Released\",reason=\"Released\"} 1",
        "assay_broker_releases_total{outcome=\"Refused\",reason=\"NotReleased\"} 1",
        "assay_broker_request_duration_seconds_count{operation=\"attest\",status=\"2xx\"} 1",
        "assay_broker_request_duration_seconds_count{operation=\"attest\",status=\"4xx\"} 2",
        "assay_broker_records 1",
        "assay_broker_nonces_in_use 2",
        "assay_broker_inventory_invalid_files 1",
        "assay_broker_inventory_reload_failures_total 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    // Guests reach no metrics.
    assert!(!world.get("/metrics").await.contains("assay_broker"));
}

/// Ciphertext on the disk, opened elsewhere, and only for whoever may have it.
#[tokio::test]
async fn a_sealed_value_is_opened_when_it_is_released() {
    let (server, url) = crate::secrets::vault::tests::serve().await;
    let transit = format!(
        "{FILES}\n\
         secrets.transit.key = \"broker\"\n\
         secrets.vault.address = \"{url}\"\n\
         secrets.vault.auth.appRole = {{ roleId = \"broker\", secretIdFile = \"id\" }}"
    );
    let directory = directory(&transit);
    fs::write(directory.path().join("id"), "s3cret").unwrap();
    let sealed = directory.path().join("secrets/shop/web/greeting");
    fs::write(&sealed, "vault:v1:c2VhbGVk\n").unwrap();
    let decrypt = "/v1/transit/decrypt/broker";
    let answer = serde_json::json!({ "data": { "plaintext": "aGVsbG8=" } });
    {
        let mut server = server.lock().unwrap();
        server.answers.insert(decrypt.to_owned(), answer);
    }
    let opened = || {
        let server = server.lock().unwrap();
        let requests = server.requests.iter();
        requests
            .filter(|request| request.ends_with(decrypt))
            .count()
    };
    let world = start(directory);
    let session = world.attest().await.unwrap();
    let mark = world.path("secrets/shop/web/greeting.class");
    fs::remove_file(&mark).unwrap();
    assert_refused(world.secret(&session).await, "ReleaseClassMismatch");
    assert_eq!(opened(), 0);
    fs::write(&mark, "simulated").unwrap();
    assert_eq!(world.secret(&session).await.unwrap(), b"hello");
    assert_eq!(opened(), 1);
    server.lock().unwrap().answers.clear();
    assert_refused(world.secret(&session).await, "503");
    let log = fs::read(world.path("state/audit.jsonl")).unwrap();
    assert_eq!(verify_log(&log[..]).unwrap().lines, 2);
}
