//! The store against a simulated service, on a clock that does not wait.

use std::collections::VecDeque;

use assay_attest::collateral::KeyKind;
use assay_psp_sim::kds::Fault;
use assay_psp_sim::{KeyDistributionService, RevocationListTemplate};
use assay_tee::Product;
use jiff::ToSpan as _;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::fixtures;

const LIST: CollateralRequest = CollateralRequest::RevocationList {
    product: Product::Genoa,
    kind: KeyKind::Vcek,
};

/// A list of the last 30 days and the next 30.
pub(crate) fn list(number: u64) -> RevocationListTemplate {
    RevocationListTemplate {
        this_update: fixtures::now() - 720.hours(),
        next_update: fixtures::now() + 721.hours(),
        number: Some(number),
        revoked: vec![],
        critical_entries: false,
    }
}

/// A service that publishes everything for the guest of the fixtures.
pub(crate) fn service() -> KeyDistributionService<'static> {
    let mut service = KeyDistributionService::new(fixtures::authority(), list(7));
    service.publish(fixtures::endorsement()).unwrap();
    service
}

/// The service, and when it was asked for what.
#[derive(Clone)]
struct Source {
    service: Arc<Mutex<KeyDistributionService<'static>>>,
    asked: Arc<Mutex<Vec<(Duration, String)>>>,
    start: Instant,
}

impl Fetch for Source {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, FetchError>> {
        Box::pin(async move {
            let at = (self.start.elapsed(), path.to_owned());
            self.asked.lock().unwrap().push(at);
            tokio::time::sleep(Duration::from_secs(1)).await;
            match self.service.lock().unwrap().respond(path).unwrap() {
                (200, body) => Ok(body),
                (404, _) => Err(FetchError::NotFound),
                (429, _) => Err(FetchError::Throttled),
                (status, _) => Err(FetchError::Status(status)),
            }
        })
    }
}

