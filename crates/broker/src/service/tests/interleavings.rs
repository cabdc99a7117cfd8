//! The protocol under thousands of interleavings of what guests, networks,
//! clocks and people do to two replicas. Whatever the order:
//! - no nonce gives two tokens;
//! - a secret goes to the session of the latest acceptance alone, for its own
//!   workload, while image and launch digest are unrevoked;
//! - a simulated verdict opens no Secret of another class.
//!
//! The runs are the same every time.

use std::cell::Cell;

use assay_protocol::guest::ChallengedSession;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::token::TOKEN_LIFETIME_SECONDS;

/// Interleavings that are tried, each of so many steps.
const RUNS: u32 = 2_000;
const STEPS: std::ops::RangeInclusive<usize> = 4..=16;
const REPLICAS: usize = 2;

/// Who attests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    Good,
    /// Its launch digest is unknown.
    Tampered,
    /// Its instance data names another pod.
    Stranger,
}

#[derive(Debug, Clone, Copy)]
enum Path {
    Own,
    OtherNamespace,
    OtherDeployment,
    OtherName,
}

impl Path {
    fn as_str(self) -> &'static str {
        match self {
            Self::Own => "shop/web/greeting",
            Self::OtherNamespace => "other/web/greeting",
            Self::OtherDeployment => "shop/db/greeting",
            Self::OtherName => "shop/web/other",
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A guest takes a challenge and makes evidence over it.
    Challenge { guest: Guest, replica: usize },
    /// A submission arrives, for the first time or again; the response may be
    /// lost.
    Attest {
        session: Index,
        replica: usize,
        lost: bool,
    },
    /// Two submissions, or one of them twice, arrive at once.
    Race { sessions: [Index; 2] },
    /// A submission arrives with the cookie of another session.
    Hijack {
        session: Index,
        cookie: Index,
        replica: usize,
    },
    /// A guest that got a token asks for a resource.
    Resource {
        session: Index,
        replica: usize,
        path: Path,
    },
    /// Time passes.
    Advance { seconds: i64 },
    /// A clock is this much ahead.
    Skew { replica: usize, seconds: i64 },
    /// A replica forgets what it only remembers.
    Restart { replica: usize },
    /// Someone revokes the image, or takes that back.
    Image { revoked: bool },
    /// The same for its launch digest.
    Digest { revoked: bool },
    /// Someone labels the Secret for simulated guests, or takes that back.
    Label { simulated: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let session = any::<Index>;
    let replica = || 0..REPLICAS;
    let guest = prop_oneof![
        6 => Just(Guest::Good),
        1 => Just(Guest::Tampered),
        1 => Just(Guest::Stranger),
    ];
    let path = prop_oneof![
        6 => Just(Path::Own),
        1 => Just(Path::OtherNamespace),
        1 => Just(Path::OtherDeployment),
        1 => Just(Path::OtherName),
    ];
    prop_oneof![
        6 => (guest, replica()).prop_map(|(guest, replica)| Step::Challenge { guest, replica }),
        8 => (session(), replica(), prop::bool::weighted(0.2))
            .prop_map(|(session, replica, lost)| Step::Attest { session, replica, lost }),
        2 => [session(), session()].prop_map(|sessions| Step::Race { sessions }),
        1 => (session(), session(), replica())
            .prop_map(|(session, cookie, replica)| Step::Hijack { session, cookie, replica }),
        8 => (session(), replica(), path)
            .prop_map(|(session, replica, path)| Step::Resource { session, replica, path }),
        2 => prop_oneof![9 => 1..4i64, 1 => 290..310i64]
            .prop_map(|seconds| Step::Advance { seconds }),
        2 => (replica(), -2..=3i64)
            .prop_map(|(replica, seconds)| Step::Skew { replica, seconds }),
        1 => replica().prop_map(|replica| Step::Restart { replica }),
        1 => prop::bool::weighted(0.3).prop_map(|revoked| Step::Image { revoked }),
        1 => prop::bool::weighted(0.3).prop_map(|revoked| Step::Digest { revoked }),
        1 => prop::bool::weighted(0.7).prop_map(|simulated| Step::Label { simulated }),
    ]
}

/// A guest's session, and what the broker gave it.
struct Session {
    guest: Guest,
    request: HttpRequest,
    challenged: Option<ChallengedSession>,
    attested: Option<AttestedSession>,
    /// When its token was issued, by the clock of the replica.
    issued_at: Option<Timestamp>,
}

/// A guest of each kind, with its instance data.
struct Guests([(assay_psp_sim::Guest, InstanceData); 3]);

impl Guests {
    fn launch() -> Self {
        let good = fixtures::instance();
        let mut stranger = fixtures::instance();
        stranger.pod.uid = "another".to_owned();
        Self([
            (fixtures::launch(1, &good), good.clone()),
            (fixtures::launch(9, &good), good),
            (fixtures::launch(1, &stranger), stranger),
        ])
    }

    fn get(&self, guest: Guest) -> &(assay_psp_sim::Guest, InstanceData) {
        match guest {
            Guest::Good => &self.0[0],
            Guest::Tampered => &self.0[1],
            Guest::Stranger => &self.0[2],
        }
    }
}

/// What happened in all runs: a broker that refuses everything is safe, too.
#[derive(Default)]
struct Tally {
    tokens: Cell<usize>,
    replays: Cell<usize>,
    releases: Cell<usize>,
}

fn count(cell: &Cell<usize>) {
    cell.set(cell.get() + 1);
}

/// What an answer to a submission says about the pod's latest appraisal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Accepted(usize),
    Rejected,
    None,
}

struct Model<'a> {
    cluster: FakeCluster,
    replicas: Vec<Replica>,
    skews: [i64; REPLICAS],
    time: Timestamp,
    sessions: Vec<Session>,
    /// The session whose acceptance is the latest appraisal.
    in_force: Option<usize>,
    image_revoked: bool,
    digest_revoked: bool,
    simulated_class: bool,
    guests: &'a Guests,
    tally: &'a Tally,
}

