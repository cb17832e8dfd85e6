//! Raft over raft-rs, as a state machine over [`crate::LogStore`] and [`crate::AppliedStore`].

mod api;

pub use api::{Change, ChangeError, Input, MAX_VOTERS, Output, ProposeError, RaftStatus, Role};
