//! The guest's session machine against the broker's operations, in memory, with
//! real evidence of a simulated processor.

use std::sync::Mutex;

use assay_crds::v1alpha1::attestation_record::Verdict;
use assay_crds::v1alpha1::confidential_deployment::SecretKeyReference;
use assay_crds::v1alpha1::measured_image::{DigestState, LifecycleState};
use assay_crds::v1alpha1::{MeasuredImage, NodeTrust};
use assay_protocol::audit::verify_log;
use assay_protocol::broker::BoundedNonceCache;
use assay_protocol::guest::{AttestedSession, GuestSession, HttpRequest, HttpResponse};
use assay_protocol::messages::TokenResponse;
use futures::future::{BoxFuture, FutureExt as _, join, ready};
use jiff::{SignedDuration, ToSpan as _};
use k8s_openapi::api::core::v1::Secret;
use serde::Serialize;

use super::*;
use crate::fixtures;
use crate::identity::Witness;
use crate::release::{ReleaseObserved, ResourcePath};
use crate::secrets::kubernetes::stored;
use crate::secrets::{Location, SecretStoreError, StoredSecret};
use crate::token::InstanceClaims;

mod collateral;
mod interleavings;
mod svsm;
mod volumes;

const KBS: Profile = Profile::Kbs;

/// A cluster of one pod. Clones share its objects, as replicas do.
#[derive(Clone)]
pub(crate) struct FakeCluster(pub(crate) Arc<Mutex<World>>);

/// The cluster's objects.
pub(crate) struct World {
    pub(crate) observed: Observed,
    /// Images beside the observed one.
    pub(crate) other_images: Vec<Arc<MeasuredImage>>,
    pub(crate) secret: Option<Secret>,
    pub(crate) notices: Vec<Notice>,
    /// Reads of Secrets.
    pub(crate) secret_reads: usize,
    /// Writes that another replica overtakes.
    conflicts: usize,
    /// What is known of the node, and how often it was written.
    pub(crate) node_trust: Option<Arc<NodeTrust>>,
    pub(crate) node_trust_writes: usize,
}

impl FakeCluster {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(World {
            observed: fixtures::observed(),
            other_images: Vec::new(),
            secret: Some(fixtures::secret()),
            notices: Vec::new(),
            secret_reads: 0,
            conflicts: 0,
            node_trust: None,
            node_trust_writes: 0,
        })))
    }

    fn record(&self) -> Option<AttestationRecord> {
        self.0.lock().unwrap().observed.record.clone()
    }
}

impl Inventory for FakeCluster {
    /// Whoever else is at work goes on once the objects are read.
    async fn observe(&self, _: &InstanceData) -> Result<Observed, InventoryError> {
        let observed = self.0.lock().unwrap().observed.clone();
        tokio::task::yield_now().await;
        Ok(observed)
    }

    async fn observe_release(&self, _: &InstanceClaims) -> Result<ReleaseObserved, InventoryError> {
        let observed = self.0.lock().unwrap().observed.clone();
        Ok(ReleaseObserved {
            record: observed.record,
            deployment: observed.deployment.map(Arc::unwrap_or_clone),
            image: observed.image.map(Arc::unwrap_or_clone),
            policy: observed.policy.map(Arc::unwrap_or_clone),
        })
    }

    async fn read_record(
        &self,
        _: &str,
        _: &PodReference,
    ) -> Result<Option<AttestationRecord>, InventoryError> {
        Ok(self.record())
    }

    fn images(&self, _: &str) -> Vec<Arc<MeasuredImage>> {
        let world = self.0.lock().unwrap();
        let image = world.observed.image.iter().cloned();
        image.chain(world.other_images.iter().cloned()).collect()
    }

    async fn write_record(
        &self,
        record: &AttestationRecord,
        existing: Option<&AttestationRecord>,
    ) -> Result<(), InventoryError> {
        let mut world = self.0.lock().unwrap();
        if world.conflicts > 0 {
            world.conflicts -= 1;
            return Err(InventoryError::Conflict);
        }
        if world.observed.record.as_ref() != existing {
            return Err(InventoryError::Conflict);
        }
        let mut record = record.clone();
        record.metadata.generation = Some(existing.map_or(1, |existing| {
            let generation = existing.metadata.generation.unwrap();
            generation + i64::from(existing.spec != record.spec)
        }));
        world.observed.record = Some(record);
        Ok(())
    }

