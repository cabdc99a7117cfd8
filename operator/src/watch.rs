//! One watch per kind, shared by all controllers.
//!
//! A [`Source`] keeps the watched objects in a [`Store`] and tells the queues of
//! the controllers which of *their* objects each change concerns. kube's own
//! shared streams pass no deletions on, and a controller that does not hear of a
//! deleted child cannot repair it; hence this module.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::stream::{StreamExt as _, select_all};
use kube::ResourceExt as _;
use kube::api::{Api, ObjectMeta};
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};

use crate::causes::chain;
use crate::queue::{Queue, Watchable};

type Listener<T> = Box<dyn Fn(&T) + Send + Sync>;

/// Objects of one kind that are there and do not decode, as those of a later
/// version may not.
#[derive(Clone, Default)]
pub struct Undecodable(Arc<Mutex<HashMap<Key, String>>>);

impl Undecodable {
    /// Why the object of this name does not decode.
    pub fn error(&self, namespace: &str, name: &str) -> Option<String> {
        let key = (Some(namespace.to_owned()), name.to_owned());
        self.lock().get(&key).cloned()
    }

    fn insert(&self, invalid: &InvalidObject) {
        let key = key_of(&invalid.metadata);
        self.lock().insert(key, invalid.error.clone());
    }

    fn remove(&self, metadata: &ObjectMeta) {
        self.lock().remove(&key_of(metadata));
    }

