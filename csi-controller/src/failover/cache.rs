//! What a watch has told so far.

use futures::{Stream, StreamExt};
use kube::runtime::watcher::{Error, Event};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Content<V> {
    /// `None` until the first list is complete.
    known: Option<BTreeMap<String, V>>,
    /// The list that is being received; takes the place of `known` when it is complete.
    incoming: BTreeMap<String, V>,
}

/// Objects of one cluster-wide kind by name, each reduced to a `V`; clones share the content.
#[derive(Debug)]
pub struct Cache<V>(Arc<Mutex<Content<V>>>);

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        let content = Content { known: None, incoming: BTreeMap::new() };
        Self(Arc::new(Mutex::new(content)))
    }
}

impl<V: Clone> Cache<V> {
    fn content(&self) -> MutexGuard<'_, Content<V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them; `None` while they are not known yet. A watch that broke leaves what it told.
    pub fn all(&self) -> Option<BTreeMap<String, V>> {
        self.content().known.clone()
    }

    fn apply<K: Resource>(&self, event: Event<K>, reduce: &impl Fn(&K) -> Option<V>) {
        let mut content = self.content();
        let content = &mut *content;
        let put = |map: &mut BTreeMap<String, V>, object: &K| match reduce(object) {
            Some(view) => {
                map.insert(object.name_any(), view);
            }
            None => {
                map.remove(&object.name_any());
            }
        };
        match event {
            Event::Init => content.incoming.clear(),
            Event::InitApply(object) => put(&mut content.incoming, &object),
            Event::InitDone => content.known = Some(core::mem::take(&mut content.incoming)),
            Event::Apply(object) => put(content.known.get_or_insert_default(), &object),
            Event::Delete(object) => {
                content.known.get_or_insert_default().remove(&object.name_any());
            }
        }
    }

    /// Takes in `events` until they end. Objects that `reduce` makes nothing of are left out.
    pub async fn follow<K: Resource>(
        &self,
        events: impl Stream<Item = Result<Event<K>, Error>> + Send,
        reduce: impl Fn(&K) -> Option<V>,
    ) {
        let mut events = core::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.apply(event, &reduce),
                // The watcher begins anew by itself, after a pause.
                Err(error) => tracing::warn!(%error, "watch of Kubernetes objects broke"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::Node;

    fn node(name: &str, label: Option<&str>) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.metadata.labels = label.map(|label| [("l".into(), label.into())].into());
        node
    }

    #[tokio::test]
    async fn a_list_replaces_all_at_once_and_changes_come_after() {
        let cache = Cache::<String>::default();
        let label = |node: &Node| node.metadata.labels.as_ref()?.get("l").cloned();
        let feed = async |events: Vec<Event<Node>>| {
            let events = futures::stream::iter(events.into_iter().map(Ok));
            cache.follow(events, label).await;
            let shown = |all: BTreeMap<String, String>| {
                all.into_iter().map(|(name, label)| name + &label).collect::<Vec<_>>().join(" ")
            };
            cache.all().map(shown)
        };
        use Event::{Apply, Delete, Init, InitApply, InitDone};
        assert_eq!(feed(vec![Init, InitApply(node("a", Some("1")))]).await, None);
        let rest = vec![InitApply(node("b", Some("1"))), InitApply(node("c", None)), InitDone];
        assert_eq!(feed(rest).await.unwrap(), "a1 b1");
        let changes = vec![Apply(node("b", Some("2"))), Apply(node("d", Some("1")))];
        assert_eq!(feed(changes).await.unwrap(), "a1 b2 d1");
        let fewer = vec![Delete(node("d", Some("1"))), Apply(node("a", None))];
        assert_eq!(feed(fewer).await.unwrap(), "b2");
        // While a new list comes in, the old one stands.
        assert_eq!(feed(vec![Init, InitApply(node("e", Some("5")))]).await.unwrap(), "b2");
        assert_eq!(feed(vec![InitDone]).await.unwrap(), "e5");
    }
}
