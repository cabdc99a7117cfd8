//! The queue of a controller, and what drives a reconciler with it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use kube::Resource;
use kube::runtime::controller::{Action, Config, Error, ReconcileRequest, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use serde::de::DeserializeOwned;

use crate::causes::chain;
use crate::plan::Requeue;

/// A full pass when nothing happens, so that a lost change does no lasting harm.
const RESYNC: Duration = Duration::from_hours(1);
/// First delay after a failure; it doubles with every further one.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest delay after a failure: a person who has just mended the cause waits
/// no longer than this.
const LAST_RETRY: Duration = Duration::from_mins(5);

/// What watches and queues need of a kind.
pub trait Watchable:
    Resource<DynamicType: Default + Eq + Hash + Clone + Debug + Send + Sync + Unpin>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Watchable for K where
    K: Resource<DynamicType: Default + Eq + Hash + Clone + Debug + Send + Sync + Unpin>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// Where requests to reconcile objects of kind `K` go.
pub struct Queue<K: Watchable>(UnboundedSender<ReconcileRequest<K>>);

impl<K: Watchable> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Watchable> Queue<K> {
    /// A queue and its end.
    pub fn new() -> (Self, UnboundedReceiver<ReconcileRequest<K>>) {
        let (sender, receiver) = unbounded();
        (Self(sender), receiver)
    }

    /// Asks for a reconciliation. Several requests for an object that wait are
    /// one. After the controller's end this does nothing.
    pub fn push(&self, object: ObjectRef<K>) {
        let _closed = self.0.unbounded_send(object.into());
    }
}

/// What came of one reconciliation.
pub type Outcome = Result<Requeue, Failure>;

/// A reconciliation failed.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// Variant of the cause, for logs and metrics.
    pub reason: &'static str,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Reconciles what `requests` names until `stop` resolves and the running
/// reconciliations have ended. Failures are logged here, once, with their causes.
pub async fn run<K, Ctx, Fut>(
    name: &'static str,
    store: Store<K>,
    requests: UnboundedReceiver<ReconcileRequest<K>>,
    context: Arc<Ctx>,
    concurrency: u16,
    reconcile: impl Fn(Arc<K>, Arc<Ctx>) -> Fut,
    stop: impl Future<Output = ()>,
) where
    K: Watchable,
    Ctx: Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let backoff = Arc::new(Backoff::default());
    let failures = Arc::clone(&backoff);
    let reconcile = |object: Arc<K>, context: Arc<Ctx>| {
        let backoff = Arc::clone(&backoff);
        let key = ObjectRef::from_obj(object.as_ref()).to_string();
        reconcile(object, context)
            .map(move |outcome| {
                outcome.map(|requeue| {
                    backoff.succeeded(&key);
                    action(requeue, Timestamp::now())
                })
            })
            .boxed()
    };
    let error_policy = move |object: Arc<K>, _: &Failure, _: Arc<Ctx>| {
        let key = ObjectRef::from_obj(object.as_ref()).to_string();
        Action::requeue(failures.failed(&key))
    };
    let requests = requests.map(Ok::<_, Infallible>).take_until(stop);
    let config = Config::default().concurrency(concurrency);
    applier(reconcile, error_policy, context, store, requests, config)
        .for_each(|result| async move {
            match result {
                Err(Error::ReconcilerFailed(failure, object)) => tracing::warn!(
                    controller = name,
                    %object,
                    reason = failure.reason,
                    error = chain(&failure),
                    "reconciliation failed"
                ),
                Err(error) => tracing::debug!(
                    controller = name,
                    error = chain(&error),
                    "nothing to reconcile"
                ),
                Ok((object, action)) => {
                    tracing::trace!(controller = name, %object, ?action, "reconciled");
                }
            }
        })
        .await;
}

fn action(requeue: Requeue, now: Timestamp) -> Action {
    match requeue {
        Requeue::At(at) => {
            // Never before the moment itself: a timer that fires early would
            // find nothing expired.
            let left = at.duration_since(now).max(jiff::SignedDuration::ZERO);
            let left = left.unsigned_abs().saturating_add(Duration::from_millis(1));
            Action::requeue(left.min(RESYNC))
        }
        Requeue::Resync => Action::requeue(RESYNC),
    }
}

/// Consecutive failures of each object.
#[derive(Default)]
struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    fn succeeded(&self, key: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }

    fn failed(&self, key: &str) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(key.to_owned()).or_default();
        let delay = delay(key, *count);
        *count = count.saturating_add(1);
        delay
    }
}

/// Doubles with every failure; spread by up to a quarter so that objects that
/// failed together do not return together.
fn delay(key: &str, failures: u32) -> Duration {
    let base = FIRST_RETRY
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(LAST_RETRY);
    let mut hasher = DefaultHasher::new();
    (key, failures).hash(&mut hasher);
    let spread = u32::try_from(hasher.finish() % 256).unwrap_or_default();
    base.saturating_sub((base / 4).saturating_mul(spread) / 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_last_and_differ_between_objects() {
        for failures in 0..40 {
            let at_most = FIRST_RETRY
                .saturating_mul(2_u32.saturating_pow(failures))
                .min(LAST_RETRY);
            let delay = delay("a", failures);
            assert!(
                delay <= at_most && delay >= at_most * 3 / 4,
                "{failures}: {delay:?}"
            );
        }
        assert_ne!(delay("a", 8), delay("b", 8));
    }

    #[test]
    fn success_forgets_failures() {
        let backoff = Backoff::default();
        let first = backoff.failed("a");
        assert!(backoff.failed("a") > first);
        backoff.succeeded("a");
        assert_eq!(backoff.failed("a"), first);
    }

    #[test]
    fn a_requeue_is_never_early() {
        let now = Timestamp::from_second(1_000).unwrap();
        let at = Timestamp::from_millisecond(1_001_500).unwrap();
        assert_eq!(
            action(Requeue::At(at), now),
            Action::requeue(Duration::from_millis(1_501))
        );
        let past = Timestamp::from_second(1).unwrap();
        assert_eq!(
            action(Requeue::At(past), now),
            Action::requeue(Duration::from_millis(1))
        );
    }
}