    fn node_trust(&self, node: &str) -> Option<Arc<NodeTrust>> {
        let trust = self.0.lock().unwrap().node_trust.clone();
        trust.filter(|trust| trust.spec.node_name == node)
    }

    async fn write_node_trust(&self, trust: &NodeTrust) -> Result<(), InventoryError> {
        let mut world = self.0.lock().unwrap();
        world.node_trust = Some(Arc::new(trust.clone()));
        world.node_trust_writes += 1;
        Ok(())
    }

    async fn notify(&self, _: &str, _: &PodReference, notice: Notice) {
        self.0.lock().unwrap().notices.push(notice);
    }
}

impl SecretStore for FakeCluster {
    fn read<'a>(
        &'a self,
        _: &'a ResourcePath,
        reference: &'a SecretKeyReference,
    ) -> BoxFuture<'a, Result<Option<StoredSecret>, SecretStoreError>> {
        let mut world = self.0.lock().unwrap();
        world.secret_reads += 1;
        let secret = world.secret.clone();
        ready(Ok(secret.map(|secret| stored(secret, &reference.key)))).boxed()
    }

    fn locate(&self, path: &ResourcePath, reference: &SecretKeyReference) -> Location {
        crate::secrets::kubernetes::locate(path, reference)
    }
}

/// A replica, and the clock that tests move.
struct Replica {
    service: Service<FakeCluster>,
    cluster: FakeCluster,
    clock: Arc<Mutex<Timestamp>>,
}

pub(crate) fn parts(cluster: FakeCluster, clock: Clock) -> ServiceParts<FakeCluster> {
    ServiceParts {
        secrets: Arc::new(cluster.clone()),
        inventory: cluster,
        verifier: fixtures::verifier(),
        nonces: NonceIssuer::new(&[7; 32]),
        used_nonces: Box::new(BoundedNonceCache::new(64)),
        tokens: fixtures::token_key(),
        collateral: None,
        audit: None,
        volumes: None,
        metrics: Arc::default(),
        clock,
    }
}

impl Replica {
    fn new(cluster: &FakeCluster) -> Self {
        let clock = Arc::new(Mutex::new(fixtures::now()));
        let reading = clock.clone();
        let parts = parts(cluster.clone(), Arc::new(move || *reading.lock().unwrap()));
        Self {
            service: Service::new(parts),
            cluster: cluster.clone(),
            clock,
        }
    }

    fn advance(&self, by: SignedDuration) {
        *self.clock.lock().unwrap() += by;
    }

    /// Sends one of the guest's requests.
    async fn send(&self, request: &HttpRequest) -> HttpResponse {
        let header = |name: &str| {
            request
                .headers
                .iter()
                .find(|(header, _)| *header == name)
                .map(|(_, value)| value.as_str())
        };
        let session = header("cookie")
            .and_then(|cookie| cookie.split_once('='))
            .map(|(_, id)| id);
        match request.path.as_str() {
            "/kbs/v0/auth" => match self.service.authenticate(KBS, &request.body) {
                Ok((session, challenge)) => fixtures::response(&session, &challenge),
                Err(error) => refused(&error),
            },
            "/kbs/v0/attest" => match Box::pin(self.service.attest(session, &request.body)).await {
                Ok(token) => fixtures::response("", &TokenResponse { token }),
                Err(error) => refused(&error),
            },
            path => {
                let names: Vec<&str> = path
                    .strip_prefix("/kbs/v0/resource/")
                    .unwrap()
                    .split('/')
                    .collect();
                let [namespace, deployment, name] = names[..] else {
                    panic!("{path}")
                };
                let path = ResourcePath {
                    namespace: namespace.to_owned(),
                    deployment: deployment.to_owned(),
                    name: name.to_owned(),
                };
                let token = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
                match Box::pin(self.service.resource(token, &path)).await {
                    Ok(jwe) => fixtures::response("", &jwe),
                    Err(error) => refused(&error),
                }
            }
        }
    }

