//! Events of Kubernetes: what people are told.

use super::views::{NodeView, PodId};
use core::fmt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Longest text of an event, in bytes (events.k8s.io/v1).
const MAX_NOTE: usize = 1024;
/// Two events that say the same within this many seconds are one.
const SAME: i64 = 600;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod.
    Pod(PodId),
    /// A claim: namespace, name, uid.
    Claim(String, String, String),
    /// A node: name, uid.
    Node(String, String),
}

impl Subject {
    /// A node.
    pub fn node(name: &str, view: &NodeView) -> Self {
        Self::Node(name.to_owned(), view.uid.clone())
    }

    /// Where its events are: those of a node are in `default`, as kubelet's are.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.namespace,
            Self::Claim(namespace, ..) => namespace,
            Self::Node(..) => "default",
        }
    }

    fn parts(&self) -> (&'static str, Option<&str>, &str, &str) {
        match self {
            Self::Pod(pod) => ("Pod", Some(&pod.namespace), &pod.name, &pod.uid),
            Self::Claim(namespace, name, uid) => {
                ("PersistentVolumeClaim", Some(namespace), name, uid)
            }
            Self::Node(name, uid) => ("Node", None, name, uid),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, namespace, name, _) = self.parts();
        match namespace {
            Some(namespace) => write!(f, "{kind} {namespace}/{name}"),
            None => write!(f, "{kind} {name}"),
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// About what.
    pub subject: Subject,
    /// One word for machines.
    pub reason: &'static str,
    /// For people.
    pub text: String,
    /// Somebody should look.
    pub warning: bool,
}

impl Note {
    /// As Kubernetes wants it. The name follows from what is said, so that two instances that say the
    /// same make one event.
    pub fn event(&self, instance: &str, now: Timestamp) -> Event {
        let (kind, namespace, name, uid) = self.subject.parts();
        let mut hash = DefaultHasher::new();
        (uid, self.reason, &self.text, now.as_second() / SAME).hash(&mut hash);
        let mut note = self.text.clone();
        note.truncate(note.floor_char_boundary(MAX_NOTE));
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:016x}", hash.finish())),
                namespace: Some(self.subject.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            action: Some("Failover".to_owned()),
            reason: Some(self.reason.to_owned()),
            note: Some(note),
            type_: Some(if self.warning { "Warning" } else { "Normal" }.to_owned()),
            event_time: Some(MicroTime(now)),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(kind.to_owned()),
                namespace: namespace.map(str::to_owned),
                name: Some(name.to_owned()),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some("holdfast.dev/failover".to_owned()),
            reporting_instance: Some(instance.to_owned()),
            ..Event::default()
        }
    }
}
