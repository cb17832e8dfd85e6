//! Bad input: each gets a clear refusal, and the cluster goes on.
#![allow(clippy::unwrap_used)]

use e2e::{TestLab, in_namespace, lab, volume};
use lab::exec::run;
use lab::kubelet::{self, Claim, Kubelet};
use lab::{Lab, pool};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use tonic::Code;

const ANOTHER_CLUSTER: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";

/// Runs the replicator program and returns what it says when it refuses.
fn refusal(lab: &Lab, args: &[&str]) -> String {
    let program = lab.programs.join("replicator");
    let mut all = vec!["20", program.to_str().unwrap()];
    all.extend(args);
    let error = run("timeout", &all).unwrap_err().to_string();
    assert!(!error.contains("status: 124"), "it did not end: {error}");
    // Its own words only: the command line holds words that are looked for, too.
    let (_, words) = error.split_once("replicator: ").unwrap();
    words.to_owned()
}

fn says(text: &str, words: &[&str]) {
    let lower = text.to_lowercase();
    assert!(words.iter().any(|word| lower.contains(word)), "{text:?} says none of {words:?}");
}

/// A configuration like that of node 1 with some lines replaced.
fn config(lab: &Lab, name: &str, replace: &[(&str, String)]) -> String {
    let text = fs::read_to_string(lab::daemons::config_file(&lab.layout, 1)).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (key, value) in replace {
        // An address of the node stands twice: its own and in the list of peers.
        let starts = format!("{key} = ");
        let mut found = lines.iter_mut().filter(|line| line.starts_with(&starts)).peekable();
        assert!(found.peek().is_some(), "no {key} in the configuration");
        found.for_each(|line| *line = format!("{starts}\"{value}\""));
    }
    let path = lab.layout.dir.join(name);
    fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn spare_device(lab: &Lab, name: &str) -> String {
    let file = lab.layout.dir.join(name);
    run("truncate", &["-s", "2G", file.to_str().unwrap()]).unwrap();
    pool::attach(&file).unwrap().to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_ours_is_refused_and_left_alone() {
    let lab = lab(1).await.unwrap();
    let data = lab.layout.dir.join("other-data");
    let data = data.to_str().unwrap().to_owned();
    let other = |pool: &str, name: &str| {
        let socket = lab.layout.dir.join("other.sock").to_str().unwrap().to_owned();
        let replace = [
            ("pool", pool.to_owned()),
            ("data_dir", data.clone()),
            ("control_socket", socket),
            ("control_address", "127.0.0.1:17420".into()),
            ("data_address", "127.0.0.1:17421".into()),
        ];
        config(&lab, name, &replace)
    };

    let blank = spare_device(&lab, "blank");
    let said = refusal(&lab, &["--config", &other(&blank, "blank.toml")]);
    says(&said, &["pool init", "blank", "not a pool", "superblock"]);

    let foreign = spare_device(&lab, "foreign");
    run("mkfs.ext4", &["-q", &foreign]).unwrap();
    let said = refusal(&lab, &["pool", "init", "--pool", &foreign, "--cluster", &lab.cluster]);
    says(&said, &["not blank", "force", "in use", "foreign"]);
    run("fsck.ext4", &["-nf", &foreign]).unwrap();
    let said = refusal(&lab, &["--config", &other(&foreign, "foreign.toml")]);
    says(&said, &["pool", "superblock", "foreign"]);

    let theirs = spare_device(&lab, "theirs");
    let program = lab.programs.join("replicator");
    let init = ["pool", "init", "--pool", &theirs, "--cluster", ANOTHER_CLUSTER];
    run(program.to_str().unwrap(), &init).unwrap();
    let said = refusal(&lab, &["--config", &other(&theirs, "theirs.toml")]);
    says(&said, &["another cluster", "cluster"]);
    let said = refusal(&lab, &["pool", "init", "--pool", &theirs, "--cluster", &lab.cluster]);
    says(&said, &["not blank", "force", "already"]);
    let said = refusal(&lab, &["pool", "wipe", "--pool", &theirs, "--cluster", &lab.cluster]);
    says(&said, &["another cluster", "cluster"]);
    let wipe = ["pool", "wipe", "--pool", &theirs, "--cluster", ANOTHER_CLUSTER];
    run(program.to_str().unwrap(), &wipe).unwrap();
    let said = refusal(&lab, &["--config", &other(&theirs, "theirs.toml")]);
    says(&said, &["blank", "superblock"]);
    run(program.to_str().unwrap(), &init).unwrap();

    let used = fs::read_to_string(lab::daemons::config_file(&lab.layout, 1)).unwrap();
    let used = used.lines().find_map(|line| line.strip_prefix("pool = ")).unwrap();
    let used = used.trim_matches('"').to_owned();
    let said = refusal(&lab, &["--config", &other(&used, "used.toml")]);
    says(&said, &["in use", "locked", "busy", "another process"]);
    let said =
        refusal(&lab, &["pool", "init", "--force", "--pool", &used, "--cluster", &lab.cluster]);
    says(&said, &["in use", "locked", "busy", "another process"]);
    let said = refusal(&lab, &["pool", "wipe", "--pool", &used, "--cluster", &lab.cluster]);
    says(&said, &["in use", "locked", "busy", "another process"]);

    let absent = refusal(&lab, &["--config", &other("/dev/no-such-device", "absent.toml")]);
    says(&absent, &["/dev/no-such-device"]);
    lab.wait_ready([1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_one_data_directory_is_refused() {
    let lab = lab(1).await.unwrap();
    let pool = spare_device(&lab, "second");
    let program = lab.programs.join("replicator");
    let init = ["pool", "init", "--pool", &pool, "--cluster", &lab.cluster];
    run(program.to_str().unwrap(), &init).unwrap();
    let socket = lab.layout.dir.join("second.sock").to_str().unwrap().to_owned();
    let replace = [
        ("pool", pool),
        ("control_socket", socket),
        ("control_address", "127.0.0.1:17420".into()),
        ("data_address", "127.0.0.1:17421".into()),
    ];
    let said = refusal(&lab, &["--config", &config(&lab, "second.toml", &replace)]);
    says(&said, &["in use", "locked", "another"]);
    let data = lab.layout.data_dir(1);
    says(&said, &[data.to_str().unwrap()]);
    lab.wait_ready([1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_a_volume_that_a_live_node_holds_is_refused_by_name() {
    let lab = lab(3).await.unwrap();
    let kubelet = Kubelet::new(&lab.layout, lab.controller_node);
    let claim = |name: &str, parameters: &[(&str, &str)]| Claim {
        name: name.into(),
        size: 64 << 20,
        fs_type: "ext4".into(),
        parameters: parameters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        node: 1,
    };
    let volume = kubelet.create_volume(&claim("held", &[("repl", "2")])).await.unwrap();
    let again = kubelet.create_volume(&claim("held", &[("repl", "2")])).await.unwrap();
    assert_eq!(volume.volume_id, again.volume_id);
    kubelet.stage_once(1, &volume, "ext4").await.unwrap();
    kubelet.stage_once(1, &volume, "ext4").await.unwrap();
    for _ in 0..2 {
        let error = kubelet.stage_once(2, &volume, "ext4").await.unwrap_err();
        assert_eq!(kubelet::code(&error), Some(Code::FailedPrecondition), "{error:#}");
        says(&format!("{error:#}"), &["n1", "node 1"]);
    }
    for (parameters, words) in [
        (vec![("repl", "9")], vec!["repl"]),
        (vec![("repl", "two")], vec!["repl"]),
        (vec![("replicas", "2")], vec!["replicas"]),
        (vec![("repl", "2"), ("priority_io", "fastest")], vec!["priority_io"]),
    ] {
        let error = kubelet.create_volume(&claim("refused", &parameters)).await.unwrap_err();
        assert_eq!(kubelet::code(&error), Some(Code::InvalidArgument), "{parameters:?}: {error:#}");
        says(&format!("{error:#}"), &words);
    }
    let known = lab.client(1).unwrap().list_volumes(0, "").await.unwrap().volumes;
    assert_eq!(known.len(), 1, "a refused call made nothing");
    kubelet.take_down(1, &volume, Duration::from_secs(30)).await.unwrap();
    kubelet.take_down(1, &volume, Duration::from_secs(30)).await.unwrap();
    kubelet.delete_volume(&volume.volume_id).await.unwrap();
    kubelet.delete_volume(&volume.volume_id).await.unwrap();
    assert_eq!(lab.client(1).unwrap().list_volumes(0, "").await.unwrap().volumes.len(), 0);
}

/// What strangers say to a port.
fn nonsense() -> Vec<Vec<u8>> {
    let noise: Vec<u8> =
        (0..8192_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    vec![
        Vec::new(),
        vec![0; 1],
        vec![0; 4096],
        vec![0xff; 65_536],
        noise,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"PRI * HT".to_vec(),
        b"IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff".to_vec(),
    ]
}

fn talk(mut stream: impl Read + Write, words: &[u8]) {
    // The other side may hang up at any point: that is its right.
    let _ = stream.write_all(words);
    let _ = stream.read(&mut [0; 512]);
}

fn unix_ports(lab: &TestLab, nbd: &str) -> Vec<PathBuf> {
    vec![
        lab.layout.control_socket(1),
        lab.layout.csi_socket(1),
        lab.layout.controller_socket(lab.controller_node),
        PathBuf::from(nbd),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_and_silence_on_every_port_disturb_nobody() {
    let lab = lab(3).await.unwrap();
    let id = volume(&lab, "disturbed", 64 << 20).await.unwrap().volume_id;
    let first = lab.local_client(1).unwrap();
    let attachment = first.attach_volume(&id, "nbd").await.unwrap();
    let uri = format!("nbd+unix:///{id}?socket={}", attachment.nbd_socket);

    let patience = Some(Duration::from_millis(200));
    let mut silent_unix = Vec::new();
    for path in unix_ports(&lab, &attachment.nbd_socket) {
        silent_unix.push(UnixStream::connect(&path).unwrap());
        for words in nonsense() {
            let stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(patience).unwrap();
            stream.set_write_timeout(patience).unwrap();
            talk(stream, &words);
        }
    }
    let ports: Vec<SocketAddr> = vec![
        lab.layout.control_address(1),
        lab.layout.data_address(1),
        lab.layout.control_address(2),
        lab.layout.data_address(2),
    ];
    let silent_tcp = in_namespace(&lab.layout.hub(), move || {
        let mut silent = Vec::new();
        for port in ports {
            silent.push(TcpStream::connect(port)?);
            for words in nonsense() {
                let stream = TcpStream::connect(port)?;
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)?;
                talk(stream, &words);
            }
        }
        Ok(silent)
    })
    .unwrap();

    // With the silent ones still there, everything works.
    lab.wait_ready(1..=3).await.unwrap();
    let image = ["-f", "raw", uri.as_str(), "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M"];
    run("qemu-io", &image).unwrap();
    let compared = first.compare_replicas(&id).await.unwrap();
    assert_eq!((compared.different_blocks, compared.replicas), (0, 2));
    let known = lab.client(1).unwrap().get_volume(&id).await.unwrap();
    assert!(!known.degraded);
    drop((silent_unix, silent_tcp));
    first.detach_volume(&id).await.unwrap();
}