    /// A guest whose first page is `page` asks for a token.
    async fn attest(&self, page: u8) -> Result<AttestedSession, String> {
        let (session, request) = self.attest_request(page).await;
        session
            .on_token(&self.send(&request).await)
            .map_err(|error| error.to_string())
    }

    async fn attest_request(
        &self,
        page: u8,
    ) -> (assay_protocol::guest::ChallengedSession, HttpRequest) {
        let instance = fixtures::instance();
        let guest = fixtures::launch(page, &instance);
        self.attest_request_of(&guest, &instance).await
    }

    async fn attest_request_of(
        &self,
        guest: &assay_psp_sim::Guest,
        instance: &InstanceData,
    ) -> (assay_protocol::guest::ChallengedSession, HttpRequest) {
        let session = GuestSession::new().unwrap();
        let response = self.send(&session.auth_request().unwrap()).await;
        let session = session.on_challenge(&response).unwrap();
        let evidence = fixtures::evidence(guest, session.report_data().unwrap());
        let document = String::from_utf8(instance.encode().unwrap()).unwrap();
        let request = session.attest_request(evidence, &document).unwrap();
        (session, request)
    }

    async fn secret(&self, session: &AttestedSession) -> Result<Vec<u8>, String> {
        self.resource(session, &fixtures::resource_path().to_string())
            .await
    }

    async fn resource(&self, session: &AttestedSession, path: &str) -> Result<Vec<u8>, String> {
        let response = self.send(&session.resource_request(path).unwrap()).await;
        session
            .on_resource(&response)
            .map(|value| value.to_vec())
            .map_err(|error| error.to_string())
    }
}

fn refused(refusal: &Refusal) -> HttpResponse {
    fn body<T: Serialize>(value: &T) -> Vec<u8> {
        serde_json::to_vec(value).unwrap()
    }
    HttpResponse {
        status: refusal.status(),
        headers: vec![],
        body: body(&refusal.information()),
    }
}

fn assert_refused<T>(result: Result<T, String>, status: u16, kind: &str, detail: &str) {
    let error = result.err().unwrap();
    assert!(error.contains(&status.to_string()), "{error}");
    assert!(error.contains(kind), "{error}");
    assert!(error.contains(detail), "{error}");
}

#[tokio::test]
async fn an_attested_guest_gets_its_secret() {
    let replica = Replica::new(&FakeCluster::new());
    let session = replica.attest(1).await.unwrap();
    assert_eq!(
        replica.secret(&session).await.unwrap(),
        fixtures::SECRET_VALUE
    );
    let status = replica.cluster.record().unwrap().status.unwrap();
    assert_eq!(status.verdict, Verdict::Accepted);
    let notices = replica.cluster.0.lock().unwrap().notices.clone();
    assert_eq!(
        notices,
        [Notice::SecretReleased {
            path: "shop/web/greeting".to_owned()
        }]
    );
}

#[tokio::test]
async fn a_tampered_guest_gets_a_record_and_nothing_else() {
    let replica = Replica::new(&FakeCluster::new());
    assert_refused(
        replica.attest(9).await,
        401,
        "AttestationFailed",
        "MeasurementUnknown",
    );
    let status = replica.cluster.record().unwrap().status.unwrap();
    assert_eq!(status.verdict, Verdict::Rejected);
    assert_eq!(status.reason, "MeasurementUnknown");
    assert!(status.diagnosis.is_some());
    let world = replica.cluster.0.lock().unwrap();
    assert_eq!(world.secret_reads, 0);
    let reason = "MeasurementUnknown".to_owned();
    assert_eq!(world.notices, [Notice::AttestationRejected { reason }]);
}

