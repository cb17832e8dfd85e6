//! The NBD server against clients that nobody here wrote.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Connect, Counters, Server, succeed, tool};
use frontend::{Export, Frontend, NbdConnection};
use hostio::clock::boottime;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

const SIZE: u64 = 64 << 20;
const NAME: &str = "6f1d8a52-2f0c-4d15-9a53-0f3a8a4d8f11";

struct Served {
    dir: tempfile::TempDir,
    server: Server,
}

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(SIZE);
        let connect: Connect = |owner, fd, size| -> Box<dyn Frontend> {
            let export = Export { name: NAME.to_owned(), size };
            Box::new(NbdConnection::new(owner, fd, export, boottime()))
        };
        server.listen(UnixListener::bind(dir.path().join("s")).unwrap(), connect);
        Self { dir, server }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///{NAME}?socket={}", self.socket().display())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn counters(&self) -> &Counters {
        &self.server.counters
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(Counters::get(&self.counters().illegal), 0);
        }
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

#[test]
fn nbdinfo_understands_the_export() {
    let served = Served::new();
    let Some(text) = succeed("nbdinfo", &["--json", "--no-content", &served.uri()]) else { return };
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        &format!("\"export-size\": {SIZE}"),
        "\"can_fua\": true",
        "\"can_flush\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_df\": true",
        "\"is_read_only\": false",
        "\"block_size_minimum\": 4096",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let list = succeed("nbdinfo", &["--list", "--json", "--no-content", &served.uri()]).unwrap();
    assert!(list.contains(&format!("\"export-name\": \"{NAME}\"")), "{list}");
    let other = served.uri().replace(NAME, "other");
    assert!(!tool("nbdinfo", &[&other]).unwrap().status.success(), "another name is refused");
    let unnamed = served.uri().replace(NAME, "");
    assert_eq!(succeed("nbdinfo", &["--size", &unnamed]).unwrap().trim(), SIZE.to_string());
}

#[test]
fn nbdcopy_puts_in_and_takes_out_the_same_bytes() {
    let served = Served::new();
    let mut image = noise(SIZE as usize);
    image[1 << 20..9 << 20].fill(0);
    let from = served.file("from", &image);
    let to = served.file("to", &[]);
    if succeed("nbdcopy", &["--flush", &from, &served.uri()]).is_none() {
        return;
    }
    assert!(Counters::get(&served.counters().flushes) > 0);
    succeed("nbdcopy", &["--connections=4", "--requests=64", &served.uri(), &to]).unwrap();
    assert!(std::fs::read(&to).unwrap() == image);
}

#[test]
fn qemu_img_converts_compares_and_informs() {
    let served = Served::new();
    let image = noise(SIZE as usize);
    let from = served.file("from", &image);
    let uri = served.uri();
    if succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &from, &uri]).is_none() {
        return;
    }
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", &from, &uri]).unwrap();
    let info = succeed("qemu-img", &["info", "--output=json", &uri]).unwrap();
    assert!(info.contains(&format!("\"virtual-size\": {SIZE}")), "{info}");
    let mut other = image;
    other[12_345_678] ^= 1;
    std::fs::write(&from, &other).unwrap();
    let compared = tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &from, &uri]).unwrap();
    assert_eq!(compared.status.code(), Some(1), "a difference is found");
}

#[test]
fn qemu_io_writes_zeroes_discards_and_verifies() {
    let served = Served::new();
    let commands = [
        "write -P 0xaa 0 32M",
        "read -P 0xaa 0 32M",
        "write -f -P 0xbb 1M 64k",
        "discard 2M 1M",
        "write -z 4M 1M",
        "write -z -u 6M 1M",
        "flush",
        "read -P 0xaa 0 1M",
        "read -P 0xbb 1M 64k",
        "read -P 0 2M 1M",
        "read -P 0xaa 3M 1M",
        "read -P 0 4M 1M",
        "read -P 0 6M 1M",
        "aio_write -P 0xcc 40M 1M",
        "aio_write -P 0xdd 41M 1M",
        "aio_flush",
        "read -P 0xcc 40M 1M",
        "read -P 0xdd 41M 1M",
    ];
    let uri = served.uri();
    let mut args = vec!["-f", "raw", "-d", "unmap", "-t", "none"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(&uri);
    let Some(text) = succeed("qemu-io", &args) else { return };
    assert!(!text.contains("failed"), "{text}");
    let counters = served.counters();
    for (what, counter) in [
        ("FUA", &counters.fua),
        ("discards", &counters.discards),
        ("zeroes", &counters.zeroes),
        ("flushes", &counters.flushes),
    ] {
        assert!(Counters::get(counter) > 0, "no {what} arrived");
    }
}

#[test]
fn qemu_io_sees_the_devices_errors() {
    let served = Served::new();
    let uri = served.uri();
    for (error, words) in [
        (types::IoError::NoSpace, "No space left on device"),
        (types::IoError::Io, "Input/output error"),
        (types::IoError::Fenced, "Cannot send after transport endpoint shutdown"),
    ] {
        served.server.fail(Some(error));
        for command in ["write 0 4096", "read 0 2M"] {
            let args = ["-f", "raw", "-t", "none", "-c", command, &uri];
            let Some(output) = tool("qemu-io", &args) else { return };
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(text.contains(words), "{error:?}, {command}: {text}");
        }
        served.server.fail(None);
    }
}

#[test]
fn fio_verifies_random_io() {
    let served = Served::new();
    let uri = format!("--uri={}", served.uri());
    let args = [
        "--name=v",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=4k-256k",
        "--iodepth=32",
        "--size=64m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--do_verify=1",
        "--minimal",
    ];
    match tool("fio", &args) {
        None => {}
        Some(output) if String::from_utf8_lossy(&output.stderr).contains("engine nbd not") => {
            eprintln!("skipped: this fio has no nbd engine");
        }
        Some(output) => assert!(output.status.success(), "{output:?}"),
    }
}

#[test]
fn the_nbd_crates_client_reads_its_own_writes() {
    let served = Served::new();
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    let export = nbd::client::handshake(&mut stream, NAME.as_bytes()).unwrap();
    assert_eq!(export.size, SIZE);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let data = noise(3 << 20);
    client.seek(SeekFrom::Start(8192)).unwrap();
    client.write_all(&data).unwrap();
    client.flush().unwrap();
    let mut read = vec![0; data.len()];
    client.seek(SeekFrom::Start(8192)).unwrap();
    client.read_exact(&mut read).unwrap();
    assert!(read == data);
}
