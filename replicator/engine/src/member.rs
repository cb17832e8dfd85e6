//! One replica as the engine sees it: its link, its standing, its lease.

use crate::api::{LinkId, MemberSpec, Progress};
use crate::resync::Resync;
use core::time::Duration;
use types::Instant;
use wire::SealInfo;

/// A connection that does not come about in this time is given up and tried again.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// Pause between connection attempts.
pub(crate) const RECONNECT: Duration = Duration::from_millis(500);
/// A silent link is pinged this often, so that leases live and a dead peer is noticed.
pub(crate) const PING: Duration = Duration::from_millis(800);
/// Likewise while a read waits for its lease.
pub(crate) const PING_WANTED: Duration = Duration::from_millis(100);
/// A peer that owes an answer and says nothing for this long is taken as gone.
pub(crate) const SILENCE: Duration = Duration::from_millis(2000);
/// A peer that talks but does not answer one request for this long (a stuck disk) is dropped.
pub(crate) const STUCK: Duration = Duration::from_millis(6000);

/// Work of a resync that holds a range for this long is given up: writes may wait for the range.
pub(crate) const TARGET_STUCK: Duration = Duration::from_millis(1500);

/// Replicas of a volume that an engine can tell apart: the width of [`crate::flight::Mask`].
pub(crate) const MAX_MEMBERS: usize = 16;

/// How the replica can be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Link {
    Down {
        retry: Instant,
    },
    Connecting {
        id: LinkId,
        since: Instant,
    },
    /// Connected, `Seal` sent.
    Sealing {
        id: LinkId,
        since: Instant,
    },
    /// Sealed at our epoch.
    Up {
        id: LinkId,
    },
}

/// How far a target is on its way into the ISR (R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    /// Writes that it got while it did not count are still under way there.
    Draining,
    /// Its disk is being synced.
    Flushing,
    /// `Grow` may be proposed.
    Ready,
}

/// What the replica counts for.
#[derive(Debug)]
pub(crate) enum Standing {
    /// In the committed ISR.
    InSync,
    /// Not in it, and nothing is being done about it.
    Away,
    /// Gets every write, counts for nothing and is never read (R5).
    Syncing(Box<Resync>),
    /// The resync set is empty: it counts for acknowledgements from here on, because its `Grow`
    /// may be committed before we hear of it.
    Joining(Join),
    /// Out of the ISR for good (R11, R13).
    Failed,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) spec: MemberSpec,
    pub(crate) link: Link,
    pub(crate) standing: Standing,
    pub(crate) info: Option<SealInfo>,
    /// Reads may be answered until then, as far as this member is concerned (R8).
    pub(crate) lease: Instant,
    pub(crate) heard: Instant,
    pub(crate) pinged: Instant,
    /// Why the last link ended; empty if none did.
    pub(crate) link_lost: &'static str,
    /// Connection attempts that failed since the engine started or the link was last up.
    pub(crate) failures: u32,
    /// Must leave the ISR and resync, although it may be reachable (R9).
    pub(crate) unfit: bool,
    /// Reported a permanent failure (R11, R13).
    pub(crate) broken: bool,
    /// Raft has no such replica any more: it gets no link once it does not count, and its place may
    /// be taken (R27).
    pub(crate) removed: bool,
    pub(crate) progress: Progress,
    /// Resyncs given up since the last one that succeeded.
    pub(crate) resync_failures: u32,
    /// Not before this time a new resync of this member is tried.
    pub(crate) resync_after: Instant,
}

impl Member {
    pub(crate) fn new(spec: MemberSpec) -> Self {
        let standing = if spec.in_isr { Standing::InSync } else { Standing::Away };
        Self {
            spec,
            link: Link::Down { retry: Instant(0) },
            standing,
            info: None,
            lease: Instant(0),
            heard: Instant(0),
            pinged: Instant(0),
            link_lost: "",
            failures: 0,
            unfit: false,
            broken: false,
            removed: false,
            progress: Progress::default(),
            resync_failures: 0,
            resync_after: Instant(0),
        }
    }

    pub(crate) fn link_id(&self) -> Option<LinkId> {
        match self.link {
            Link::Down { .. } => None,
            Link::Connecting { id, .. } | Link::Sealing { id, .. } | Link::Up { id } => Some(id),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    pub(crate) fn is_local(&self) -> bool {
        self.spec.address.is_none()
    }

    /// Whether an acknowledgement needs this member.
    pub(crate) fn counts(&self) -> bool {
        matches!(self.standing, Standing::InSync | Standing::Joining(_))
    }

    pub(crate) fn in_sync(&self) -> bool {
        matches!(self.standing, Standing::InSync)
    }
}
