//! The client process.

use super::Files;
use crate::journal::Journal;
use anyhow::{Context as _, Result};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{interval, sleep, timeout};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};

/// Between two attempts to connect, and between two looks at where the database is.
const RETRY: Duration = Duration::from_millis(50);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const INSERT: &str = "insert into ledger values ($1, $2)";

/// What the client process is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Directory of its files; `target` in it holds the database's IP:PORT.
    #[arg(long)]
    pub dir: PathBuf,
    /// Connections, each inserting one row after the other.
    #[arg(long, default_value_t = 2)]
    pub clients: u32,
}

/// Inserts rows until SIGTERM. A row whose outcome is unknown is not sent again.
///
/// # Errors
/// If its own files fail; never because of the database.
pub async fn run(arguments: Arguments) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let files = Files::new(&arguments.dir);
    let mut clients = JoinSet::new();
    for client in 0..arguments.clients {
        clients.spawn(insert_for_ever(files.clone(), client));
    }
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        Some(ended) = clients.join_next() => ended.context("a ledger client panicked")?,
    }
}

async fn insert_for_ever(files: Files, client: u32) -> Result<()> {
    let mut sent = Journal::open(&files.sent(client))?;
    let mut acknowledged = Journal::open(&files.acknowledged(client))?;
    let mut connections = Journal::open(&files.connections())?;
    let number = i32::try_from(client).context("client number")?;
    let mut seq: i64 = 0;
    loop {
        let Some(target) = target(&files) else {
            sleep(RETRY).await;
            continue;
        };
        let Ok(Ok(database)) = timeout(CONNECT_TIMEOUT, connect(target)).await else {
            sleep(RETRY).await;
            continue;
        };
        connections.note(&format!("{client} {target}"))?;
        loop {
            seq += 1;
            sent.note(&format!("{client} {seq}"))?;
            let row: [&(dyn ToSql + Sync); 2] = [&number, &seq];
            let outcome = tokio::select! {
                outcome = database.execute(INSERT, &row) => outcome,
                // The connection to where the database was may stay silent for ever.
                () = moved(&files, target) => break,
            };
            if outcome.is_err() {
                break;
            }
            block_in_place(|| acknowledged.note_durably(&format!("{client} {seq} {target}")))?;
        }
    }
}

fn target(files: &Files) -> Option<SocketAddr> {
    fs::read_to_string(files.target()).ok()?.trim().parse().ok()
}

async fn moved(files: &Files, from: SocketAddr) {
    let mut looks = interval(RETRY);
    while target(files) == Some(from) {
        looks.tick().await;
    }
}

async fn connect(target: SocketAddr) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::Config::new()
        .host(target.ip().to_string())
        .port(target.port())
        .user("postgres")
        .dbname("postgres")
        .application_name("ledger")
        .connect(NoTls)
        .await?;
    // Ends when the client is dropped; its error reaches the client's calls.
    tokio::spawn(connection);
    Ok(client)
}
