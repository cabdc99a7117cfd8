//! Counts and times for monitoring, in the text form of OpenMetrics 1.0. Every
//! label has few values: no name that somebody outside chooses is one.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use assay_attest::TrustDomain;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::inventory::InventoryHealth;
use crate::release::ReleaseRefusal;
use crate::volume::{Opening, VolumeRefusal};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the histogram, in seconds: from an appraisal without a network to the
/// longest request.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0, 20.0];

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A challenge.
    Auth,
    /// An appraisal.
    Attest,
    /// A release.
    Resource,
    /// A volume opened or closed.
    Volume,
}

/// What came of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttestationOutcome {
    /// It was accepted and recorded.
    Accepted,
    /// It was appraised and rejected.
    Rejected,
    /// It was of no guest that could be one of ours.
    Unidentified,
    /// Its session or challenge was not acceptable.
    Refused,
}

/// What came of a request for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeOutcome {
    /// It was opened.
    Opened(Opening),
    /// It was closed.
    Closed,
    /// The request was refused.
    Refused(VolumeRefusal),
}

/// What came of writing a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordWrite {
    /// It was written.
    Written,
    /// Another appraisal was faster.
    Conflict,
    /// It could not be written.
    Failed,
}

/// What came of publishing a record into a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// It is in the cluster.
    Written,
    /// It is not, and is tried again.
    Failed,
    /// It is not, and is of no use any more or finds no room to wait.
    Dropped,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttestationLabels {
    outcome: &'static str,
    /// A reason code of a check: one of a fixed list.
    reason: String,
    trust_domain: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReleaseLabels {
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: &'static str,
    /// The first digit of the status, as `2xx`.
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabels {
    store: &'static str,
}

/// A broker's counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    attestations: Family<AttestationLabels, Counter>,
    releases: Family<ReleaseLabels, Counter>,
    volumes: Family<ReleaseLabels, Counter>,
    volume_rotations: Counter,
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    record_writes: Family<OutcomeLabels, Counter>,
    publications: Family<OutcomeLabels, Counter>,
    store_errors: Family<StoreLabels, Counter>,
    nonces: Gauge,
    records: Gauge,
    unpublished: Gauge,
    invalid_files: Gauge,
    reload_failures: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("assay_broker"),
            attestations: Family::default(),
            releases: Family::default(),
            volumes: Family::default(),
            volume_rotations: Counter::default(),
            requests: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            record_writes: Family::default(),
            publications: Family::default(),
            store_errors: Family::default(),
            nonces: Gauge::default(),
            records: Gauge::default(),
            unpublished: Gauge::default(),
            invalid_files: Gauge::default(),
            reload_failures: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "attestations",
            "Evidence by what came of it",
            metrics.attestations.clone(),
        );
        registry.register(
            "releases",
            "Requests for resources by what came of them",
            metrics.releases.clone(),
        );
        registry.register(
            "volumes",
            "Requests for volumes by what came of them",
            metrics.volumes.clone(),
        );
        registry.register(
            "volume_key_rotations",
            "Keys of volumes that took the place of another",
            metrics.volume_rotations.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time to answer a request",
            Unit::Seconds,
            metrics.requests.clone(),
        );
        registry.register(
            "record_writes",
            "Writes of AttestationRecords by what came of them",
            metrics.record_writes.clone(),
        );
        registry.register(
            "record_publications",
            "Attempts to write AttestationRecords into a cluster by what came of them",
            metrics.publications.clone(),
        );
        registry.register(
            "secret_store_errors",
            "Reads that a secret store did not answer",
            metrics.store_errors.clone(),
        );
        registry.register(
            "nonces_in_use",
            "Answered challenges that are remembered",
            metrics.nonces.clone(),
        );
        registry.register(
            "records",
            "AttestationRecords that the broker keeps itself",
            metrics.records.clone(),
        );
        registry.register(
            "records_unpublished",
            "AttestationRecords that the cluster does not have as they are",
            metrics.unpublished.clone(),
        );
        registry.register(
            "inventory_invalid_files",
            "Files of the inventory that cannot be used as they are",
            metrics.invalid_files.clone(),
        );
        registry.register(
            "inventory_reload_failures",
            "Changes of the inventory that could not be used",
            metrics.reload_failures.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// Counts evidence.
    pub fn attestation(
        &self,
        outcome: AttestationOutcome,
        reason: &str,
        trust_domain: Option<TrustDomain>,
    ) {
        let labels = AttestationLabels {
            outcome: match outcome {
                AttestationOutcome::Accepted => "Accepted",
                AttestationOutcome::Rejected => "Rejected",
                AttestationOutcome::Unidentified => "Unidentified",
                AttestationOutcome::Refused => "Refused",
            },
            reason: reason.to_owned(),
            trust_domain: match trust_domain {
                Some(TrustDomain::Amd) => "AMD",
                Some(TrustDomain::Intel) => "Intel",
                Some(TrustDomain::Simulated { .. }) => "Simulated",
                None => "Unknown",
            },
        };
        self.attestations.get_or_create(&labels).inc();
    }

    /// Counts a request for a resource.
    pub fn release(&self, refusal: Option<ReleaseRefusal>) {
        let labels = ReleaseLabels {
            outcome: refusal.map_or("Released", |_| "Refused"),
            reason: refusal.map_or("Released", ReleaseRefusal::reason),
        };
        self.releases.get_or_create(&labels).inc();
    }

    /// Counts a request for a volume.
    pub fn volume(&self, outcome: VolumeOutcome) {
        let (outcome, reason) = match outcome {
            VolumeOutcome::Opened(Opening::Created) => ("Created", "Created"),
            VolumeOutcome::Opened(Opening::Opened) => ("Opened", "Opened"),
            VolumeOutcome::Opened(Opening::Renewed) => ("Renewed", "Renewed"),
            VolumeOutcome::Closed => ("Closed", "Closed"),
            VolumeOutcome::Refused(refusal) => ("Refused", refusal.reason()),
        };
        self.volumes
            .get_or_create(&ReleaseLabels { outcome, reason })
            .inc();
    }

    /// Counts a key of a volume that took the place of another.
    pub fn volume_rotation(&self) {
        self.volume_rotations.inc();
    }

    /// Counts a read that `store` did not answer.
    pub fn store_error(&self, store: &'static str) {
        self.store_errors
            .get_or_create(&StoreLabels { store })
            .inc();
    }

    /// Counts a write of a record.
    pub fn record_write(&self, outcome: RecordWrite) {
        let outcome = match outcome {
            RecordWrite::Written => "Written",
            RecordWrite::Conflict => "Conflict",
            RecordWrite::Failed => "Failed",
        };
        self.record_writes
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// Counts an attempt to publish a record.
    pub fn publication(&self, outcome: Publication) {
        let outcome = match outcome {
            Publication::Written => "Written",
            Publication::Failed => "Failed",
            Publication::Dropped => "Dropped",
        };
        self.publications
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// Notes how long an answer took, and its HTTP status.
    pub fn request(&self, operation: Operation, status: u16, took: Duration) {
        let labels = RequestLabels {
            operation: match operation {
                Operation::Auth => "auth",
                Operation::Attest => "attest",
                Operation::Resource => "resource",
                Operation::Volume => "volume",
            },
            status: match status {
                200..=299 => "2xx",
                400..=499 => "4xx",
                _ => "5xx",
            },
        };
        let histogram = self.requests.get_or_create(&labels);
        histogram.observe(took.as_secs_f64());
    }

    /// Everything as text, with what is known only now.
    pub fn encode(&self, nonces: usize, health: InventoryHealth) -> String {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.nonces.set(gauge(nonces));
        self.records.set(gauge(health.records));
        self.unpublished.set(gauge(health.unpublished));
        self.invalid_files.set(gauge(health.invalid_files));
        let failures = u64::try_from(health.reload_failures).unwrap_or(u64::MAX);
        let counted = self.reload_failures.get();
        self.reload_failures
            .inc_by(failures.saturating_sub(counted));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
