//! Which records a cluster does not have yet as they are, and when each is tried
//! next. Pure but for the lock: times are arguments.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// First pause after a failure; it doubles with every one that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a namespace that is made later gets its records soon.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// A record, by its guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Namespace of the workload.
    pub namespace: String,
    /// UID of the pod.
    pub uid: String,
}

/// How long to wait after `failures` in a row.
pub fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1);
    FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(LONGEST_PAUSE)
}

#[derive(Debug, Default)]
struct Entry {
    failures: u32,
    /// When it is tried next; while that is under way, nothing.
    turn: Option<Instant>,
    /// It changed while it was under way.
    changed: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: HashMap<RecordKey, Entry>,
    turns: BTreeSet<(Instant, RecordKey)>,
}

impl Waiting {
    fn schedule(&mut self, key: &RecordKey, turn: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.turn = Some(turn);
            entry.changed = false;
            self.turns.insert((turn, key.clone()));
        }
    }
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Publish this one, and say what came of it.
    Publish(RecordKey),
    /// Nothing before then.
    At(Instant),
    /// Nothing until there is something new.
    Idle,
}

/// The queue. It holds names alone: whoever takes one reads the record as it is by
/// then, so that an older one never follows a newer one.
///
/// # Guarantees
/// One attempt at a record at a time. A record that changes during an attempt is
/// tried again.
pub struct PublicationQueue {
    capacity: usize,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

impl PublicationQueue {
    /// A queue of at most `capacity` records.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            waiting: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Takes note that a record changed; false, where there is no room for it. One
    /// that has failed keeps its turn: a guest that attests often is not tried more
    /// often for it.
    pub fn put(&self, key: &RecordKey, now: Instant) -> bool {
        let mut waiting = self.waiting();
        if let Some(entry) = waiting.entries.get_mut(key) {
            entry.changed |= entry.turn.is_none();
            return true;
        }
        if waiting.entries.len() >= self.capacity {
            return false;
        }
        waiting.entries.insert(key.clone(), Entry::default());
        waiting.schedule(key, now);
        drop(waiting);
        self.changed.notify_one();
        true
    }

    /// Takes the record whose turn it is.
    pub fn next(&self, now: Instant) -> Next {
        let mut waiting = self.waiting();
        match waiting.turns.first() {
            None => Next::Idle,
            Some((turn, _)) if *turn > now => Next::At(*turn),
            Some(_) => match waiting.turns.pop_first() {
                None => Next::Idle,
                Some((_, key)) => {
                    if let Some(entry) = waiting.entries.get_mut(&key) {
                        entry.turn = None;
                    }
                    Next::Publish(key)
                }
            },
        }
    }

    /// The cluster has the record, or needs it no more.
    pub fn settle(&self, key: &RecordKey, now: Instant) {
        let mut waiting = self.waiting();
        match waiting.entries.get_mut(key) {
            Some(entry) if entry.changed => {
                entry.failures = 0;
                waiting.schedule(key, now);
            }
            _ => {
                waiting.entries.remove(key);
            }
        }
    }

    /// The cluster refused the record: again after a pause, which grows.
    pub fn fail(&self, key: &RecordKey, now: Instant) {
        let mut waiting = self.waiting();
        if let Some(entry) = waiting.entries.get_mut(key) {
            entry.failures = entry.failures.saturating_add(1);
            let turn = now + pause(entry.failures);
            waiting.schedule(key, turn);
        }
    }

    /// The cluster did not answer, which is not the record's fault: again at once,
    /// when anything is tried again.
    pub fn put_back(&self, key: &RecordKey, now: Instant) {
        self.waiting().schedule(key, now);
    }

    /// Records that the cluster does not have as they are.
    pub fn len(&self) -> usize {
        self.waiting().entries.len()
    }

    /// Whether the cluster has every record as it is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until there may be something new.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // A panic leaves every entry whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uid: &str) -> RecordKey {
        RecordKey {
            namespace: "shop".to_owned(),
            uid: uid.to_owned(),
        }
    }

    #[test]
    fn a_record_is_published_once_however_often_it_changed() {
        let queue = PublicationQueue::new(9);
        let now = Instant::now();
        assert_eq!(queue.next(now), Next::Idle);
        assert!(queue.put(&key("a"), now) && queue.put(&key("a"), now));
        assert_eq!(queue.next(now), Next::Publish(key("a")));
        assert_eq!(queue.next(now), Next::Idle, "it is under way");
        assert_eq!(queue.len(), 1);
        queue.settle(&key("a"), now);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_changes_under_way_is_published_again() {
        let queue = PublicationQueue::new(9);
        let now = Instant::now();
        queue.put(&key("a"), now);
        assert_eq!(queue.next(now), Next::Publish(key("a")));
        queue.put(&key("a"), now);
        assert_eq!(queue.next(now), Next::Idle, "one attempt at a time");
        queue.settle(&key("a"), now);
        assert_eq!(queue.next(now), Next::Publish(key("a")));
        queue.settle(&key("a"), now);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_refused_record_waits_longer_each_time_and_no_other_waits_for_it() {
        let queue = PublicationQueue::new(9);
        let mut now = Instant::now();
        queue.put(&key("a"), now);
        for seconds in [1, 2, 4, 8] {
            assert_eq!(queue.next(now), Next::Publish(key("a")));
            queue.fail(&key("a"), now);
            queue.put(&key("a"), now);
            let turn = now + Duration::from_secs(seconds);
            assert_eq!(queue.next(now), Next::At(turn));
            queue.put(&key("b"), now);
            assert_eq!(queue.next(now), Next::Publish(key("b")));
            queue.settle(&key("b"), now);
            now = turn;
        }
        assert_eq!(pause(1_000), LONGEST_PAUSE);
        // An outage counts against nobody.
        assert_eq!(queue.next(now), Next::Publish(key("a")));
        queue.put_back(&key("a"), now);
        assert_eq!(queue.next(now), Next::Publish(key("a")));
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let queue = PublicationQueue::new(1);
        let now = Instant::now();
        assert!(queue.put(&key("a"), now));
        assert!(!queue.put(&key("b"), now));
        assert!(queue.put(&key("a"), now));
        assert_eq!(queue.next(now), Next::Publish(key("a")));
        assert!(!queue.put(&key("b"), now));
        queue.settle(&key("a"), now);
        assert!(queue.put(&key("b"), now));
    }
}