    /// Forgets those of one namespace, or all, before they are listed anew.
    fn clear(&self, namespace: Option<&str>) {
        self.lock()
            .retain(|(other, _), _| namespace.is_some() && other.as_deref() != namespace);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watched objects of one kind.
///
/// # Guarantees
/// A listener hears of a change after the store shows it, of deletions also when
/// they happened while the watch was interrupted, and never of an object whose
/// resource version it has heard already.
pub struct Source<K: Watchable> {
    writer: Writer<K>,
    undecodable: Undecodable,
    listeners: Vec<Listener<K>>,
    name_listeners: Vec<Listener<ObjectMeta>>,
}

impl<K: Watchable> Default for Source<K> {
    fn default() -> Self {
        Self {
            writer: Writer::new(K::DynamicType::default()),
            undecodable: Undecodable::default(),
            listeners: Vec::new(),
            name_listeners: Vec::new(),
        }
    }
}

impl<K: Watchable> Source<K> {
    /// The objects as they were last seen.
    pub fn store(&self) -> Store<K> {
        self.writer.as_reader()
    }

    /// The objects that [`Source::run_guarded`] saw and could not decode.
    pub fn undecodable(&self) -> Undecodable {
        self.undecodable.clone()
    }

    /// Asks `queue` to reconcile what `map` makes of every changed object.
    pub fn notify<T, I>(&mut self, queue: &Queue<T>, map: impl Fn(&K) -> I + Send + Sync + 'static)
    where
        T: Watchable,
        I: IntoIterator<Item = ObjectRef<T>>,
    {
        let queue = queue.clone();
        self.listeners.push(Box::new(move |object| {
            for target in map(object) {
                queue.push(target);
            }
        }));
    }

    /// As [`Source::notify`], also of objects that do not decode.
    pub fn notify_by_name<T, I>(
        &mut self,
        queue: &Queue<T>,
        map: impl Fn(&ObjectMeta) -> I + Send + Sync + 'static,
    ) where
        T: Watchable,
        I: IntoIterator<Item = ObjectRef<T>>,
    {
        let queue = queue.clone();
        self.name_listeners.push(Box::new(move |metadata| {
            for target in map(metadata) {
                queue.push(target);
            }
        }));
    }

    /// Watches `apis`, each of one namespace or a single one of all, for ever.
    pub async fn run(self, apis: Vec<(Option<String>, Api<K>)>, config: watcher::Config) {
        self.drive(apis, &config, |_, event| Some(event)).await;
    }

    /// As [`Source::run`]. An object that does not decode, as one of a later
    /// version may, counts as deleted: nothing is decided on half of it. That it
    /// is there is remembered, for the message.
    pub async fn run_guarded(
        self,
        apis: Vec<(Option<String>, Api<DeserializeGuard<K>>)>,
        config: watcher::Config,
    ) {
        self.drive(apis, &config, Self::unguard).await;
    }

    async fn drive<W: Watchable>(
        mut self,
        apis: Vec<(Option<String>, Api<W>)>,
        config: &watcher::Config,
        decode: impl Fn(&Self, Event<W>) -> Option<Event<K>>,
    ) {
        let mut merge = Merge::new(
            apis.iter()
                .map(|(namespace, _)| namespace.clone())
                .collect(),
        );
        let streams = apis.into_iter().enumerate().map(|(index, (_, api))| {
            watcher::watcher(api, config.clone())
                .modify(|object| object.managed_fields_mut().clear())
                .default_backoff()
                .map(move |event| (index, event))
                .boxed()
        });
        let mut streams = select_all(streams);
        let store = self.store();
        while let Some((index, event)) = streams.next().await {
            match event {
                Ok(event) => {
                    if let Event::Init = event {
                        self.undecodable.clear(merge.namespace(index));
                    }
                    let Some(event) = decode(&self, event) else {
                        continue;
                    };
                    for event in merge.accept(index, event, || store.state()) {
                        self.take(&event);
                    }
                }
                Err(error) => {
                    let kind = K::kind(&K::DynamicType::default()).into_owned();
                    tracing::warn!(kind, error = chain(&error), "watch failed");
                }
            }
        }
    }

    fn take(&mut self, event: &Event<K>) {
        self.writer.apply_watcher_event(event);
        match event {
            Event::Apply(object) | Event::Delete(object) => self.tell(object),
            Event::InitDone => {
                for object in self.store().state() {
                    self.tell(&object);
                }
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }

    fn tell(&self, object: &K) {
        for listener in &self.listeners {
            listener(object);
        }
        self.tell_name(object.meta());
    }

    fn tell_name(&self, metadata: &ObjectMeta) {
        for listener in &self.name_listeners {
            listener(metadata);
        }
    }

    fn unguard(&self, event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
        let decoded = |object: K| {
            self.undecodable.remove(object.meta());
            object
        };
        match event {
            Event::Apply(DeserializeGuard(Ok(object))) => Some(Event::Apply(decoded(object))),
            Event::InitApply(DeserializeGuard(Ok(object))) => {
                Some(Event::InitApply(decoded(object)))
            }
            Event::Delete(DeserializeGuard(Ok(object))) => Some(Event::Delete(decoded(object))),
            Event::Apply(DeserializeGuard(Err(invalid))) => {
                self.note(&invalid);
                self.forget(&invalid)
            }
            Event::InitApply(DeserializeGuard(Err(invalid))) => {
                self.note(&invalid);
                self.tell_name(&invalid.metadata);
                None
            }
            Event::Delete(DeserializeGuard(Err(invalid))) => {
                self.undecodable.remove(&invalid.metadata);
                self.forget(&invalid)
            }
            Event::Init => Some(Event::Init),
            Event::InitDone => Some(Event::InitDone),
        }
    }

    fn note(&self, invalid: &InvalidObject) {
        self.undecodable.insert(invalid);
        tracing::warn!(
            kind = %K::kind(&K::DynamicType::default()),
            namespace = invalid.metadata.namespace,
            name = invalid.metadata.name,
            error = invalid.error,
            "object does not decode"
        );
    }

    /// The deletion of what the object was while it decoded. Where it never did,
    /// there is none, and who depends on its name is told.
    fn forget(&self, invalid: &InvalidObject) -> Option<Event<K>> {
        let name = invalid.metadata.name.as_deref().unwrap_or_default();
        let mut object = ObjectRef::<K>::new(name);
        object.namespace.clone_from(&invalid.metadata.namespace);
        let known = self.store().get(&object);
        if known.is_none() {
            self.tell_name(&invalid.metadata);
        }
        known.map(|known| Event::Delete(known.as_ref().clone()))
    }
}

/// Merges the watches of several namespaces into one sequence of events whose
/// first listing ends when every namespace has been listed.
struct Merge<K: Watchable> {
    scopes: Vec<Scope<K>>,
    unlisted: HashSet<usize>,
}

struct Scope<K> {
    /// All namespaces when absent.
    namespace: Option<String>,
    listing: HashMap<Key, K>,
}

type Key = (Option<String>, String);

fn key<K: Watchable>(object: &K) -> Key {
    key_of(object.meta())
}

fn key_of(metadata: &ObjectMeta) -> Key {
    let name = metadata.name.clone().unwrap_or_default();
    (metadata.namespace.clone(), name)
}

impl<K: Watchable> Merge<K> {
    fn new(namespaces: Vec<Option<String>>) -> Self {
        Self {
            unlisted: (0..namespaces.len()).collect(),
            scopes: namespaces
                .into_iter()
                .map(|namespace| Scope {
                    namespace,
                    listing: HashMap::new(),
                })
                .collect(),
        }
    }

    fn namespace(&self, index: usize) -> Option<&str> {
        self.scopes.get(index)?.namespace.as_deref()
    }

    fn accept(
        &mut self,
        index: usize,
        event: Event<K>,
        state: impl FnOnce() -> Vec<Arc<K>>,
    ) -> Vec<Event<K>> {
        let first = !self.unlisted.is_empty();
        let Some(scope) = self.scopes.get_mut(index) else {
            return Vec::new();
        };
        match event {
            Event::Init => {
                scope.listing.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                scope.listing.insert(key(&object), object);
                Vec::new()
            }
            Event::Apply(object) if first => {
                scope.listing.insert(key(&object), object);
                Vec::new()
            }
            Event::Delete(object) if first => {
                scope.listing.remove(&key(&object));
                Vec::new()
            }
            Event::InitDone if first => {
                self.unlisted.remove(&index);
                if !self.unlisted.is_empty() {
                    return Vec::new();
                }
                let listed = self
                    .scopes
                    .iter_mut()
                    .flat_map(|scope| scope.listing.drain());
                let mut events = vec![Event::Init];
                events.extend(listed.map(|(_, object)| Event::InitApply(object)));
                events.push(Event::InitDone);
                events
            }
            Event::InitDone => {
                let listing = std::mem::take(&mut scope.listing);
                relist(listing, &state(), scope.namespace.as_deref())
            }
            event => vec![event],
        }
    }
}

/// The changes between `state` and a new listing of `namespace`, or of all.
fn relist<K: Watchable>(
    mut listing: HashMap<Key, K>,
    state: &[Arc<K>],
    namespace: Option<&str>,
) -> Vec<Event<K>> {
    let mut events = Vec::new();
    let covered = |old: &K| namespace.is_none() || old.meta().namespace.as_deref() == namespace;
    for old in state.iter().filter(|old| covered(old)) {
        let key = key(old.as_ref());
        match listing.get(&key) {
            None => events.push(Event::Delete(old.as_ref().clone())),
            Some(new) if new.meta().resource_version == old.meta().resource_version => {
                listing.remove(&key);
            }
            Some(_) => {}
        }
    }
    events.extend(listing.into_values().map(Event::Apply));
    events
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(namespace: &str, name: &str, version: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn names(events: &[Event<ConfigMap>]) -> Vec<String> {
        let mut names: Vec<String> = events.iter().map(ToString::to_string).collect();
        names.sort();
        names
    }

    fn listed(
        merge: &mut Merge<ConfigMap>,
        index: usize,
        objects: &[ConfigMap],
        state: &[ConfigMap],
    ) -> Vec<String> {
        merge.accept(index, Event::Init, Vec::new);
        for object in objects {
            merge.accept(index, Event::InitApply(object.clone()), Vec::new);
        }
        let state = state.iter().cloned().map(Arc::new).collect();
        names(&merge.accept(index, Event::InitDone, || state))
    }

    #[test]
    fn the_first_listing_ends_when_every_namespace_is_listed() {
        let mut merge = Merge::new(vec![Some("a".to_owned()), Some("b".to_owned())]);
        assert!(listed(&mut merge, 0, &[object("a", "x", "1")], &[]).is_empty());
        assert!(
            merge
                .accept(0, Event::Apply(object("a", "y", "2")), Vec::new)
                .is_empty()
        );
        assert!(
            merge
                .accept(0, Event::Delete(object("a", "x", "3")), Vec::new)
                .is_empty()
        );
        assert_eq!(
            listed(&mut merge, 1, &[object("b", "z", "1")], &[]),
            ["Init", "InitApply(y)", "InitApply(z)", "InitDone"]
        );
    }

    #[test]
    fn a_later_listing_becomes_its_differences() {
        let mut merge = Merge::new(vec![Some("a".to_owned()), Some("b".to_owned())]);
        listed(&mut merge, 0, &[], &[]);
        listed(&mut merge, 1, &[], &[]);
        let state = [
            object("a", "same", "1"),
            object("a", "gone", "1"),
            object("a", "changed", "1"),
            object("b", "elsewhere", "1"),
        ];
        let now = [
            object("a", "same", "1"),
            object("a", "changed", "2"),
            object("a", "new", "1"),
        ];
        assert_eq!(
            listed(&mut merge, 0, &now, &state),
            ["Apply(changed)", "Apply(new)", "Delete(gone)"]
        );
        assert_eq!(listed(&mut merge, 1, &[], &state), ["Delete(elsewhere)"]);
    }

    #[test]
    fn what_does_not_decode_is_gone_but_not_missing() {
        let (queue, mut requests) = Queue::<ConfigMap>::new();
        let mut source = Source::<ConfigMap>::default();
        source.notify_by_name(&queue, |metadata| {
            Some(ObjectRef::new(metadata.name.as_deref().unwrap_or_default()))
        });
        let undecodable = source.undecodable();
        let invalid = |name: &str| {
            DeserializeGuard(Err(InvalidObject {
                error: "no such field".to_owned(),
                metadata: object("a", name, "2").metadata,
            }))
        };
        let valid = |name: &str| DeserializeGuard(Ok(object("a", name, "1")));

        let event = source.unguard(Event::Apply(valid("known"))).unwrap();
        source.take(&event);
        assert!(requests.try_recv().is_ok());
        let event = source.unguard(Event::Apply(invalid("known"))).unwrap();
        assert_eq!(names(std::slice::from_ref(&event)), ["Delete(known)"]);
        source.take(&event);
        assert!(requests.try_recv().is_ok());
        assert!(source.store().state().is_empty());
        assert_eq!(
            undecodable.error("a", "known").as_deref(),
            Some("no such field")
        );

        assert!(source.unguard(Event::Apply(invalid("new"))).is_none());
        assert!(requests.try_recv().is_ok(), "who names it hears of it");
        assert!(undecodable.error("a", "new").is_some());
        assert_eq!(undecodable.error("b", "new"), None);
        assert!(source.unguard(Event::Delete(invalid("new"))).is_none());
        assert!(requests.try_recv().is_ok());
        assert_eq!(undecodable.error("a", "new"), None);
        source.unguard(Event::Apply(valid("known")));
        assert_eq!(undecodable.error("a", "known"), None, "mended");
    }
}
