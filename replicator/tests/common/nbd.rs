//! An NBD client on the daemon's socket.

use super::PATIENCE;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A client that nobody here wrote (the `nbd` crate), on a blocking socket.
#[derive(Clone)]
pub struct Client(Arc<Mutex<(UnixStream, nbd::Export)>>);

impl Client {
    pub fn connect(socket: &Path, size: u64) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let export = nbd::client::handshake(&mut stream, b"").unwrap();
        assert_eq!(export.size, size);
        Self(Arc::new(Mutex::new((stream, export))))
    }

    pub async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut nbd::client::NbdClient<&mut UnixStream>) -> T + Send + 'static,
    ) -> T {
        let shared = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let mut guard = shared.lock().unwrap();
            let (stream, export) = &mut *guard;
            let mut client = nbd::client::NbdClient::new(stream, export);
            act(&mut client)
        })
        .await
        .unwrap()
    }

    pub async fn write(&self, offset: u64, byte: u8, len: usize) -> std::io::Result<()> {
        self.with(move |client| {
            client.seek(SeekFrom::Start(offset))?;
            client.write_all(&vec![byte; len])?;
            client.flush()
        })
        .await
    }

    pub async fn flush(&self) -> std::io::Result<()> {
        self.with(|client| client.flush()).await
    }

    /// `bytes` at `offset`, without a flush.
    pub async fn put(&self, offset: u64, bytes: Vec<u8>) -> std::io::Result<()> {
        self.with(move |client| {
            client.seek(SeekFrom::Start(offset))?;
            client.write_all(&bytes)
        })
        .await
    }

    pub async fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        self.with(move |client| {
            client.seek(SeekFrom::Start(offset))?;
            let mut bytes = vec![0; len];
            client.read_exact(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }
}