/// The cause is in the record, and changes nothing about the verdict.
#[tokio::test]
async fn a_rejected_guest_is_explained() {
    let cluster = FakeCluster::new();
    {
        let mut world = cluster.0.lock().unwrap();
        let image = fixtures::measured_image(fixtures::IMAGE, 1);
        world.observed.image = Some(Arc::new(image));
        let other = fixtures::measured_image("api-1", 2);
        world.other_images = vec![Arc::new(other)];
    }
    let replica = Replica::new(&cluster);
    for (fill, vcpus, message) in [
        (1, 3, "equals this image with 3 vCPUs instead of 1"),
        // Even what should be accepted is not, as long as no row says so.
        (1, 1, "equals what was expected, but image web-1 does not"),
        (2, 1, "equals this image with the firmware of api-1"),
    ] {
        let instance = fixtures::instance();
        let guest = fixtures::launch_measured(fill, vcpus, &instance);
        let (_, request) = replica.attest_request_of(&guest, &instance).await;
        assert_eq!(replica.send(&request).await.status, 401);
        let status = cluster.record().unwrap().status.unwrap();
        assert_eq!(status.verdict, Verdict::Rejected);
        assert_eq!(status.reason, "MeasurementUnknown");
        let diagnosis = status.diagnosis.unwrap();
        assert!(diagnosis.message.starts_with(message), "{diagnosis:?}");
        let condition = &status.conditions[0];
        assert_eq!(condition.status, "False");
        let text = format!("MeasurementUnknown: {}", diagnosis.message);
        assert_eq!(condition.message, text);
    }
}

#[tokio::test]
async fn a_replayed_submission_is_refused() {
    let cluster = FakeCluster::new();
    let replica = Replica::new(&cluster);
    let (_, request) = replica.attest_request(1).await;
    assert_eq!(replica.send(&request).await.status, 200);
    let before = cluster.record();
    let again = replica.send(&request).await;
    assert_eq!(again.status, 401);
    assert!(
        String::from_utf8(again.body)
            .unwrap()
            .contains("InvalidSession")
    );
    assert_eq!(cluster.record(), before);
}

/// The nonce cache is each replica's own; the record is everyone's.
#[tokio::test]
async fn a_submission_replayed_to_another_replica_is_refused_by_the_record() {
    let cluster = FakeCluster::new();
    let (first, second) = (Replica::new(&cluster), Replica::new(&cluster));
    let (_, request) = first.attest_request(1).await;
    assert_eq!(first.send(&request).await.status, 200);
    let before = cluster.record();
    // In the second of issue, later, and where the clock is behind.
    for seconds in [0, 1, -3] {
        second.advance(SignedDuration::from_secs(seconds));
        let again = second.send(&request).await;
        assert_eq!(again.status, 401);
        let body = String::from_utf8(again.body).unwrap();
        assert!(body.contains("InvalidSession"), "{body}");
        assert_eq!(cluster.record(), before);
    }
}

/// Both replicas see the record before either writes it.
#[tokio::test]
async fn of_two_submissions_of_a_nonce_at_once_one_gets_a_token() {
    for page in [1, 9] {
        let cluster = FakeCluster::new();
        let (first, second) = (Replica::new(&cluster), Replica::new(&cluster));
        let (_, request) = first.attest_request(page).await;
        let (one, two) = join(first.send(&request), second.send(&request)).await;
        let mut statuses = [one.status, two.status];
        statuses.sort_unstable();
        let expected = if page == 1 { [200, 401] } else { [401, 401] };
        assert_eq!(statuses, expected);
        let status = cluster.record().unwrap().status.unwrap();
        assert_eq!(status.history, [], "one of them is recorded");
    }
}

/// An acceptance that is written meanwhile ends the sessions before it.
#[tokio::test]
async fn a_session_that_is_overtaken_gets_no_token() {
    let cluster = FakeCluster::new();
    let (first, second) = (Replica::new(&cluster), Replica::new(&cluster));
    let (_, old) = first.attest_request(1).await;
    first.advance(SignedDuration::from_secs(1));
    second.advance(SignedDuration::from_secs(1));
    let (_, new) = second.attest_request(1).await;
    let (new, old) = join(second.send(&new), first.send(&old)).await;
    assert_eq!(new.status, 200);
    let body = String::from_utf8(old.body).unwrap();
    assert!(body.contains("AppraisalSuperseded"), "{body}");
}

