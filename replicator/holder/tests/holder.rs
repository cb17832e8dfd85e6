//! The real program: what it keeps outlives the one who gave it, and not for ever.
#![allow(clippy::unwrap_used)]

use holder::{Device, Holder};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_device-holder");

fn device(volume: &str, directory: &Path) -> Device {
    let mount = directory.join(volume);
    Device { volume: volume.into(), backing: mount.join("volume"), mount, note: "one".into() }
}

fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn text(fd: OwnedFd) -> String {
    let mut file = File::from(fd);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Waits for the end of a holder; it must come, and well.
fn ends(mut child: Child) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if let Some(status) = child.try_wait().unwrap() {
            return assert!(status.success(), "{status}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("the holder did not end");
}

#[test]
fn what_is_kept_outlives_the_connection_and_ends_when_it_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("holder.sock");
    let grace = Duration::from_secs(30);
    let (daemon, child) = Holder::start(Path::new(PROGRAM), &socket, grace).unwrap();
    let (b, a) = (device("b", directory.path()), device("a", directory.path()));
    daemon.keep(&b, file("fd of b").as_fd()).unwrap();
    daemon.keep(&a, file("an earlier a").as_fd()).unwrap();
    daemon.keep(&a, file("fd of a").as_fd()).unwrap();
    daemon.note("b", "two").unwrap();
    assert!(daemon.note("c", "two").unwrap_err().to_string().contains("not kept"));
    drop(daemon);

    let successor = Holder::connect(&socket).unwrap();
    let devices = successor.devices().unwrap();
    let (names, fds): (Vec<Device>, Vec<OwnedFd>) = devices.into_iter().unzip();
    assert_eq!(names, [a, Device { note: "two".into(), ..b }]);
    assert_eq!(fds.into_iter().map(text).collect::<Vec<_>>(), ["fd of a", "fd of b"]);
    successor.forget("a").unwrap();
    successor.forget("a").unwrap();
    successor.forget("b").unwrap();
    assert!(successor.devices().unwrap().is_empty());
    drop(successor);
    ends(child);
    assert!(Holder::connect(&socket).is_err(), "it listens no more");
}

#[test]
fn nobody_is_waited_for_longer_than_the_grace_period() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("holder.sock");
    let grace = Duration::from_secs(1);
    let (daemon, child) = Holder::start(Path::new(PROGRAM), &socket, grace).unwrap();
    let device = device("a", directory.path());
    std::fs::create_dir(&device.mount).unwrap();
    daemon.keep(&device, file("fd").as_fd()).unwrap();
    drop(daemon);
    ends(child);
    assert!(!device.mount.exists(), "what it kept was removed");
}

#[test]
fn sigterm_ends_it_though_a_daemon_is_connected() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("holder.sock");
    let grace = Duration::from_secs(30);
    let (daemon, child) = Holder::start(Path::new(PROGRAM), &socket, grace).unwrap();
    let device = device("a", directory.path());
    std::fs::create_dir(&device.mount).unwrap();
    daemon.keep(&device, file("fd").as_fd()).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    ends(child);
    assert!(!device.mount.exists(), "what it kept was removed");
    assert!(daemon.devices().is_err());
}

/// Connects as soon as the service listens.
fn connect(socket: &Path) -> Holder {
    let begun = Instant::now();
    loop {
        match Holder::connect(socket) {
            Ok(holder) => return holder,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_service_outlasts_what_it_keeps_and_leaves_a_living_daemon_its_devices() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("made/holder.sock");
    let mut service = std::process::Command::new(PROGRAM);
    let service = service.args(["--grace-seconds", "1", "--socket"]).arg(&socket).spawn().unwrap();
    let (a, b) = (device("a", directory.path()), device("b", directory.path()));
    let daemon = connect(&socket);
    daemon.keep(&a, file("a").as_fd()).unwrap();
    daemon.forget("a").unwrap();
    drop(daemon);
    std::fs::create_dir(&b.mount).unwrap();
    let daemon = connect(&socket);
    daemon.keep(&b, file("b").as_fd()).unwrap();
    drop(daemon);
    // Nobody comes back in time: what it keeps is removed, and it stays.
    let begun = Instant::now();
    while b.mount.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the grace period has no end");
        std::thread::sleep(Duration::from_millis(10));
    }
    let daemon = connect(&socket);
    assert!(daemon.devices().unwrap().is_empty());
    std::fs::create_dir(&b.mount).unwrap();
    daemon.keep(&b, file("b").as_fd()).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(service.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    ends(service);
    assert!(b.mount.exists(), "the daemon is alive and serves it");
}

#[test]
fn a_program_that_is_missing_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("holder.sock");
    let missing = directory.path().join("nothing");
    let error = Holder::start(&missing, &socket, Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error}");
}
