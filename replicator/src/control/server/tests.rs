#![allow(clippy::unwrap_used)]

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_client_that_says_nothing_is_sent_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut accepted = accept(listener);
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut silent = accepted.recv().await.unwrap().unwrap();
    let mut speaking_client = TcpStream::connect(address).await.unwrap();
    let mut speaking = accepted.recv().await.unwrap().unwrap();
    speaking_client.write_all(&[b'x'; PREFACE]).await.unwrap();
    let mut words = [0; PREFACE];
    speaking.read_exact(&mut words).await.unwrap();

    // Only now, so that the sockets above had real time.
    tokio::time::pause();
    let error = silent.read(&mut words).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let mut read = tokio_test_read(&mut speaking);
    assert!(read.is_none(), "who has spoken may be silent");
    read = tokio_test_read(&mut silent);
    assert!(read.is_some());
}

/// One poll of a read: `None` while it waits.
fn tokio_test_read(stream: &mut Guarded<TcpStream>) -> Option<io::Result<()>> {
    let mut bytes = [0; 8];
    let mut buf = ReadBuf::new(&mut bytes);
    let mut context = Context::from_waker(core::task::Waker::noop());
    match Pin::new(stream).poll_read(&mut context, &mut buf) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

#[tokio::test]
async fn connections_are_counted_and_given_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut accepted = accept(listener);
    let mut clients = Vec::new();
    let mut served = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(TcpStream::connect(address).await.unwrap());
        served.push(accepted.recv().await.unwrap().unwrap());
    }
    clients.push(TcpStream::connect(address).await.unwrap());
    let wait = Duration::from_millis(50);
    assert!(tokio::time::timeout(wait, accepted.recv()).await.is_err(), "one too many");
    served.pop();
    assert!(tokio::time::timeout(wait * 100, accepted.recv()).await.unwrap().unwrap().is_ok());
}

#[tokio::test]
async fn a_unix_socket_is_replaced_only_if_nobody_answers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/control.sock");
    let first = listen_unix(&path).await.unwrap();
    assert!(matches!(listen_unix(&path).await, Err(ListenError::InUse { .. })));
    drop(first);
    drop(listen_unix(&path).await.unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(listen_unix(&file).await, Err(ListenError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = listen_tcp(address).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}
