//! The failover controller: when Raft has taken a lost node's volumes away, it makes Kubernetes start
//! their pods elsewhere at once, instead of after the minutes that Kubernetes waits on its own.
//!
//! It must never change anything in Kubernetes that Raft has not made safe first (R7): a pod is
//! deleted only when the cluster, read at the leader behind a read index, says that its node was lost
//! and that **every** Holdfast volume of the pod has left it (fenced and sealed by a survivor, attached
//! elsewhere, or detached). Whatever runs on after that on the lost node can neither write nor read.
//!
//! ```text
//!            observe                         decide (pure)                act
//!  GetCluster at the leader  ┐                                  ┌ taint holdfast.dev/fenced
//!  pods of the lost nodes    ├─► observed + memory + now ─► …  ─┤ DELETE pod, grace 0, UID
//!  Kubernetes' nodes, PVs    │                                  │ events
//!  GetNode of healed nodes   ┘                                  └ untaint, retire
//! ```
//!
//! There is no Kubernetes lease. Every action is idempotent (the taint is one, deletion carries the
//! pod's UID, an event's name follows from what it says), so that two instances do no harm. The one on
//! the Raft leader's node acts at once, the others when the work is still undone [`STAND_IN_AFTER`]
//! later. Nothing is kept: what is remembered between rounds is rebuilt by looking again.
//!
//! # Rights
//!
//! What the ServiceAccount needs, all of it cluster-wide:
//!
//! | group | resources | verbs |
//! |---|---|---|
//! | "" | nodes | get, list, watch, patch |
//! | "" | pods | list, delete |
//! | "" | persistentvolumes | list, watch |
//! | events.k8s.io | events | create |

mod act;
mod cache;
mod decide;
mod kubernetes;
mod metrics;
mod note;
mod observe;
mod retire;
mod views;

pub use act::{Failover, Settings};
pub use kubernetes::ConnectError;
pub use metrics::Metrics;

use core::time::Duration;

/// The taint on a node whose volumes were taken away: no new pods until it is back and clean.
const FENCED_TAINT: &str = "holdfast.dev/fenced";
/// A pod with this annotation set to [`FAILOVER_DISABLED`] is never deleted by this controller.
const FAILOVER_ANNOTATION: &str = "holdfast.dev/failover";
/// See [`FAILOVER_ANNOTATION`].
const FAILOVER_DISABLED: &str = "disabled";
/// How an administrator says that a node is down for good (KEP-2268).
const OUT_OF_SERVICE_TAINT: &str = "node.kubernetes.io/out-of-service";

/// An instance that is not beside the leader acts when the work is undone for this long.
const STAND_IN_AFTER: Duration = Duration::from_secs(2);
/// A volume that was fenced causes no second failover for this long.
const HYSTERESIS: Duration = Duration::from_secs(60);
/// A node that is lost and that Kubernetes does not have any more is removed from the cluster after this long,
/// if nothing else is said.
pub const GONE_FOR: Duration = Duration::from_secs(600);
/// Between two attempts to remove a node: its copies may have to be made elsewhere first (R27).
const RETIRE_AGAIN: Duration = Duration::from_secs(30);
/// A node that is up and has nothing stale left for this long loses the taint.
const HEALTHY_FOR: Duration = Duration::from_secs(10);