#[tokio::test]
async fn a_nonce_serves_its_own_session_and_time_only() {
    let replica = Replica::new(&FakeCluster::new());
    let (_, mut request) = replica.attest_request(1).await;
    let (_, other) = replica.attest_request(1).await;
    let own = std::mem::replace(&mut request.headers, other.headers);
    assert_eq!(replica.send(&request).await.status, 401);
    request.headers = vec![];
    assert_eq!(replica.send(&request).await.status, 401);
    request.headers = own;
    replica.advance(SignedDuration::from_secs(301));
    assert_eq!(replica.send(&request).await.status, 401);
    assert_eq!(replica.cluster.record(), None);
    replica.advance(SignedDuration::from_secs(-301));
    assert_eq!(replica.send(&request).await.status, 200);
}

#[tokio::test]
async fn a_token_ends_with_time_revocation_and_the_next_attestation() {
    let cluster = FakeCluster::new();
    let replica = Replica::new(&cluster);
    let first = replica.attest(1).await.unwrap();
    replica.advance(SignedDuration::from_secs(1));
    let second = replica.attest(1).await.unwrap();
    assert_refused(
        replica.secret(&first).await,
        401,
        "PolicyDeny",
        "TokenSuperseded",
    );
    assert!(replica.secret(&second).await.is_ok());

    let image = cluster.0.lock().unwrap().observed.image.clone().unwrap();
    let mut revoked = (*image).clone();
    revoked.spec.lifecycle.state = LifecycleState::Revoked;
    cluster.0.lock().unwrap().observed.image = Some(Arc::new(revoked));
    assert_refused(
        replica.secret(&second).await,
        401,
        "PolicyDeny",
        "ImageRevoked",
    );
    assert_refused(
        replica.attest(1).await,
        401,
        "AttestationFailed",
        "ImageRevoked",
    );
    cluster.0.lock().unwrap().observed.image = Some(image);
    assert_refused(
        replica.secret(&second).await,
        401,
        "PolicyDeny",
        "RecordNotInForce",
    );

    let third = replica.attest(1).await.unwrap();
    replica.advance(SignedDuration::from_secs(300));
    assert_refused(
        replica.secret(&third).await,
        401,
        "TokenVerification",
        "expired",
    );
}

#[tokio::test]
async fn another_workload_s_resource_is_not_even_read() {
    let replica = Replica::new(&FakeCluster::new());
    let session = replica.attest(1).await.unwrap();
    for path in ["other/web/greeting", "shop/db/greeting"] {
        let result = replica.resource(&session, path).await;
        assert_refused(result, 401, "PolicyDeny", "IdentityMismatch");
    }
    let result = replica.resource(&session, "shop/web/other").await;
    assert_refused(result, 401, "PolicyDeny", "NotReleased");
    assert_eq!(replica.cluster.0.lock().unwrap().secret_reads, 0);
}

#[tokio::test]
async fn a_simulated_guest_gets_no_secret_of_another_class() {
    let cluster = FakeCluster::new();
    cluster
        .0
        .lock()
        .unwrap()
        .secret
        .as_mut()
        .unwrap()
        .metadata
        .labels = None;
    let replica = Replica::new(&cluster);
    let session = replica.attest(1).await.unwrap();
    assert_refused(
        replica.secret(&session).await,
        401,
        "PolicyDeny",
        "ReleaseClassMismatch",
    );
}

