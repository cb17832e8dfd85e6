//! `csi-node` is killed after each step of a pod's life and in the middle of each: kubelet repeats its
//! calls, and finds what there is.
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use e2e::{TestLab, lab};
use lab::daemons::CSI_NODE;
use lab::kubelet::{Claim, Kubelet};
use nix::sys::signal::Signal;
use proto::csi::Volume;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(60);

/// How many mounts there are at `path`.
fn mounts(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = |line: &&str| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path);
    table.lines().filter(at).count()
}

struct Pod {
    lab: TestLab,
    kubelet: Kubelet,
    volume: Volume,
    fs_type: &'static str,
}

impl Pod {
    async fn restart(&self) {
        let gone = Some(Duration::from_secs(10));
        self.lab.signal(1, CSI_NODE, Signal::SIGKILL, gone).unwrap();
        self.lab.start(1).unwrap();
        self.lab.wait_ready([1]).await.unwrap();
    }

    async fn stage(&self) -> Result<()> {
        self.kubelet.stage(1, &self.volume, self.fs_type, PATIENCE).await.map(drop)
    }

    async fn publish(&self) -> Result<()> {
        self.kubelet.publish(1, &self.volume, self.fs_type).await.map(drop)
    }

    async fn take_down(&self) -> Result<()> {
        self.kubelet.take_down(1, &self.volume, PATIENCE).await.map(drop)
    }

    fn target(&self) -> PathBuf {
        self.lab.layout.target_path(1, &self.volume.volume_id)
    }

    fn staged(&self) -> PathBuf {
        self.lab.layout.staging_path(1, &self.volume.volume_id)
    }

    /// Begins `step`, kills the plugin `pause` milliseconds later, and does the step to its end.
    async fn cut_short(&self, pause: u64, step: impl AsyncFn() -> Result<()>) {
        tokio::select! {
            _ = step() => {}
            () = sleep(Duration::from_millis(pause)) => {}
        }
        self.restart().await;
        step().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_life_survives_restarts_of_the_plugin_at_every_step() {
    let lab = lab(2).await.unwrap();
    let kubelet = Kubelet::new(&lab.layout, lab.controller_node);
    let claim = |name: &str, fs_type: &str| Claim {
        name: name.into(),
        size: 512 << 20,
        fs_type: fs_type.into(),
        parameters: HashMap::new(),
        node: 1,
    };
    let volume = kubelet.create_volume(&claim("restarted", "xfs")).await.unwrap();
    let mut pod = Pod { lab, kubelet, volume, fs_type: "xfs" };

    // Between the steps; each step twice, as kubelet may.
    for _ in 0..2 {
        pod.stage().await.unwrap();
        pod.restart().await;
    }
    for _ in 0..2 {
        pod.publish().await.unwrap();
        pod.restart().await;
    }
    assert_eq!((mounts(&pod.staged()), mounts(&pod.target())), (1, 1));
    fs::write(pod.target().join("ledger"), "row 1").unwrap();
    pod.restart().await;
    assert_eq!(fs::read(pod.target().join("ledger")).unwrap(), b"row 1", "it needs no plugin");
    pod.take_down().await.unwrap();
    pod.restart().await;
    pod.take_down().await.unwrap();
    assert_eq!((mounts(&pod.staged()), mounts(&pod.target())), (0, 0));

    // In the middle of them, mkfs included.
    for (round, pause) in [5, 40, 120, 300].into_iter().enumerate() {
        pod.fs_type = if round % 2 == 0 { "ext4" } else { "xfs" };
        let claim = claim(&format!("cut-short-{round}"), pod.fs_type);
        pod.volume = pod.kubelet.create_volume(&claim).await.unwrap();
        pod.cut_short(pause, || pod.stage()).await;
        pod.cut_short(pause / 4, || pod.publish()).await;
        assert_eq!((mounts(&pod.staged()), mounts(&pod.target())), (1, 1), "{pause} ms");
        fs::write(pod.target().join("ledger"), "row 1").unwrap();
        pod.cut_short(pause / 4, || pod.take_down()).await;
        assert_eq!((mounts(&pod.staged()), mounts(&pod.target())), (0, 0), "{pause} ms");
        pod.stage().await.unwrap();
        pod.publish().await.unwrap();
        assert_eq!(fs::read(pod.target().join("ledger")).unwrap(), b"row 1");
        pod.take_down().await.unwrap();
        pod.kubelet.delete_volume(&pod.volume.volume_id).await.unwrap();
    }
}
