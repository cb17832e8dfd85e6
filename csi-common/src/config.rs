//! Settings and logs of a plugin.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing_subscriber::EnvFilter;

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key that is not a setting or a value of the wrong type.
    #[error("config file {}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The log filter cannot be understood.
    #[error(
        "log {filter:?} is not a filter; accepted: error, warn, info, debug, trace, or target=level,…"
    )]
    Log {
        /// What was given.
        filter: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Reads a TOML file of settings; without a file the defaults. Give `T` the attribute
/// `#[serde(deny_unknown_fields)]`, so that a misspelt key is an error.
///
/// # Errors
/// [`ConfigError::Read`], [`ConfigError::Parse`].
pub fn read_config<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, ConfigError> {
    let Some(path) = path else { return Ok(T::default()) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

/// Sends logs to standard error, those that pass `filter`.
///
/// # Errors
/// [`ConfigError::Log`].
pub fn log_to_stderr(filter: &str) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|source| ConfigError::Log { filter: filter.to_owned(), source })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    Ok(())
}
