//! The client against an in-process fake of the Control service, over real sockets.
#![allow(clippy::unwrap_used)]

mod fake;

use super::*;
use fake::{Answer, Fake};
use std::sync::atomic::{AtomicUsize, Ordering};

fn tcp(text: &str) -> Endpoint {
    text.parse().unwrap()
}

#[test]
fn endpoints_parse_or_say_what_is_accepted() {
    let accepted = [
        ("http://10.0.0.1:7420", "http://10.0.0.1:7420"),
        ("http://10.0.0.1:7420/", "http://10.0.0.1:7420"),
        ("10.0.0.1:7420", "http://10.0.0.1:7420"),
        ("[::1]:7420", "http://[::1]:7420"),
        ("unix:///run/h.sock", "unix:///run/h.sock"),
        ("unix:/run/h.sock", "unix:///run/h.sock"),
    ];
    for (text, shown) in accepted {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown, "{text}");
    }
    let long = format!("unix:///{}", "x".repeat(107));
    for text in ["", "localhost", "10.0.0.1", "https://10.0.0.1:1", "unix:relative", &long] {
        let error = text.parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains("accepted: http://IP:PORT"), "{text}: {error}");
    }
    assert!(matches!(Client::new(Vec::<String>::new()), Err(Error::NoEndpoint)));
}

#[test]
fn a_route_prefers_the_leader_then_takes_turns() {
    let (a, b, c) = (tcp("127.0.0.1:1"), tcp("127.0.0.1:2"), tcp("127.0.0.1:3"));
    let both = [a.clone(), b.clone()];

    let mut route = Route::new(Scope::Leader, &both, Some(c.clone()));
    let targets: Vec<_> = (0..4).map(|_| route.target().unwrap()).collect();
    assert_eq!(targets, [c.clone(), a.clone(), b.clone(), a.clone()]);

    let mut route = Route::new(Scope::Local, &both, Some(c.clone()));
    assert_eq!([route.target(), route.target()], [Some(a.clone()), Some(a.clone())]);

    // Redirects: at once twice, with pauses when two members point at each other.
    let mut route = Route::new(Scope::Leader, &both, None);
    let pauses: Vec<_> = (0..4).map(|_| route.redirected(c.clone())).collect();
    assert_eq!(pauses[..2], [Duration::ZERO; 2]);
    assert!(pauses[2..].iter().all(|pause| !pause.is_zero()));
    assert_eq!(route.target(), Some(c));

    // Pauses grow once all had their turn, and stay bounded.
    let mut route = Route::new(Scope::Leader, &both, None);
    let pauses: Vec<_> = (0..40).map(|_| route.unavailable().as_millis()).collect();
    assert_eq!(pauses[..6], [25, 25, 50, 50, 100, 100]);
    assert_eq!(pauses[39], 400);
}

#[tokio::test]
async fn a_redirect_is_followed_and_remembered() {
    let leader = Fake::tcp(Answer::Volume).await;
    let follower = Fake::tcp(Answer::Redirect(leader.address())).await;
    let client = Client::new([follower.address()]).unwrap();
    for _ in 0..3 {
        assert_eq!(client.get_volume("v").await.unwrap().volume_id, "v");
    }
    assert_eq!(follower.calls.load(Ordering::Relaxed), 1);
    assert_eq!(leader.calls.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_dead_leader_is_forgotten() {
    let leader = Fake::tcp(Answer::Volume).await;
    let follower = Fake::tcp(Answer::Redirect(leader.address())).await;
    let client = Client::new([follower.address()]).unwrap();
    client.get_volume("v").await.unwrap();
    leader.stop().await;
    let successor = Fake::tcp(Answer::Volume).await;
    follower.set(Answer::Redirect(successor.address()));
    client.get_volume("v").await.unwrap();
    assert_eq!(successor.calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn unavailable_is_retried_until_the_deadline() {
    let server = Fake::tcp(Answer::UnavailableThen(3)).await;
    let client = Client::new([server.address()]).unwrap();
    client.get_volume("v").await.unwrap();
    assert_eq!(server.calls.load(Ordering::Relaxed), 4);

    server.set(Answer::UnavailableThen(usize::MAX));
    let client = client.with_deadline(Duration::from_millis(200));
    let error = client.get_volume("v").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { last: Some(_), .. }), "{error}");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.to_string().contains("no leader now"), "{error}");
}

/// A snapshot id is one attempt.
#[tokio::test]
async fn what_must_not_be_done_twice_is_asked_once() {
    let server = Fake::tcp(Answer::Volume).await;
    for endpoint in ["127.0.0.1:1".to_owned(), server.address()] {
        let client = Client::new([endpoint]).unwrap();
        // A node that is not there, and one that does not offer it.
        let error = client.take_snapshot("v", "s").await.unwrap_err();
        assert!(matches!(error, Error::Status { .. }), "{error}");
    }
    let (client, calls) = (Client::new(["127.0.0.1:1"]).unwrap(), AtomicUsize::new(0));
    let attempt = |_| {
        calls.fetch_add(1, Ordering::Relaxed);
        async { Err::<Response<()>, _>(Status::unavailable("perhaps it was done")) }
    };
    let error = client.call("Once", Scope::Once, Duration::ZERO, attempt).await.unwrap_err();
    assert_eq!((error.code(), calls.load(Ordering::Relaxed)), (Code::Unavailable, 1));
}

#[tokio::test]
async fn a_refusal_keeps_its_code_and_words() {
    let server = Fake::tcp(Answer::NotFound).await;
    let client = Client::new([server.address()]).unwrap();
    let error = client.get_volume("v").await.unwrap_err();
    assert_eq!((error.code(), error.message().as_str()), (Code::NotFound, "no volume v"));
    assert_eq!(error.to_status().code(), Code::NotFound);
    assert_eq!(server.calls.load(Ordering::Relaxed), 1);
    // FAILED_PRECONDITION without a redirect is an answer as well, and local calls never move.
    server.set(Answer::Redirect("127.0.0.1:1".to_owned()));
    let error = client.get_attachment("v").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_silent_endpoint_costs_three_seconds_at_most() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Fake::tcp(Answer::Volume).await;
    let client = Client::new([silent.local_addr().unwrap().to_string(), server.address()]).unwrap();
    let begin = Instant::now();
    client.get_volume("v").await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn unix_sockets_work_and_may_come_later() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let client = Client::new([format!("unix://{}", path.display())]).unwrap();
    let waiting = tokio::spawn(async move { client.get_volume("v").await });
    tokio::task::yield_now().await;
    let _server = Fake::unix(&path, Answer::Volume).await;
    assert_eq!(waiting.await.unwrap().unwrap().volume_id, "v");
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let client = Client::new(["127.0.0.1:1"]).unwrap().with_deadline(Duration::from_millis(100));
    assert_eq!(client.get_volume("v").await.unwrap_err().code(), Code::Unavailable);
}