/// What is wrong with a Secret is in the record until it is mended, whatever
/// the guest does meanwhile; and the guest's next try gets it.
#[tokio::test]
async fn a_secret_that_cannot_be_released_is_told_in_the_record() {
    type Change = fn(&mut World);
    fn secret(world: &mut World) -> &mut Secret {
        world.secret.as_mut().unwrap()
    }
    let rows: [(Change, &str, &str); 3] = [
        (
            |world| world.secret = None,
            "SecretMissing",
            "Secret \"web-secrets\" does not exist in namespace shop; create it",
        ),
        (
            |world| secret(world).data = None,
            "SecretKeyMissing",
            "has no key \"greeting\"; add it",
        ),
        (
            |world| secret(world).metadata.labels = None,
            "ReleaseClassMismatch",
            "lacks label assay.dev/release-class=simulated; add it",
        ),
    ];
    let released = |cluster: &FakeCluster| {
        let record = cluster.record().unwrap();
        let conditions = &record.status.as_ref().unwrap().conditions;
        let released = assay_crds::conditions::find(conditions, "SecretsReleased").unwrap();
        assert_eq!(released.observed_generation, record.metadata.generation);
        (
            released.status.clone(),
            released.reason.clone(),
            released.message.clone(),
        )
    };
    for (change, reason, message) in rows {
        let cluster = FakeCluster::new();
        let replica = Replica::new(&cluster);
        change(&mut cluster.0.lock().unwrap());
        for _ in 0..2 {
            replica.advance(SignedDuration::from_secs(1));
            let session = replica.attest(1).await.unwrap();
            if cluster.0.lock().unwrap().secret_reads > 0 {
                assert_eq!(released(&cluster).0, "False", "attesting mends nothing");
            }
            assert_refused(replica.secret(&session).await, 401, "PolicyDeny", reason);
            let (status, told, text) = released(&cluster);
            assert_eq!((status.as_str(), told.as_str()), ("False", reason));
            assert!(text.starts_with("secrets[greeting].secretRef: "), "{text}");
            assert!(text.contains(message), "{text}");
        }
        cluster.0.lock().unwrap().secret = Some(fixtures::secret());
        replica.advance(SignedDuration::from_secs(1));
        let session = replica.attest(1).await.unwrap();
        // Another replica's write does not lose it.
        cluster.0.lock().unwrap().conflicts = 1;
        assert!(replica.secret(&session).await.is_ok());
        let (status, told, _) = released(&cluster);
        assert_eq!((status.as_str(), told.as_str()), ("True", "Released"));
        let record = serde_json::to_string(&cluster.record()).unwrap();
        let value = std::str::from_utf8(fixtures::SECRET_VALUE).unwrap();
        assert!(!record.contains(value));
    }
}

/// Every request of a token's holder is in the log before it is answered.
#[tokio::test]
async fn releases_and_refusals_are_audited() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let mut replica = Replica::new(&FakeCluster::new());
    replica.service.parts.audit = Some(AuditLog::open(&path).unwrap());
    let session = replica.attest(1).await.unwrap();
    replica.secret(&session).await.unwrap();
    for other in ["shop/web/other", "other/web/greeting"] {
        replica.resource(&session, other).await.unwrap_err();
    }
    let log = std::fs::read_to_string(&path).unwrap();
    assert_eq!(verify_log(log.as_bytes()).unwrap().lines, 3);
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told = |name: &str| -> Vec<&str> {
        lines
            .iter()
            .map(|line| line["entry"][name].as_str().unwrap_or_default())
            .collect()
    };
    assert_eq!(told("outcome"), ["Released", "Refused", "Refused"]);
    assert_eq!(told("reason"), ["", "NotReleased", "IdentityMismatch"]);
    assert_eq!(told("podUid"), [fixtures::POD_UID; 3]);
    assert!(!log.contains(std::str::from_utf8(fixtures::SECRET_VALUE).unwrap()));
}

#[tokio::test]
async fn what_cannot_be_audited_is_not_answered() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = FakeCluster::new();
    let mut replica = Replica::new(&cluster);
    let full = crate::audit::tests::full(&directory.path().join("audit.jsonl"));
    replica.service.parts.audit = Some(full);
    let session = replica.attest(1).await.unwrap();
    for path in ["shop/web/greeting", "shop/web/other"] {
        let result = replica.resource(&session, path).await;
        assert_refused(result, 503, "Unavailable", "try again");
    }
    // Nobody is told that it was released.
    assert_eq!(cluster.0.lock().unwrap().notices, []);
    assert_eq!(cluster.record().unwrap().status.unwrap().secrets, []);
}

/// A record that cannot be written holds no secret back.
#[tokio::test]
async fn a_release_does_not_depend_on_its_record() {
    let cluster = FakeCluster::new();
    let replica = Replica::new(&cluster);
    let session = replica.attest(1).await.unwrap();
    cluster.0.lock().unwrap().conflicts = WRITE_ATTEMPTS;
    assert!(replica.secret(&session).await.is_ok());
}

