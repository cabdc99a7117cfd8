//! The broker's three operations: reads, one pure decision, writes.
//!
//! Nothing here knows HTTP or Kubernetes: [`crate::server`] turns requests into
//! calls, an [`Inventory`] is where objects are read and written, and a
//! [`SecretStore`] is where values are.

mod release;
mod svsm;
mod volumes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use assay_attest::Endorsements;
use assay_crds::v1alpha1::AttestationRecord;
use assay_crds::v1alpha1::attestation_record::PodReference;
use assay_protocol::broker::{NonceCache, NonceError, NonceIssuer, Profile, new_session};
use assay_protocol::messages::{Challenge, ErrorInformation, Request, VERSION};
use assay_tee::InstanceData;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::appraisal::{
    Appraisal, Decision, Observed, VerifierIdentity, decide_attestation, is_worth_endorsing,
};
use crate::audit::AuditLog;
use crate::collateral::CollateralStore;
use crate::inventory::{Inventory, InventoryError, InventoryHealth, Notice};
use crate::metrics::{AttestationOutcome, Metrics, RecordWrite};
use crate::node_trust::{certificates, plan_node_trust};
use crate::record::{NotRecorded, plan_record};
use crate::release::ReleaseRefusal;
use crate::secrets::SecretStore;
use crate::submission::{ParseSubmissionError, Submission};
use crate::token::{Claims, TokenKey};
use crate::volume::VolumeRefusal;

/// Accepted attestations that a replica remembers for five minutes: 200 in a
/// second.
pub const NONCE_CACHE: usize = 65_536;
/// Tries to write a record while other replicas write the same one.
const WRITE_ATTEMPTS: usize = 5;

/// Diagnoses that are searched for at the same time: each takes up to a second of
/// a processor, and guests that fail together fail for the same reason.
const CONCURRENT_DIAGNOSES: usize = 1;
/// Longest wait for a diagnosis; the record is written without it then.
const DIAGNOSIS_DEADLINE: Duration = Duration::from_secs(5);

/// Longest wait for collateral: two requests at the vendor's pace. What comes
/// later is there when the guest tries again.
const COLLATERAL_PATIENCE: Duration = Duration::from_secs(12);

pub use self::volumes::Volumes;

/// The time, handed in so that tests can say what it is.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Why a request was not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request is malformed.
    InvalidRequest(String),
    /// The nonce or session is not acceptable.
    Session(NonceError),
    /// The evidence is not acceptable; the reason code.
    AttestationFailed(String),
    /// The token is not acceptable.
    TokenInvalid(String),
    /// The resource is not released.
    PolicyDeny(ReleaseRefusal),
    /// The volume is not opened or closed.
    VolumeDeny(VolumeRefusal),
    /// The broker cannot decide now.
    Unavailable,
}

impl Refusal {
    /// HTTP status: as other key brokers answer, 401 for every denial.
    pub const fn status(&self) -> u16 {
        match self {
            Self::InvalidRequest(_) => 400,
            Self::Session(NonceError::CacheFull | NonceError::Generate) | Self::Unavailable => 503,
            Self::Session(_)
            | Self::AttestationFailed(_)
            | Self::TokenInvalid(_)
            | Self::PolicyDeny(_)
            | Self::VolumeDeny(_) => 401,
        }
    }

    /// The error as the protocol shapes it.
    pub fn information(&self) -> ErrorInformation {
        let (kind, detail) = match self {
            Self::InvalidRequest(detail) => ("InvalidRequest", detail.clone()),
            Self::Session(error) => ("InvalidSession", error.to_string()),
            Self::AttestationFailed(reason) => ("AttestationFailed", reason.clone()),
            Self::TokenInvalid(detail) => ("TokenVerificationFailed", detail.clone()),
            Self::PolicyDeny(refusal) => ("PolicyDeny", format!("{}: {refusal}", refusal.reason())),
            Self::VolumeDeny(refusal) => ("PolicyDeny", format!("{}: {refusal}", refusal.reason())),
            Self::Unavailable => ("Unavailable", "try again".to_owned()),
        };
        ErrorInformation::new(kind, detail)
    }
}

fn malformed(error: &ParseSubmissionError) -> Refusal {
    Refusal::InvalidRequest(Chain(error).to_string())
}

