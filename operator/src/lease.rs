//! Leader election by a Lease: one operator writes, the others stand by.
//!
//! # Guarantees
//! A holder that cannot renew gives up [`RENEW_DEADLINE`] after its last renewal,
//! before anybody else may take the Lease.
//!
//! # Assumptions
//! Clocks of different machines may disagree: a standby judges the holder by the
//! time at which *it* saw the Lease change, never by the time written in it. All
//! clocks run at about the same rate.
//!
//! # Caveats
//! A process that is stopped for longer than the deadline and then goes on may
//! finish a write that it had begun. All writes are idempotent and carry the UID
//! of what they change, so the new leader's next pass repairs what that does.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta};
use tokio::time::Instant;

use crate::apply::Writer;
use crate::causes::chain;

/// Name of the Lease.
pub const LEASE_NAME: &str = "assay-operator";
/// A Lease that has not changed for so long is free. Kubernetes' own components
/// use the same.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A holder that has not renewed for so long stops to act.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between attempts to take or renew the Lease.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// Takes part in the election under a name.
pub struct Elector {
    client: Client,
    writer: Writer,
    namespace: String,
    identity: String,
    seen: Option<Seen>,
}

/// A Lease as it was read, and when it was first read so.
struct Seen {
    lease: Lease,
    since: Instant,
}

/// What to do about a Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// It is ours: renew it.
    Renew,
    /// It is free: take it.
    Take,
    /// Somebody else holds it.
    Wait,
}

fn decide(lease: Option<&Lease>, identity: &str, unchanged_for: Duration) -> Decision {
    let holder = lease
        .and_then(|lease| lease.spec.as_ref())
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default();
    if holder == identity {
        // Also after a restart of the container: the process that held the
        // Lease under this pod's name is gone.
        Decision::Renew
    } else if holder.is_empty() || unchanged_for >= LEASE_DURATION {
        Decision::Take
    } else {
        Decision::Wait
    }
}

fn next_lease(
    seen: Option<&Lease>,
    namespace: &str,
    holder: &str,
    taken: bool,
    now: Timestamp,
) -> Lease {
    let mut lease = seen.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(LEASE_NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    let before = lease.spec.take().unwrap_or_default();
    let transitions = before.lease_transitions.unwrap_or_default();
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(now)),
        acquire_time: if taken {
            Some(MicroTime(now))
        } else {
            before.acquire_time
        },
        lease_transitions: Some(if taken {
            transitions.saturating_add(1)
        } else {
            transitions
        }),
        ..LeaseSpec::default()
    });
    lease
}

impl Elector {
    /// An elector for `identity`, the pod's name.
    pub fn new(client: Client, writer: Writer, namespace: String, identity: String) -> Self {
        Self {
            client,
            writer,
            namespace,
            identity,
            seen: None,
        }
    }

    /// Returns when this process leads.
    pub async fn acquire(&mut self) {
        let mut announced = false;
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {
                    if !announced {
                        tracing::info!(
                            holder = self.holder(),
                            "another operator leads; standing by"
                        );
                        announced = true;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot take the lease");
                }
            }
            tokio::time::sleep(RETRY_PERIOD).await;
        }
    }

    /// Renews until that fails for too long, then returns: this process must
    /// not write any more.
    pub async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY_PERIOD).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => {
                    tracing::error!(holder = self.holder(), "another operator took the lease");
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = chain(&error), "cannot renew the lease");
                }
                Err(_) => {
                    tracing::error!("the lease was not renewed in time");
                    return;
                }
            }
        }
    }

    /// Gives the Lease back, so that a successor need not wait for it to expire.
    pub async fn release(&mut self) {
        let Some(seen) = self
            .seen
            .as_ref()
            .filter(|_| self.holder() == self.identity)
        else {
            return;
        };
        let lease = next_lease(
            Some(&seen.lease),
            &self.namespace,
            "",
            false,
            Timestamp::now(),
        );
        if let Err(error) = self.writer.put_lease(&self.namespace, &lease).await {
            tracing::warn!(error = chain(&error), "cannot release the lease");
        }
    }

    fn holder(&self) -> &str {
        self.seen
            .as_ref()
            .and_then(|seen| seen.lease.spec.as_ref())
            .and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or_default()
    }

    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let current = api.get_opt(LEASE_NAME).await?;
        self.see(current);
        let unchanged_for = self
            .seen
            .as_ref()
            .map(|seen| seen.since.elapsed())
            .unwrap_or_default();
        let lease = self.seen.as_ref().map(|seen| &seen.lease);
        let taken = match decide(lease, &self.identity, unchanged_for) {
            Decision::Wait => return Ok(false),
            Decision::Renew => false,
            Decision::Take => true,
        };
        let next = next_lease(
            lease,
            &self.namespace,
            &self.identity,
            taken,
            Timestamp::now(),
        );
        match self.writer.put_lease(&self.namespace, &next).await {
            Ok(lease) => {
                self.see(Some(lease));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn see(&mut self, current: Option<Lease>) {
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        self.seen = match (current, self.seen.take()) {
            (Some(lease), Some(seen)) if version(&lease) == version(&seen.lease) => Some(Seen {
                lease,
                since: seen.since,
            }),
            (Some(lease), _) => Some(Seen {
                lease,
                since: Instant::now(),
            }),
            (None, _) => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> Lease {
        next_lease(None, "assay-system", holder, true, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_lease_is_taken_only_when_it_is_free() {
        let fresh = Duration::from_secs(14);
        assert_eq!(decide(None, "a", Duration::ZERO), Decision::Take);
        assert_eq!(
            decide(Some(&held_by("")), "a", Duration::ZERO),
            Decision::Take
        );
        assert_eq!(decide(Some(&held_by("a")), "a", fresh), Decision::Renew);
        assert_eq!(decide(Some(&held_by("b")), "a", fresh), Decision::Wait);
        assert_eq!(
            decide(Some(&held_by("b")), "a", LEASE_DURATION),
            Decision::Take
        );
    }

    #[test]
    fn a_change_of_holder_counts_and_a_renewal_does_not() {
        let now = Timestamp::from_second(60).unwrap();
        let first = held_by("a");
        let renewed = next_lease(Some(&first), "assay-system", "a", false, now)
            .spec
            .unwrap();
        assert_eq!(renewed.lease_transitions, Some(1));
        assert_eq!(renewed.acquire_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
        assert_eq!(renewed.renew_time, Some(MicroTime(now)));
        let taken = next_lease(Some(&first), "assay-system", "b", true, now)
            .spec
            .unwrap();
        assert_eq!(taken.lease_transitions, Some(2));
        assert_eq!(taken.acquire_time, Some(MicroTime(now)));
    }

    #[test]
    fn a_holder_gives_up_before_a_standby_may_take_over() {
        assert!(RENEW_DEADLINE + RETRY_PERIOD < LEASE_DURATION);
    }
}