#[tokio::test]
async fn a_revoked_launch_digest_opens_nothing() {
    let cluster = FakeCluster::new();
    let replica = Replica::new(&cluster);
    let session = replica.attest(1).await.unwrap();
    {
        let mut world = cluster.0.lock().unwrap();
        let image = Arc::make_mut(world.observed.image.as_mut().unwrap());
        image.status.as_mut().unwrap().launch_digests[0].state = DigestState::Revoked;
    }
    let result = replica.secret(&session).await;
    assert_refused(result, 401, "PolicyDeny", "MeasurementRevoked");
    assert_eq!(cluster.0.lock().unwrap().secret_reads, 0);
}

#[tokio::test]
async fn a_released_value_is_for_the_attested_key_only() {
    let replica = Replica::new(&FakeCluster::new());
    let session = replica.attest(1).await.unwrap();
    let request = session.resource_request("shop/web/greeting").unwrap();
    let response = replica.send(&request).await;
    replica.advance(SignedDuration::from_secs(1));
    let other = replica.attest(1).await.unwrap();
    assert!(other.on_resource(&response).is_err());
    assert!(!response.body.windows(7).any(|bytes| bytes == b"correct"));
}

#[tokio::test]
async fn an_unknown_pod_leaves_no_trace() {
    let cluster = FakeCluster::new();
    cluster.0.lock().unwrap().observed.witness = Witness::default();
    let replica = Replica::new(&cluster);
    assert_refused(
        replica.attest(1).await,
        401,
        "AttestationFailed",
        "PodMissing",
    );
    assert_eq!(cluster.record(), None);
    assert_eq!(cluster.0.lock().unwrap().notices, []);
}

/// Whoever knows a pod's name must not be able to take it out of its Services.
#[tokio::test]
async fn noise_in_a_pod_s_name_does_not_touch_its_acceptance() {
    let cluster = FakeCluster::new();
    let replica = Replica::new(&cluster);
    replica.attest(1).await.unwrap();
    let before = cluster.record();
    replica.advance(1.seconds().try_into().unwrap());
    let (_, mut request) = replica.attest_request(1).await;
    let mut body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    *body
        .pointer_mut("/tee-evidence/primary_evidence/report")
        .unwrap() = "AAAA".into();
    request.body = serde_json::to_vec(&body).unwrap();
    assert_eq!(replica.send(&request).await.status, 401);
    assert_eq!(cluster.record(), before);
    assert_eq!(cluster.0.lock().unwrap().notices, []);
}

#[tokio::test]
async fn a_guest_that_turns_bad_loses_its_acceptance() {
    let cluster = FakeCluster::new();
    let replica = Replica::new(&cluster);
    let session = replica.attest(1).await.unwrap();
    replica.advance(SignedDuration::from_secs(1));
    assert!(replica.attest(9).await.is_err());
    let status = cluster.record().unwrap().status.unwrap();
    assert_eq!(status.verdict, Verdict::Rejected);
    assert_eq!(status.history.len(), 1);
    assert_refused(
        replica.secret(&session).await,
        401,
        "PolicyDeny",
        "RecordNotInForce",
    );
}

#[tokio::test]
async fn writes_of_other_replicas_are_taken_into_account() {
    let cluster = FakeCluster::new();
    let replica = Replica::new(&cluster);
    cluster.0.lock().unwrap().conflicts = WRITE_ATTEMPTS - 1;
    replica.attest(1).await.unwrap();
    replica.advance(SignedDuration::from_secs(1));
    cluster.0.lock().unwrap().conflicts = WRITE_ATTEMPTS;
    assert_refused(replica.attest(1).await, 503, "Unavailable", "");
}

#[test]
fn other_protocols_are_refused() {
    let replica = Replica::new(&FakeCluster::new());
    let request = |change: fn(&mut Request)| {
        let mut request = Request::snp();
        change(&mut request);
        serde_json::to_vec(&request).unwrap()
    };
    assert!(replica.service.authenticate(KBS, &request(|_| {})).is_ok());
    for body in [
        request(|request| request.version = "0.1.1".to_owned()),
        request(|request| request.tee = "sample".to_owned()),
        request(|request| {
            request.extra_params = serde_json::json!({ "supported-hash-algorithms": ["sha256"] });
        }),
        b"junk".to_vec(),
    ] {
        let refusal = replica.service.authenticate(KBS, &body).unwrap_err();
        assert_eq!(refusal.status(), 400);
    }
}