impl<'a> Model<'a> {
    fn new(guests: &'a Guests, tally: &'a Tally) -> Self {
        let cluster = FakeCluster::new();
        Self {
            replicas: (0..REPLICAS).map(|_| Replica::new(&cluster)).collect(),
            cluster,
            skews: [0; REPLICAS],
            time: fixtures::now(),
            sessions: Vec::new(),
            in_force: None,
            image_revoked: false,
            digest_revoked: false,
            simulated_class: true,
            guests,
            tally,
        }
    }

    fn set_clocks(&self) {
        for (replica, skew) in self.replicas.iter().zip(self.skews) {
            *replica.clock.lock().unwrap() = self.time + skew.seconds();
        }
    }

    fn session(&self, choice: Index) -> Option<usize> {
        (!self.sessions.is_empty()).then(|| choice.index(self.sessions.len()))
    }

    /// A session that got a token.
    fn attested(&self, choice: Index) -> Option<usize> {
        let sessions = self.sessions.iter().enumerate();
        let attested: Vec<usize> = sessions
            .filter(|(_, session)| session.attested.is_some())
            .map(|(index, _)| index)
            .collect();
        (!attested.is_empty()).then(|| attested[choice.index(attested.len())])
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Challenge { guest, replica } => self.challenge(guest, replica).await,
            Step::Attest {
                session,
                replica,
                lost,
            } => {
                let Some(index) = self.session(session) else {
                    return;
                };
                let request = &self.sessions[index].request;
                let response = self.replicas[replica].send(request).await;
                let effect = self.answer(index, replica, &response, lost);
                self.settle(&[effect]);
            }
            Step::Race { sessions } => {
                let [Some(one), Some(two)] = sessions.map(|session| self.session(session)) else {
                    return;
                };
                let (first, second) = join(
                    self.replicas[0].send(&self.sessions[one].request),
                    self.replicas[1].send(&self.sessions[two].request),
                )
                .await;
                let effects = [
                    self.answer(one, 0, &first, false),
                    self.answer(two, 1, &second, false),
                ];
                self.settle(&effects);
            }
            Step::Hijack {
                session,
                cookie,
                replica,
            } => {
                let (Some(index), Some(other)) = (self.session(session), self.session(cookie))
                else {
                    return;
                };
                if index == other {
                    return;
                }
                let mut request = self.sessions[index].request.clone();
                request.headers = self.sessions[other].request.headers.clone();
                let response = self.replicas[replica].send(&request).await;
                assert_eq!(response.status, 401, "a nonce of another session");
            }
            Step::Resource {
                session,
                replica,
                path,
            } => {
                if let Some(index) = self.attested(session) {
                    self.resource(index, replica, path).await;
                }
            }
            Step::Advance { seconds } => self.time += seconds.seconds(),
            Step::Skew { replica, seconds } => self.skews[replica] = seconds,
            Step::Restart { replica } => self.replicas[replica] = Replica::new(&self.cluster),
            Step::Image { revoked } => {
                self.image_revoked = revoked;
                self.change_image(|image| {
                    image.spec.lifecycle.state = if revoked {
                        LifecycleState::Revoked
                    } else {
                        LifecycleState::Active
                    };
                });
            }
            Step::Digest { revoked } => {
                self.digest_revoked = revoked;
                self.change_image(|image| {
                    let row = &mut image.status.as_mut().unwrap().launch_digests[0];
                    row.state = if revoked {
                        DigestState::Revoked
                    } else {
                        DigestState::Accepted
                    };
                });
            }
            Step::Label { simulated } => {
                self.simulated_class = simulated;
                let mut secret = fixtures::secret();
                if !simulated {
                    secret.metadata.labels = None;
                }
                self.cluster.0.lock().unwrap().secret = Some(secret);
            }
        }
        self.set_clocks();
    }

    fn change_image(&self, change: impl FnOnce(&mut MeasuredImage)) {
        let mut world = self.cluster.0.lock().unwrap();
        change(Arc::make_mut(world.observed.image.as_mut().unwrap()));
    }

    async fn challenge(&mut self, guest: Guest, replica: usize) {
        let (launched, instance) = self.guests.get(guest);
        let (challenged, request) = self.replicas[replica]
            .attest_request_of(launched, instance)
            .await;
        self.sessions.push(Session {
            guest,
            request,
            challenged: Some(challenged),
            attested: None,
            issued_at: None,
        });
    }

    /// Checks the answer to a submission.
    fn answer(
        &mut self,
        index: usize,
        replica: usize,
        response: &HttpResponse,
        lost: bool,
    ) -> Effect {
        let session = &mut self.sessions[index];
        if response.status == 200 {
            count(&self.tally.tokens);
            assert_eq!(session.guest, Guest::Good);
            assert!(!self.image_revoked && !self.digest_revoked, "revoked");
            let issued_at = self.time + self.skews[replica].seconds();
            assert_eq!(session.issued_at.replace(issued_at), None, "a second token");
            let challenged = session.challenged.take().unwrap();
            if !lost {
                session.attested = Some(challenged.on_token(response).unwrap());
            }
            return Effect::Accepted(index);
        }
        assert_eq!(response.status, 401);
        let body = String::from_utf8_lossy(&response.body);
        if body.contains("used already") {
            count(&self.tally.replays);
        }
        // The guest is who it says, and is not what it must be.
        let rejections = ["MeasurementUnknown", "MeasurementRevoked", "ImageRevoked"];
        if rejections.iter().any(|reason| body.contains(reason)) {
            Effect::Rejected
        } else {
            Effect::None
        }
    }

    /// Of two appraisals at once either may be the latest; the record says which.
    fn settle(&mut self, effects: &[Effect]) {
        let effects: Vec<Effect> = effects
            .iter()
            .copied()
            .filter(|effect| *effect != Effect::None)
            .collect();
        let latest = match effects[..] {
            [] => return,
            [effect] => effect,
            _ => self.recorded(),
        };
        assert!(effects.contains(&latest), "{latest:?} of {effects:?}");
        assert_eq!(latest, self.recorded());
        self.in_force = match latest {
            Effect::Accepted(index) => Some(index),
            Effect::Rejected | Effect::None => None,
        };
    }

    fn recorded(&self) -> Effect {
        let status = self.cluster.record().unwrap().status.unwrap();
        if status.verdict == Verdict::Rejected {
            return Effect::Rejected;
        }
        let nonce = status.evidence.nonce.as_bytes();
        let holds = |session: &Session| session.request.body.windows(88).any(|text| text == nonce);
        self.sessions
            .iter()
            .position(holds)
            .map_or(Effect::None, Effect::Accepted)
    }

    async fn resource(&mut self, index: usize, replica: usize, path: Path) {
        let session = &self.sessions[index];
        let (Some(attested), Some(issued_at)) = (&session.attested, session.issued_at) else {
            return;
        };
        let Ok(value) = self.replicas[replica]
            .resource(attested, path.as_str())
            .await
        else {
            return;
        };
        count(&self.tally.releases);
        assert_eq!(value, fixtures::SECRET_VALUE);
        assert!(matches!(path, Path::Own), "another identity's");
        assert_eq!(self.in_force, Some(index), "a stale session");
        assert!(!self.image_revoked && !self.digest_revoked, "revoked");
        assert!(self.simulated_class, "a secret of another class");
        let now = self.time + self.skews[replica].seconds();
        let age = now.duration_since(issued_at).as_secs();
        assert!(age < TOKEN_LIFETIME_SECONDS, "a token of {age} s");
    }
}

#[test]
fn no_order_of_events_gives_away_a_secret() {
    let config = Config {
        cases: RUNS,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let (guests, tally) = (Guests::launch(), Tally::default());
    let steps = prop::collection::vec(step(), STEPS);
    let result = runner.run(&steps, |steps| {
        let mut model = Model::new(&guests, &tally);
        runtime.block_on(async {
            for step in steps {
                model.take(step).await;
            }
        });
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    for (cell, at_least) in [
        (&tally.tokens, RUNS / 2),
        (&tally.replays, RUNS / 2),
        (&tally.releases, RUNS / 5),
    ] {
        assert!(cell.get() > at_least as usize, "{}", cell.get());
    }
}
