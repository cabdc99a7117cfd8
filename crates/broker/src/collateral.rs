//! Collateral that evidence does not bring along: kept in a directory, and
//! fetched from the vendor's key distribution service where one is configured.
//!
//! Nothing is kept that [`check_collateral`] refuses, so neither the service nor
//! the network is trusted. Appraisal gets what is held and valid, and decides by
//! itself what is missing: an outage can refuse a guest and accept none.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use assay_attest::collateral::{
    Collateral, CollateralRefusal, CollateralRequest, Content, check_certificates, check_collateral,
};
use assay_attest::{Endorsements, Evidence, TrustAnchors, collateral::collateral_requests};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use reqwest::redirect::Policy;
use reqwest::{Certificate, StatusCode, Url};

use crate::service::{Chain, Clock};

/// AMD's service answers about one request in ten seconds, and others with 429.
pub const REQUEST_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for a turn: six requests. Who comes later fails at once, so that
/// invented chips do not queue up before the next revocation list.
const LONGEST_QUEUE: SignedDuration = SignedDuration::from_mins(1);
/// Pause of all requests after a 429.
const THROTTLED: SignedDuration = SignedDuration::from_mins(1);
/// First pause of a request that failed; it doubles with every failure.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(10);
/// Longest pause of a request that failed, and the time until one that was
/// answered with what is known already is made again.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(1);
/// Requests that are remembered: the chips of a large cluster.
const MAX_ENTRIES: usize = 4096;
/// A certificate chain has 5 KiB; a revocation list names few intermediates.
const MAX_ANSWER: usize = 64 * 1024;
/// Longest time for one answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The service has no such thing: a chip or TCB that it does not know.
    #[error("the key distribution service knows no such chip or TCB")]
    NotFound,
    /// The service asks for fewer requests.
    #[error("the key distribution service asks for fewer requests")]
    Throttled,
    /// The service answered with another status.
    #[error("the key distribution service answered {0}")]
    Status(u16),
    /// The answer is larger than any can be.
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLarge,
    /// The service cannot be reached.
    #[error("cannot reach the key distribution service")]
    Transport(#[source] reqwest::Error),
}

/// Where answers come from.
pub trait Fetch: Send + Sync {
    /// Gets `path`, which has a query.
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, FetchError>>;
}

