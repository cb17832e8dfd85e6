//! The record of failovers as Prometheus reads it (text format 0.0.4), on an address of its own.
//!
//! All instances tell the same, because Raft does: add nothing up over instances.

use client::Client;
use client::record::{Failover, STEPS, learn};
use core::fmt::Write as _;
use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// Before a stream of events that broke is asked for again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a scrape may take.
const SCRAPE: Duration = Duration::from_secs(5);
/// Longest request that is read, in bytes; nothing of it matters.
const REQUEST: usize = 8 << 10;

/// What is known of failovers.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<Vec<Failover>>>);

impl Metrics {
    /// Follows what the cluster tells of failovers, for ever.
    pub async fn follow(self, cluster: Client) {
        loop {
            if let Ok(mut events) = cluster.watch_events(0, "").await {
                // The node that is asked begins with everything that it remembers.
                let mut all = Vec::new();
                while let Ok(Some(event)) = events.message().await {
                    if learn(&mut all, &event) {
                        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all.clone();
                    }
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn render(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from(
            "# HELP holdfast_failovers Volumes taken from lost nodes, as far as the cluster remembers.\n\
             # TYPE holdfast_failovers gauge\n",
        );
        let _ = writeln!(text, "holdfast_failovers {}", all.len());
        text += "# HELP holdfast_failover_step_seconds Seconds from the first known step of a failover to this one.\n\
                 # TYPE holdfast_failover_step_seconds summary\n";
        for step in STEPS {
            let seconds: Vec<f64> = all.iter().filter_map(|f| f.seconds(step)).collect();
            let name = step.trim_start_matches("failover_");
            let (sum, count) = (seconds.iter().sum::<f64>(), seconds.len());
            let _ = writeln!(text, "holdfast_failover_step_seconds_sum{{step=\"{name}\"}} {sum}");
            let _ =
                writeln!(text, "holdfast_failover_step_seconds_count{{step=\"{name}\"}} {count}");
        }
        text
    }

    /// Serves them to whoever connects, for ever.
    ///
    /// # Errors
    /// An address that cannot be bound.
    pub async fn serve(self, address: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let metrics = self.clone();
                    tokio::spawn(timeout(SCRAPE, async move { metrics.answer(stream).await }));
                }
                Err(error) => {
                    tracing::warn!(%error, "metrics: a connection was not accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whatever is asked, this is the answer.
    async fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut request = Vec::new();
        while request.len() < REQUEST && !request.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut request).await? == 0 {
                break;
            }
        }
        let body = self.render();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use client::api::Event;

    #[tokio::test]
    async fn a_scrape_tells_each_step() {
        let metrics = Metrics::default();
        for (kind, ms) in [("failover_lost", 1_000), ("failover_sealed", 1_250)] {
            let (kind, message) = (kind.into(), ms.to_string());
            let event = Event { kind, message, epoch: 2, ..Event::default() };
            learn(&mut metrics.0.lock().unwrap(), &event);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let (stream, _) = listener.accept().await.unwrap();
        metrics.answer(stream).await.unwrap();
        let answer = asked.await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains("200 OK") && head.contains(&format!("Content-Length: {}", body.len()))
        );
        for line in [
            "holdfast_failovers 1",
            "holdfast_failover_step_seconds_sum{step=\"sealed\"} 0.25",
            "holdfast_failover_step_seconds_count{step=\"sealed\"} 1",
            "holdfast_failover_step_seconds_count{step=\"written\"} 0",
        ] {
            assert!(body.lines().any(|found| found == line), "{line}: {body}");
        }
    }
}