struct World {
    source: Source,
    directory: TempDir,
    clock: Clock,
    evidence: Evidence,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let submission = fixtures::submission();
        Self {
            source: Source {
                service: Arc::new(Mutex::new(service())),
                asked: Arc::default(),
                start,
            },
            directory: TempDir::new().unwrap(),
            clock: Arc::new(move || {
                fixtures::now() + SignedDuration::try_from(start.elapsed()).unwrap()
            }),
            evidence: Evidence::new(submission.evidence.report, Vec::new()),
        }
    }

    fn store(&self, source: Option<Source>) -> Arc<CollateralStore> {
        let source = source.map(|source| -> Box<dyn Fetch> { Box::new(source) });
        Arc::new(CollateralStore::new(
            self.directory.path(),
            fixtures::verifier().anchors,
            source,
            REQUEST_INTERVAL,
            self.clock.clone(),
        ))
    }

    /// A store that asks the service.
    fn online(&self) -> Arc<CollateralStore> {
        self.store(Some(self.source.clone()))
    }

    fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.source.service.lock().unwrap().faults = faults.into_iter().collect::<VecDeque<_>>();
    }

    fn publish(&self, list: RevocationListTemplate) {
        self.source
            .service
            .lock()
            .unwrap()
            .set_revocation_list(list);
    }

    fn asked(&self) -> usize {
        self.source.asked.lock().unwrap().len()
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

fn is_complete(endorsements: &Endorsements) -> bool {
    endorsements.certificates.len() == 3 && endorsements.revocation_list.is_some()
}

#[tokio::test(start_paused = true)]
async fn many_guests_make_one_request_of_a_kind_and_one_in_ten_seconds() {
    let world = World::new();
    let store = world.online();
    let guests = (0..50).map(|_| store.endorse(&world.evidence, PATIENCE));
    for endorsements in futures::future::join_all(guests).await {
        assert!(is_complete(&endorsements));
    }
    let asked = world.source.asked.lock().unwrap().clone();
    let paths: Vec<&str> = asked.iter().map(|(_, path)| path.as_str()).collect();
    assert_eq!(
        paths[..2],
        ["/vcek/v1/Genoa/cert_chain", "/vcek/v1/Genoa/crl"]
    );
    assert!(paths[2].starts_with("/vcek/v1/Genoa/"), "{}", paths[2]);
    assert_eq!(paths.len(), 3);
    for pair in asked.windows(2) {
        assert!(pair[1].0 >= pair[0].0 + REQUEST_INTERVAL, "{asked:?}");
    }
    assert!(is_complete(&store.endorse(&world.evidence, PATIENCE).await));
    assert_eq!(world.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_is_there_after_a_restart_without_network() {
    let world = World::new();
    world.online().endorse(&world.evidence, PATIENCE).await;
    let store = world.store(None);
    assert!(is_complete(&store.endorse(&world.evidence, PATIENCE).await));
    assert_eq!(world.asked(), 3);
    // No half-written file is left, and none is read.
    let names = fs::read_dir(world.directory.path()).unwrap();
    for name in names.map(|entry| entry.unwrap().file_name()) {
        let request = CollateralRequest::from_file_name(name.to_str().unwrap());
        assert!(request.is_some(), "{}", name.display());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_is_repeated_ever_less_often() {
    let world = World::new();
    let store = world.online();
    world.fail([Fault::InternalError; 1000]);
    for _ in 0..3600 {
        store.refresh(&LIST).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    // After 10, 20, 40, …, 1280 and 2560 seconds.
    assert_eq!(world.asked(), 9);
    for asked in 10..60 {
        tokio::time::advance(Duration::from_hours(1)).await;
        store.refresh(&LIST).await;
        store.refresh(&LIST).await;
        assert_eq!(world.asked(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_stops_all_requests_for_a_minute() {
    let world = World::new();
    let store = world.online();
    world.fail([Fault::TooManyRequests]);
    let error = store.fetch(&LIST).await.unwrap_err();
    assert!(matches!(
        error,
        CollateralError::Fetch(FetchError::Throttled)
    ));
    let chain = LIST.authorities().unwrap();
    store.fetch(&chain).await.unwrap();
    let asked = world.source.asked.lock().unwrap().clone();
    assert!(
        asked[1].0 >= asked[0].0 + Duration::from_mins(1),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_queue_is_refused() {
    let world = World::new();
    let store = world.online();
    let waits: Vec<_> = (0..8).map(|_| store.take_turn()).collect();
    for (turn, wait) in waits.iter().take(7).enumerate() {
        assert_eq!(
            *wait.as_ref().unwrap(),
            REQUEST_INTERVAL * u32::try_from(turn).unwrap()
        );
    }
    assert!(matches!(waits[7], Err(CollateralError::Busy)));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_survived_as_long_as_the_list_is_valid() {
    let world = World::new();
    let store = world.online();
    store.endorse(&world.evidence, PATIENCE).await;
    world.fail([Fault::InternalError; 1000]);
    // Due since its half-life, which the fixtures' clock has just passed.
    tokio::time::advance(Duration::from_hours(720)).await;
    assert!(is_complete(&store.endorse(&world.evidence, PATIENCE).await));
    tokio::time::advance(Duration::from_hours(1)).await;
    let endorsements = store.endorse(&world.evidence, PATIENCE).await;
    assert_eq!(endorsements.revocation_list, None);
    assert_eq!(endorsements.certificates.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_list_is_replaced_before_it_ends_while_nobody_waits() {
    let world = World::new();
    let store = world.online();
    store.endorse(&world.evidence, PATIENCE).await;
    let mut newer = list(8);
    newer.this_update = fixtures::now();
    newer.next_update = fixtures::now() + 2400.hours();
    world.publish(newer);
    tokio::time::advance(Duration::from_hours(2)).await;
    let before = Instant::now();
    let old = store.endorse(&world.evidence, PATIENCE).await;
    assert_eq!(before.elapsed(), Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let new = store.endorse(&world.evidence, PATIENCE).await;
    assert_ne!(old.revocation_list, new.revocation_list);
    let held = store.held(&LIST, (world.clock)()).unwrap();
    assert_eq!(held.revocation_list_number(), Some(8));
}

#[tokio::test(start_paused = true)]
async fn a_list_with_a_lower_number_is_refused_even_after_a_restart() {
    let world = World::new();
    world.online().endorse(&world.evidence, PATIENCE).await;
    // Even when the newest one has ended.
    for age in [0, 721] {
        tokio::time::advance(Duration::from_hours(age)).await;
        let mut older = list(6);
        older.next_update = fixtures::now() + 2400.hours();
        world.publish(older);
        let error = world.online().fetch(&LIST).await.unwrap_err();
        assert!(
            matches!(error, CollateralError::Superseded { got: 6, known: 7 }),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_an_answer_is_not_kept() {
    let world = World::new();
    let store = world.online();
    store.fetch(&LIST.authorities().unwrap()).await.unwrap();
    world.fail([Fault::StaleRevocationList]);
    let error = store.fetch(&LIST).await.unwrap_err();
    assert!(
        matches!(error, CollateralError::OutOfDate { .. }),
        "{error}"
    );

    let other = fixtures::authority();
    let tcb = assay_tee::TcbVersion {
        fmc: None,
        bootloader: 9,
        tee: 0,
        snp: 23,
        microcode: 72,
    };
    let template = assay_psp_sim::KeyTemplate::vcek(Product::Genoa, "another chip", tcb);
    let other = other.issue_vcek(&template).unwrap();
    world
        .source
        .service
        .lock()
        .unwrap()
        .publish(&other)
        .unwrap();
    world.fail([Fault::WrongChip]);
    let anchors = fixtures::verifier().anchors;
    let requests = collateral_requests(&world.evidence, &anchors);
    let vcek = requests.last().unwrap();
    let error = store.fetch(vcek).await.unwrap_err();
    assert!(matches!(error, CollateralError::Refused(_)), "{error}");
    assert_eq!(fs::read_dir(world.directory.path()).unwrap().count(), 1);
}

#[test]
fn only_http_addresses_are_taken() {
    for base in ["", "kdsintf.amd.com", "file:///tmp", "https://"] {
        assert!(HttpFetch::new(base).is_err(), "{base}");
    }
    for base in [
        assay_attest::collateral::AMD_KDS,
        "http://127.0.0.1:8080/kds/",
    ] {
        assert!(HttpFetch::new(base).is_ok(), "{base}");
    }
}