/// The service cannot be asked at its address.
#[derive(Debug, thiserror::Error)]
pub enum HttpFetchError {
    /// It is no HTTP address.
    #[error("{0:?} is not an http or https URL")]
    Url(String),
    /// The client cannot be made.
    #[error("cannot set up HTTP")]
    Client(#[source] reqwest::Error),
}

/// Answers over HTTP. Answers are signed, so a mirror may speak it in the clear.
pub struct HttpFetch {
    client: reqwest::Client,
    base: String,
}

impl HttpFetch {
    /// A client of the service at `base`. It opens no connection yet.
    ///
    /// # Errors
    /// When it is not an address or TLS cannot be set up.
    pub fn new(base: &str) -> Result<Self, HttpFetchError> {
        let is_http = |url: &Url| ["http", "https"].contains(&url.scheme());
        if !Url::parse(base).is_ok_and(|url| is_http(&url)) {
            return Err(HttpFetchError::Url(base.to_owned()));
        }
        // A static binary in an empty container image finds no roots on disk.
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .map(|root| Certificate::from_der(root))
            .collect::<Result<Vec<_>, _>>()
            .map_err(HttpFetchError::Client)?;
        let client = reqwest::Client::builder()
            .tls_certs_only(roots)
            .redirect(Policy::none())
            .timeout(ANSWER_DEADLINE)
            .user_agent(concat!("assay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(HttpFetchError::Client)?;
        Ok(Self {
            client,
            base: base.trim_end_matches('/').to_owned(),
        })
    }

    async fn get(&self, path: &str) -> Result<Vec<u8>, FetchError> {
        let url = format!("{}{path}", self.base);
        let request = self.client.get(url).send();
        let mut response = request.await.map_err(FetchError::Transport)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(FetchError::NotFound),
            StatusCode::TOO_MANY_REQUESTS => return Err(FetchError::Throttled),
            status => return Err(FetchError::Status(status.as_u16())),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(FetchError::Transport)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

impl Fetch for HttpFetch {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, FetchError>> {
        Box::pin(self.get(path))
    }
}

/// Why there is nothing new to keep.
#[derive(Debug, thiserror::Error)]
pub enum CollateralError {
    /// No service is configured.
    #[error("no key distribution service is configured")]
    Offline,
    /// There are too many requests before this one.
    #[error("more than {LONGEST_QUEUE:#} of requests are waiting")]
    Busy,
    /// There is no answer.
    #[error("no answer")]
    Fetch(#[from] FetchError),
    /// The answer is not what was asked for, or not the vendor's.
    #[error("the answer is refused")]
    Refused(#[from] CollateralRefusal),
    /// The answer is not valid now.
    #[error("the answer is valid from {from} to {until} only")]
    OutOfDate {
        /// When it begins.
        from: Timestamp,
        /// When it ends.
        until: Timestamp,
    },
    /// The revocation list is older than the one that is known.
    #[error("revocation list {got} is older than number {known}, which is known")]
    Superseded {
        /// Its number.
        got: u64,
        /// The known number.
        known: u64,
    },
}

/// Why a file of the directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// It is not what its name says, or not the vendor's.
    #[error("it is refused")]
    Refused(#[from] CollateralRefusal),
}

/// What is known about one request.
#[derive(Default)]
struct Entry {
    /// The newest answer, even if it is not valid any more: no revocation list
    /// takes its place that has a lower number.
    known: Option<Arc<Collateral>>,
    /// Held while a request is under way, so that there is one of a kind.
    attempts: Arc<tokio::sync::Mutex<Attempts>>,
}

/// What came of the requests so far.
#[derive(Default)]
struct Attempts {
    failures: u32,
    /// No request is made before.
    next: Timestamp,
}

/// A directory of collateral and where more comes from.
///
/// # Guarantees
/// - At most one request in `interval`, and one of a kind at a time.
/// - What was kept is there after a restart, among it the newest revocation list
///   and so the highest number seen.
///
/// # Assumptions
/// Whoever can write to the directory can bring back an older list that has not
/// ended: that protection is as strong as the directory's.
pub struct CollateralStore {
    directory: Option<PathBuf>,
    anchors: TrustAnchors,
    source: Option<Box<dyn Fetch>>,
    interval: Duration,
    clock: Clock,
    entries: Mutex<HashMap<CollateralRequest, Entry>>,
    /// When the next request may be made.
    next_turn: Mutex<Timestamp>,
}

impl CollateralStore {
    /// A store in `directory`, which asks `source`, if there is one, once in
    /// `interval`. Both may be absent or empty now.
    pub fn new(
        directory: &Path,
        anchors: TrustAnchors,
        source: Option<Box<dyn Fetch>>,
        interval: Duration,
        clock: Clock,
    ) -> Self {
        Self {
            directory: Some(directory.to_owned()),
            anchors,
            source,
            interval,
            clock,
            entries: Mutex::default(),
            next_turn: Mutex::default(),
        }
    }

    /// A store in `directory` that fetches from the service at `url`, if there is
    /// one, as often as the vendor bears.
    ///
    /// # Errors
    /// When `url` is not an address or TLS cannot be set up.
    pub fn open(
        directory: &Path,
        anchors: TrustAnchors,
        url: Option<&str>,
        clock: Clock,
    ) -> Result<Self, HttpFetchError> {
        let source = url.map(HttpFetch::new).transpose()?;
        let source = source.map(|fetch| -> Box<dyn Fetch> { Box::new(fetch) });
        Ok(Self::new(
            directory,
            anchors,
            source,
            REQUEST_INTERVAL,
            clock,
        ))
    }

    /// A store without a directory and without a service: it has what it is offered,
    /// for as long as it lives.
    pub fn in_memory(anchors: TrustAnchors, clock: Clock) -> Self {
        Self {
            directory: None,
            ..Self::offline(Path::new(""), anchors, clock)
        }
    }

    /// A store that has what is in `directory`, and gets no more.
    pub fn offline(directory: &Path, anchors: TrustAnchors, clock: Clock) -> Self {
        Self::new(directory, anchors, None, REQUEST_INTERVAL, clock)
    }

    /// Takes from `certificates`, which somebody else keeps, what `evidence` lacks and
    /// is not held, if it passes the checks of an answer and is valid.
    pub fn offer(&self, evidence: &Evidence, certificates: &[Vec<u8>]) {
        let now = (self.clock)();
        for request in collateral_requests(evidence, &self.anchors) {
            let is_list = matches!(request, CollateralRequest::RevocationList { .. });
            if is_list || self.held(&request, now).is_some() {
                continue;
            }
            let authorities = self.authorities(&request, now);
            let checked = check_certificates(&request, certificates, &authorities, &self.anchors);
            match checked {
                Ok(collateral) if collateral.is_valid(now) && self.has_room() => {
                    // Certificates have no number to fall behind.
                    let _ = self.keep(&request, collateral);
                }
                Ok(_) => {}
                Err(error) => {
                    let file = request.file_name();
                    tracing::debug!(error = %Chain(&error), file, "an offer is refused");
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.entries().len() < MAX_ENTRIES
    }

    /// What is held for `evidence` and valid; fetches what is missing, for as
    /// long as `patience` lasts, and what is due, without waiting for it.
    pub async fn endorse(
        self: &Arc<Self>,
        evidence: &Evidence,
        patience: Duration,
    ) -> Endorsements {
        let requests = collateral_requests(evidence, &self.anchors);
        let now = (self.clock)();
        let held = requests.iter().map(|request| self.held(request, now));
        let held: Vec<_> = held.collect();
        let is_missing = held.iter().any(Option::is_none);
        let is_due = held.iter().flatten().any(|held| held.is_due(now));
        if self.source.is_some() && (is_missing || is_due) {
            let store = self.clone();
            let wanted = requests.clone();
            // On its own, so that it goes on when patience or the guest ends.
            let refresh = tokio::spawn(async move {
                for request in &wanted {
                    store.refresh(request).await;
                }
            });
            if is_missing && tokio::time::timeout(patience, refresh).await.is_err() {
                tracing::warn!("collateral is not there in time");
            }
        }
        self.endorsements(&requests)
    }

    /// What is held of `requests` and valid.
    pub fn endorsements(&self, requests: &[CollateralRequest]) -> Endorsements {
        let now = (self.clock)();
        let mut endorsements = Endorsements::default();
        for request in requests {
            if let Some(held) = self.held(request, now) {
                endorsements.add(&held);
            }
        }
        endorsements
    }

    /// What is held for `request`, if it is valid.
    pub fn held(&self, request: &CollateralRequest, now: Timestamp) -> Option<Arc<Collateral>> {
        let known = self.known(request, now);
        known.filter(|known| known.is_valid(now))
    }

    /// The newest answer to `request`: from memory, or from the directory where
    /// that one is not fresh, because a bundle may have been replaced.
    fn known(&self, request: &CollateralRequest, now: Timestamp) -> Option<Arc<Collateral>> {
        let entries = self.entries();
        let known = entries.get(request).and_then(|entry| entry.known.clone());
        drop(entries);
        let is_fresh = |known: &Arc<Collateral>| known.is_valid(now) && !known.is_due(now);
        if known.as_ref().is_some_and(is_fresh) {
            return known;
        }
        match self.load(request, now) {
            Ok(stored) => self.keep(request, stored).ok().or(known),
            Err(LoadError::Read(error)) if error.kind() == io::ErrorKind::NotFound => known,
            Err(error) => {
                let file = request.file_name();
                tracing::warn!(error = %Chain(&error), file, "cannot use collateral");
                known
            }
        }
    }

    /// Remembers an answer, unless it is a list with a lower number.
    fn keep(
        &self,
        request: &CollateralRequest,
        collateral: Collateral,
    ) -> Result<Arc<Collateral>, CollateralError> {
        let mut entries = self.entries();
        let entry = entries.entry(request.clone()).or_default();
        let number = Collateral::revocation_list_number;
        let known = entry.known.as_deref().and_then(number);
        match (number(&collateral), known) {
            (Some(got), Some(known)) if got < known => {
                Err(CollateralError::Superseded { got, known })
            }
            _ => Ok(entry.known.insert(Arc::new(collateral)).clone()),
        }
    }

    /// What the directory has for `request`, valid or not.
    ///
    /// # Errors
    /// When there is none, or it is not an answer to it.
    pub fn load(
        &self,
        request: &CollateralRequest,
        now: Timestamp,
    ) -> Result<Collateral, LoadError> {
        let directory = self.directory.as_deref();
        let directory = directory.ok_or_else(|| LoadError::Read(ErrorKind::NotFound.into()))?;
        let bytes = fs::read(directory.join(request.file_name())).map_err(LoadError::Read)?;
        Ok(self.check(request, &bytes, now)?)
    }

    fn check(
        &self,
        request: &CollateralRequest,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<Collateral, CollateralRefusal> {
        let authorities = self.authorities(request, now);
        check_collateral(request, bytes, &authorities, &self.anchors)
    }

    /// The certificates that an answer to `request` is checked against.
    fn authorities(&self, request: &CollateralRequest, now: Timestamp) -> Vec<Vec<u8>> {
        let known = request
            .authorities()
            .and_then(|request| self.known(&request, now));
        match known.as_deref() {
            Some(Collateral {
                content: Content::Certificates(ders),
                ..
            }) => ders.clone(),
            _ => Vec::new(),
        }
    }

    /// Fetches `request`, unless that was just tried or is not needed.
    async fn refresh(&self, request: &CollateralRequest) {
        let Some(attempts) = self.attempts(request) else {
            tracing::warn!(
                file = request.file_name(),
                "too much collateral to remember"
            );
            return;
        };
        let mut attempts = attempts.lock().await;
        let now = (self.clock)();
        let held = self.held(request, now);
        if now < attempts.next || held.is_some_and(|held| !held.is_due(now)) {
            return;
        }
        let pause = match self.fetch(request).await {
            Ok(_) => {
                attempts.failures = 0;
                LONGEST_PAUSE
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), path = request.path(), "cannot fetch collateral");
                let doublings = attempts.failures;
                attempts.failures = doublings.saturating_add(1);
                let pause = FIRST_PAUSE.saturating_mul(2_i32.saturating_pow(doublings));
                pause.min(LONGEST_PAUSE)
            }
        };
        attempts.next = (self.clock)()
            .saturating_add(pause)
            .unwrap_or(Timestamp::MAX);
    }

    /// The attempts at `request`; nothing where there are too many others, of
    /// which those are forgotten that led to nothing and are over.
    fn attempts(&self, request: &CollateralRequest) -> Option<Arc<tokio::sync::Mutex<Attempts>>> {
        let now = (self.clock)();
        let mut entries = self.entries();
        if !entries.contains_key(request) && entries.len() >= MAX_ENTRIES {
            entries.retain(|_, entry| {
                let attempts = entry.attempts.try_lock();
                entry.known.is_some() || attempts.map_or(true, |attempts| now < attempts.next)
            });
            if entries.len() >= MAX_ENTRIES {
                return None;
            }
        }
        Some(entries.entry(request.clone()).or_default().attempts.clone())
    }

    /// Fetches `request` now, or at its turn, and keeps what is better than what
    /// is known.
    ///
    /// # Errors
    /// When there is no such answer. What is known is known all the same.
    pub async fn fetch(
        &self,
        request: &CollateralRequest,
    ) -> Result<Arc<Collateral>, CollateralError> {
        let source = self.source.as_ref().ok_or(CollateralError::Offline)?;
        tokio::time::sleep(self.take_turn()?).await;
        let bytes = source.fetch(&request.path()).await.inspect_err(|error| {
            if matches!(error, FetchError::Throttled) {
                self.postpone_turns();
            }
        })?;
        let now = (self.clock)();
        let collateral = self.check(request, &bytes, now)?;
        if !collateral.is_valid(now) {
            return Err(CollateralError::OutOfDate {
                from: collateral.valid_from,
                until: collateral.valid_until,
            });
        }
        // The stored list counts, even where nobody has used it yet.
        self.known(request, now);
        let collateral = self.keep(request, collateral)?;
        if let Err(error) = self.write(request, &bytes) {
            let file = request.file_name();
            tracing::warn!(error = %Chain(&error), file, "cannot keep collateral");
        }
        Ok(collateral)
    }

    /// How long to wait for one's turn.
    fn take_turn(&self) -> Result<Duration, CollateralError> {
        let now = (self.clock)();
        let mut next = self.next_turn();
        let turn = (*next).max(now);
        let wait = turn.duration_since(now);
        if wait > LONGEST_QUEUE {
            return Err(CollateralError::Busy);
        }
        *next = turn.checked_add(self.interval).unwrap_or(Timestamp::MAX);
        Ok(wait.unsigned_abs())
    }

    fn postpone_turns(&self) {
        let mut next = self.next_turn();
        let resumed = (self.clock)().checked_add(THROTTLED);
        *next = (*next).max(resumed.unwrap_or(Timestamp::MAX));
    }

    fn next_turn(&self) -> MutexGuard<'_, Timestamp> {
        self.next_turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an answer; a reader sees the old one or the new one.
    fn write(&self, request: &CollateralRequest, bytes: &[u8]) -> io::Result<()> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let name = request.file_name();
        let new = directory.join(format!(".{name}.new"));
        fs::create_dir_all(directory)?;
        let mut file = fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, directory.join(name))
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<CollateralRequest, Entry>> {
        // A panic leaves every entry whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests;