/// Logs an error with its causes and refuses without them.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> Refusal {
    tracing::error!(error = %Chain(error), "cannot decide");
    Refusal::Unavailable
}

/// An error with its causes, outermost first.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// What the service is made of.
pub struct ServiceParts<I> {
    /// Where objects are.
    pub inventory: I,
    /// Where values are.
    pub secrets: Arc<dyn SecretStore>,
    /// What the broker stands for.
    pub verifier: VerifierIdentity,
    /// Issues nonces.
    pub nonces: NonceIssuer,
    /// Remembers used nonces.
    pub used_nonces: Box<dyn NonceCache>,
    /// Signs tokens.
    pub tokens: TokenKey,
    /// Keeps what the processor's vendor publishes, if anything does.
    pub collateral: Option<Arc<CollateralStore>>,
    /// Keeps what was released and refused, if anything does.
    pub audit: Option<AuditLog>,
    /// Makes keys for volumes, if there are any.
    pub volumes: Option<Volumes>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The time.
    pub clock: Clock,
}

/// The broker.
pub struct Service<I> {
    parts: ServiceParts<I>,
    diagnoses: Arc<Semaphore>,
}

impl<I: Inventory> Service<I> {
    /// A broker of `parts`.
    pub fn new(parts: ServiceParts<I>) -> Self {
        Self {
            parts,
            diagnoses: Arc::new(Semaphore::new(CONCURRENT_DIAGNOSES)),
        }
    }

    /// The token keys as a JWK set.
    pub fn jwks(&self) -> serde_json::Value {
        self.parts.tokens.jwks()
    }

    /// Counts of the broker.
    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// Everything that is counted, as text.
    pub fn encode_metrics(&self) -> String {
        let nonces = self.parts.used_nonces.in_use(seconds(self.now()));
        self.parts.metrics.encode(nonces, self.health())
    }

    /// How far the inventory is from what people wrote.
    pub fn health(&self) -> InventoryHealth {
        self.parts.inventory.health()
    }

    fn now(&self) -> Timestamp {
        // Records have whole seconds; an appraisal and its record must agree.
        let now = (self.parts.clock)();
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }

    /// Answers an authentication request with a session and its challenge.
    ///
    /// # Errors
    /// When the guest speaks another protocol or is another TEE.
    pub fn authenticate(
        &self,
        profile: Profile,
        body: &[u8],
    ) -> Result<(String, Challenge), Refusal> {
        let request: Request = serde_json::from_slice(body)
            .map_err(|error| Refusal::InvalidRequest(error.to_string()))?;
        if request.version != VERSION {
            return Err(Refusal::InvalidRequest(format!(
                "only version {VERSION} is spoken"
            )));
        }
        if request.tee != Request::TEE_SNP {
            return Err(Refusal::InvalidRequest(
                "only tee snp is verified".to_owned(),
            ));
        }
        if !request.supports_hash() {
            return Err(Refusal::InvalidRequest(
                "only sha384 is verified".to_owned(),
            ));
        }
        let session = new_session().map_err(Refusal::Session)?;
        let nonce = self
            .parts
            .nonces
            .issue(profile, &session, seconds(self.now()))
            .map_err(Refusal::Session)?;
        let challenge = match profile {
            Profile::Kbs => Challenge::new(nonce),
            Profile::Svsm => Challenge::without_hash(nonce),
        };
        Ok((session, challenge))
    }

    /// Appraises evidence, records the verdict, and returns a token if it is
    /// accepted.
    ///
    /// # Errors
    /// When it is not accepted, or cannot be recorded.
    pub async fn attest(&self, session: Option<&str>, body: &[u8]) -> Result<String, Refusal> {
        let submission = Submission::parse(body);
        let result = self.appraise(session, submission).await;
        self.count_session(&result);
        result
    }

    fn count_session(&self, result: &Result<String, Refusal>) {
        if let Err(Refusal::Session(_)) = result {
            let outcome = AttestationOutcome::Refused;
            self.metrics().attestation(outcome, "InvalidSession", None);
        }
    }

