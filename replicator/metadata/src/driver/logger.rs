//! raft-rs logs through slog; this hands it on to tracing.

use core::fmt::{self, Write};
use slog::{Drain, Key, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

struct ToTracing;

#[derive(Default)]
struct Pairs(String);

impl Serializer for Pairs {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(|_| slog::Error::Other)
    }
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let enabled = match record.level() {
            Level::Critical | Level::Error => tracing::enabled!(tracing::Level::ERROR),
            Level::Warning => tracing::enabled!(tracing::Level::WARN),
            Level::Info => tracing::enabled!(tracing::Level::DEBUG),
            Level::Debug | Level::Trace => tracing::enabled!(tracing::Level::TRACE),
        };
        if !enabled {
            return Ok(());
        }
        let mut pairs = Pairs::default();
        // A value that cannot be shown is not worth an error here.
        let _ = slog::KV::serialize(&record.kv(), record, &mut pairs);
        let _ = slog::KV::serialize(values, record, &mut pairs);
        let (message, pairs) = (record.msg(), pairs.0);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!("raft: {message}{pairs}"),
            Level::Warning => tracing::warn!("raft: {message}{pairs}"),
            // What raft-rs calls informative is of use only to those who debug Raft.
            Level::Info => tracing::debug!("raft: {message}{pairs}"),
            Level::Debug | Level::Trace => tracing::trace!("raft: {message}{pairs}"),
        }
        Ok(())
    }
}

pub(super) fn logger() -> Logger {
    Logger::root(ToTracing, o!())
}
