//! The frame of a plugin's program: settings from flags and a file, then serving until SIGTERM.

use crate::config::{ConfigError, log_to_stderr};
use crate::serve::{ServeError, Socket, run};
use thiserror::Error;
use tonic::transport::server::Router;

/// Declares the settings of a plugin: each a flag and, with `_` for `-`, a key of the TOML file. `or`
/// fills what the flags left open from the file.
#[macro_export]
macro_rules! settings {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Default, clap::Args, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct $name {
            $($(#[$field_meta])* $field: Option<$type>,)+
        }

        impl $name {
            fn or(self, file: Self) -> Self {
                Self { $($field: self.$field.or(file.$field),)+ }
            }
        }
    };
}

/// Why a plugin ended otherwise than it was told to.
#[derive(Debug, Error)]
pub enum PluginError {
    /// The log filter.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The socket or the server on it.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Something that serves beside the socket.
    #[error("cannot start")]
    Start(#[source] Box<dyn core::error::Error + Send + Sync>),
    /// No threads to run on.
    #[error("tokio runtime")]
    Runtime(#[source] std::io::Error),
}

/// Sends logs to standard error, those that pass `log` (`info` if it is not set), and serves on
/// `endpoint` what `services` makes, until SIGTERM.
///
/// # Errors
/// [`PluginError`].
pub fn serve<F>(
    endpoint: &str,
    log: Option<&str>,
    services: impl FnOnce() -> F,
) -> Result<(), PluginError>
where
    F: Future<Output = Result<Router, PluginError>>,
{
    log_to_stderr(log.unwrap_or("info"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(PluginError::Runtime)?;
    let result = runtime.block_on(async {
        let socket = Socket::bind(endpoint).await?;
        tracing::info!(endpoint, version = env!("CARGO_PKG_VERSION"), "serving");
        run(services().await?, socket).await.map_err(PluginError::from)
    });
    // Operations that outlived their grace are not waited for.
    runtime.shutdown_background();
    result
}