    async fn appraise(
        &self,
        session: Option<&str>,
        submission: Result<Submission, ParseSubmissionError>,
    ) -> Result<String, Refusal> {
        let now = self.now();
        let submission = submission.map_err(|error| malformed(&error))?;
        let session = session.ok_or(Refusal::Session(NonceError::NotIssued))?;
        let nonce = self
            .parts
            .nonces
            .verify(
                submission.profile(),
                &submission.runtime_data.nonce,
                session,
                seconds(now),
            )
            .map_err(Refusal::Session)?;
        let instance = &submission.instance;
        let observed = self
            .parts
            .inventory
            .observe(instance)
            .await
            .map_err(|error| unavailable(&error))?;
        let endorsements = self.endorse(&submission, &observed).await;
        let verifier = &self.parts.verifier;
        let decision =
            decide_attestation(&submission, &nonce, &observed, &endorsements, verifier, now)
                .map_err(|error| unavailable(&error))?;
        let mut appraisal = match decision {
            Decision::Appraised(appraisal) => appraisal,
            Decision::Unidentified(error) => {
                tracing::warn!(
                    namespace = instance.namespace, deployment = instance.deployment,
                    pod = instance.pod.name, pod_uid = instance.pod.uid,
                    reason = error.reason(), detail = %error, "attestation unidentified",
                );
                let outcome = AttestationOutcome::Unidentified;
                self.metrics().attestation(outcome, error.reason(), None);
                return Err(Refusal::AttestationFailed(error.reason().to_owned()));
            }
        };
        // After the appraisal: only evidence that binds the nonce may use it up,
        // so that nobody can fill the cache with noise.
        if appraisal.authentic {
            self.parts
                .used_nonces
                .consume(&nonce, seconds(now))
                .map_err(Refusal::Session)?;
        }
        self.diagnose(&instance.namespace, &mut appraisal).await;
        Self::log_appraisal(instance, &appraisal);
        let recorded = self
            .record(&instance.namespace, &appraisal, observed.record)
            .await?;
        let outcome = if appraisal.is_accepted() {
            AttestationOutcome::Accepted
        } else {
            AttestationOutcome::Rejected
        };
        let reason = &appraisal.status.reason;
        self.metrics()
            .attestation(outcome, reason, appraisal.trust_domain);
        if !appraisal.is_accepted() {
            if recorded {
                let reason = appraisal.status.reason.clone();
                let notice = Notice::AttestationRejected { reason };
                self.notify(&instance.namespace, &appraisal, notice).await;
            }
            return Err(Refusal::AttestationFailed(appraisal.status.reason));
        }
        self.note_node(&submission, &endorsements, &appraisal).await;
        let claims = Claims::of(&appraisal, &instance.namespace, &submission.runtime_data)
            .ok_or_else(|| Refusal::AttestationFailed(appraisal.status.reason.clone()))?;
        self.parts
            .tokens
            .sign(&claims)
            .map_err(|error| unavailable(&error))
    }

    /// What the vendor says of the evidence. Only for a guest that may be one of
    /// ours, so that nobody else can use up the few requests that the vendor
    /// answers.
    async fn endorse(&self, submission: &Submission, observed: &Observed) -> Endorsements {
        match &self.parts.collateral {
            Some(store) if is_worth_endorsing(submission, observed) => {
                let evidence = submission.evidence();
                if let Some(trust) = self.parts.inventory.node_trust(&submission.instance.node) {
                    store.offer(&evidence, &certificates(&trust));
                }
                store.endorse(&evidence, COLLATERAL_PATIENCE).await
            }
            _ => Endorsements::default(),
        }
    }

    /// Keeps what an acceptance shows of the node, where that is new. No decision
    /// needs it, so that a failure to write it is no reason to refuse.
    async fn note_node(
        &self,
        submission: &Submission,
        endorsements: &Endorsements,
        appraisal: &Appraisal,
    ) {
        let InstanceData {
            namespace, node, ..
        } = &submission.instance;
        let inventory = &self.parts.inventory;
        let existing = inventory.node_trust(node);
        let planned = plan_node_trust(
            namespace,
            submission,
            endorsements,
            appraisal,
            &self.parts.verifier,
            existing.as_deref(),
        );
        if let Some(trust) = planned
            && let Err(error) = inventory.write_node_trust(&trust).await
        {
            tracing::warn!(error = %Chain(&error), node, "cannot write the NodeTrust");
        }
    }

