//! The lab itself: two side by side, and nothing stays, whatever happened to the command.
#![allow(clippy::unwrap_used)]

use e2e::{end, fresh_dir, lab_beside, turn};
use lab::exec::run;
use lab::layout::{Layout, number_of_namespace};
use lab::process::{ProcessId, in_network_namespace, kill_all, wait_until};
use lab::state::{Registry, State, namespaces};
use lab::{daemons, pool};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Everything of a lab that can still be seen on the machine.
fn remains(layout: &Layout) -> Vec<String> {
    let mut found = Vec::new();
    let ours = |name: &&String| number_of_namespace(name) == Some(layout.number);
    found.extend(namespaces().iter().filter(ours).cloned());
    let devices = pool::loop_devices().unwrap();
    let below = devices.iter().filter(|device| device.is_below(&layout.dir));
    found.extend(below.map(|device| device.device.display().to_string()));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let dir = layout.dir.to_str().unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(dir)).map(str::to_owned));
    if layout.dir.exists() {
        found.push(dir.to_owned());
    }
    if Registry::default().list().unwrap().contains_key(&layout.number) {
        found.push(format!("registry entry {}", layout.number));
    }
    found
}

fn holdfast() -> std::path::PathBuf {
    daemons::programs().unwrap().join(daemons::HOLDFAST)
}

fn layout_of(dir: &Path) -> Option<Layout> {
    let labs = Registry::default().list().unwrap();
    let number = labs.iter().find(|(_, known)| known.as_path() == dir).map(|(number, _)| *number);
    number.map(|number| Layout { number, dir: dir.to_path_buf() })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_labs_side_by_side_do_not_disturb_each_other() {
    let _turn = turn().await;
    let one = lab_beside(1).await.unwrap();
    let two = lab_beside(1).await.unwrap();
    assert_ne!(one.layout.number, two.layout.number);
    assert_ne!(one.cluster, two.cluster);
    one.cut(1).unwrap();
    one.kill(1).unwrap();
    assert!(
        one.local_client(1)
            .unwrap()
            .with_deadline(Duration::from_secs(1))
            .get_node()
            .await
            .is_err()
    );
    two.wait_ready([1]).await.unwrap();
    let node = two.local_client(1).unwrap().get_node().await.unwrap();
    assert_eq!(node.cluster_id, two.cluster);
    one.down().unwrap();
    assert_eq!(remains(&one.layout), Vec::<String>::new());
    two.wait_ready([1]).await.unwrap();
    two.down().unwrap();
    assert_eq!(remains(&two.layout), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_works_by_hand_and_down_leaves_nothing() {
    let _turn = turn().await;
    let dir = fresh_dir();
    let program = holdfast();
    let program = program.to_str().unwrap();
    let lab = |args: &[&str]| {
        let mut all = vec!["lab"];
        all.extend(args);
        all.extend(["--dir", dir.to_str().unwrap()]);
        run(program, &all)
    };
    let said = lab(&["up", "--nodes", "3"]).unwrap();
    let layout = layout_of(&dir).unwrap();
    for shown in [layout.csi_socket(2), layout.control_socket(3), layout.controller_socket(3)] {
        assert!(said.contains(shown.to_str().unwrap()), "{said}");
    }
    assert!(lab(&["up"]).unwrap_err().to_string().contains("lab down"));
    assert!(lab(&["cut", "7"]).unwrap_err().to_string().contains("nodes 1 to 3"));
    lab(&["cut", "2"]).unwrap();
    assert!(lab(&["status"]).unwrap().contains("CUT OFF"));
    lab(&["heal", "2"]).unwrap();
    lab(&["kill", "2"]).unwrap();
    assert!(lab(&["status"]).unwrap().contains("replicator down"));
    lab(&["start", "2"]).unwrap();

    let asked = |args: &[&str]| {
        let mut all = vec!["--lab", dir.to_str().unwrap()];
        all.extend(args);
        run(program, &all)
    };
    asked(&["volume", "create", "by-hand", "--size", "64MiB", "--repl", "2"]).unwrap();
    assert!(asked(&["volume", "list"]).unwrap().contains("by-hand"));
    let attached = asked(&["--json", "volume", "attach", "by-hand"]).unwrap();
    let attached: serde_json::Value = serde_json::from_str(&attached).unwrap();
    let device = attached["device"].as_str().unwrap().to_owned();
    run("mkfs.xfs", &["-q", "-f", &device])
        .unwrap_or_else(|_| run("mkfs.ext4", &["-q", &device]).unwrap());
    let mount = dir.join("by-hand");
    fs::create_dir(&mount).unwrap();
    run("mount", &[device.as_str(), mount.to_str().unwrap()]).unwrap();
    fs::write(mount.join("file"), vec![1; 1 << 20]).unwrap();
    let status = asked(&["--json", "cluster", "status"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3));
    assert!(asked(&["events"]).unwrap().contains("attached"));

    // In use and mounted: down ends it all the same.
    lab(&["down"]).unwrap();
    assert_eq!(remains(&layout), Vec::<String>::new());
    assert!(
        !Path::new(&format!("/sys/block/{}/loop", device.trim_start_matches("/dev/"))).exists()
    );
    lab(&["down"]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn down_finds_all_of_a_lab_whose_command_was_killed_at_any_point() {
    let _turn = turn().await;
    for pause in [0, 40, 120, 300, 700] {
        let dir = fresh_dir();
        let mut up = Command::new(holdfast())
            .args(["lab", "up", "--dir", dir.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(wait_until(Duration::from_secs(10), || layout_of(&dir).is_some()));
        std::thread::sleep(Duration::from_millis(pause));
        let process = ProcessId::of(i32::try_from(up.id()).unwrap()).unwrap();
        kill_all(&[process], Duration::from_secs(5)).unwrap();
        // Collected by kill_all already.
        let _ = up.wait();
        let layout = layout_of(&dir).unwrap();
        run(holdfast().to_str().unwrap(), &["lab", "down", "--dir", dir.to_str().unwrap()])
            .unwrap();
        assert_eq!(remains(&layout), Vec::<String>::new(), "killed after {pause} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_up_cleans_up_after_itself() {
    let _turn = turn().await;
    let dir = fresh_dir();
    let mut up = Command::new(holdfast())
        .args(["lab", "up", "--dir", dir.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let daemons =
        || State::load(&dir).ok().flatten().is_some_and(|state| !state.daemons.is_empty());
    assert!(wait_until(Duration::from_secs(20), daemons));
    let layout = layout_of(&dir).unwrap();
    let process = ProcessId::of(i32::try_from(up.id()).unwrap()).unwrap();
    process.signal(nix::sys::signal::Signal::SIGINT).unwrap();
    let succeeded = up.wait().unwrap().success();
    let left = remains(&layout);
    let hub = in_network_namespace(&Layout::namespace_path(&layout.hub())).unwrap();
    // Whatever is found below, this test leaves nothing behind.
    end(&layout).unwrap();
    assert_eq!((succeeded, left, hub), (false, vec![], vec![]));
}
