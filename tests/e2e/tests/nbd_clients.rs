//! NBD clients that nobody here wrote, against the NBD socket of a real volume with two copies.
#![allow(clippy::unwrap_used)]

use e2e::{lab, volume};
use lab::exec::run;
use std::fs;

const SIZE: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn foreign_nbd_clients_agree_with_us_and_the_copies_stay_equal() {
    let lab = lab(3).await.unwrap();
    let id = volume(&lab, "nbd", SIZE).await.unwrap().volume_id;
    let first = lab.local_client(1).unwrap();
    let attachment = first.attach_volume(&id, "nbd").await.unwrap();
    assert_eq!(attachment.device, "");
    let uri = format!("nbd+unix:///{id}?socket={}", attachment.nbd_socket);

    let info = run("nbdinfo", &["--json", &uri]).unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    for flag in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[flag], true, "{flag}");
    }
    assert_eq!(export["is_read_only"], false);
    let refused = run("nbdinfo", &[&uri.replace(&id, "no-such-export")]).unwrap_err();
    assert!(refused.to_string().contains("nbdinfo"), "{refused}");

    // A file in and out again, over several connections.
    let source = lab.layout.dir.join("source");
    let copy = lab.layout.dir.join("copy");
    let content: Vec<u8> = (0..SIZE / 8).flat_map(|n| (n * 0x9e37_79b9).to_le_bytes()).collect();
    fs::write(&source, &content).unwrap();
    run("nbdcopy", &["--flush", source.to_str().unwrap(), &uri]).unwrap();
    run("nbdcopy", &[&uri, copy.to_str().unwrap()]).unwrap();
    assert!(fs::read(&copy).unwrap() == content, "nbdcopy got other bytes back");

    let image = format!("nbd+unix:///{id}?socket={}", attachment.nbd_socket);
    let io = |commands: &[&str]| {
        let mut all = vec!["-f", "raw", image.as_str()];
        for command in commands {
            all.extend(["-c", command]);
        }
        let said = run("qemu-io", &all).unwrap();
        assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    };
    io(&["write -P 0x5a 1M 256k", "flush", "read -P 0x5a 1M 256k"]);
    io(&["write -f -P 0x11 4M 4k", "read -P 0x11 4M 4k", "write -z 8M 1M", "read -P 0 8M 1M"]);
    io(&["discard 16M 1M", "read -P 0 16M 1M"]);
    run("qemu-img", &["info", &image]).unwrap();

    let uri_option = format!("--uri={uri}");
    let fio = [
        "--name=verify",
        "--ioengine=nbd",
        uri_option.as_str(),
        "--rw=randwrite",
        "--bs=4k",
        "--size=16M",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
        "--output-format=terse",
    ];
    run("fio", &fio).unwrap();

    let compared = first.compare_replicas(&id).await.unwrap();
    assert_eq!((compared.different_blocks, compared.replicas), (0, 2));
    first.detach_volume(&id).await.unwrap();
}