    /// Explains the launch digest of a rejected guest, in time and on a thread of
    /// its own. Only authentic evidence is worth it: anyone can send the rest.
    async fn diagnose(&self, namespace: &str, appraisal: &mut Appraisal) {
        let Some(mismatch) = appraisal.mismatch.take() else {
            return;
        };
        if appraisal.is_accepted() || !appraisal.authentic {
            return;
        }
        let images = self.parts.inventory.images(namespace);
        let slots = self.diagnoses.clone();
        let search = async {
            let slot = slots.acquire_owned().await.ok()?;
            let search = tokio::task::spawn_blocking(move || {
                let diagnosis = mismatch.explain(&images);
                drop(slot);
                diagnosis
            });
            search.await.ok()?
        };
        match tokio::time::timeout(DIAGNOSIS_DEADLINE, search).await {
            Ok(Some(diagnosis)) => appraisal.status.diagnosis = Some(diagnosis),
            Ok(None) => {}
            Err(_) => tracing::warn!(namespace, "no diagnosis in time"),
        }
    }

    /// Records an appraisal, again when another replica writes at the same time;
    /// says whether it was recorded. An acceptance that cannot be recorded is
    /// none.
    async fn record(
        &self,
        namespace: &str,
        appraisal: &Appraisal,
        observed: Option<AttestationRecord>,
    ) -> Result<bool, Refusal> {
        let pod = &appraisal.spec.pod_ref;
        let plan = |existing: Option<&_>| plan_record(namespace, appraisal, existing);
        match self.write(namespace, pod, observed, plan).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(NotRecorded::NotAuthentic | NotRecorded::Unwitnessed)) => Ok(false),
            Ok(Err(NotRecorded::Older)) => {
                let (outcome, reason) = (AttestationOutcome::Refused, "AppraisalSuperseded");
                self.metrics()
                    .attestation(outcome, reason, appraisal.trust_domain);
                Err(Refusal::AttestationFailed(reason.to_owned()))
            }
            Ok(Err(NotRecorded::Replayed)) => Err(Refusal::Session(NonceError::Replayed)),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Writes what `plan` makes of the pod's record, planned again whenever
    /// another replica was faster; the plan's error where it has nothing to
    /// write.
    async fn write<E>(
        &self,
        namespace: &str,
        pod: &PodReference,
        observed: Option<AttestationRecord>,
        plan: impl Fn(Option<&AttestationRecord>) -> Result<AttestationRecord, E>,
    ) -> Result<Result<(), E>, InventoryError> {
        let inventory = &self.parts.inventory;
        let mut existing = observed;
        for _ in 0..WRITE_ATTEMPTS {
            let record = match plan(existing.as_ref()) {
                Ok(record) => record,
                Err(error) => return Ok(Err(error)),
            };
            let written = inventory.write_record(&record, existing.as_ref()).await;
            self.metrics().record_write(match &written {
                Ok(()) => RecordWrite::Written,
                Err(InventoryError::Conflict) => RecordWrite::Conflict,
                Err(InventoryError::Failed { .. }) => RecordWrite::Failed,
            });
            match written {
                Ok(()) => return Ok(Ok(())),
                Err(InventoryError::Conflict) => {
                    existing = inventory.read_record(namespace, pod).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(InventoryError::Conflict)
    }

    fn log_appraisal(instance: &InstanceData, appraisal: &Appraisal) {
        let status = &appraisal.status;
        tracing::info!(
            namespace = instance.namespace, deployment = instance.deployment,
            pod = instance.pod.name, pod_uid = instance.pod.uid,
            verdict = ?status.verdict, reason = status.reason,
            trust_domain = status.trust_domain, measurement = status.measurement,
            reference_value = status.reference_value, authentic = appraisal.authentic,
            diagnosis = status.diagnosis.as_ref().map(|diagnosis| &diagnosis.message),
            "attestation appraised",
        );
    }

    async fn notify(&self, namespace: &str, appraisal: &Appraisal, notice: Notice) {
        let pod = &appraisal.spec.pod_ref;
        self.parts.inventory.notify(namespace, pod, notice).await;
    }
}

/// Seconds since 1970; the time before that does not exist here.
fn seconds(now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests;
