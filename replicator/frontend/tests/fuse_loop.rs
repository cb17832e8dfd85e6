//! FUSE with a loop device on it, against the running kernel. Needs root.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Counters, Filesystem, Mounted, succeed};
use hostio::loopdev::{self, LoopDevice};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use types::BufMut;

const SIZE: u64 = 128 << 20;

fn pattern(seed: u64, len: usize) -> BufMut {
    let mut buf = BufMut::with_len(len);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for chunk in buf.as_mut_slice().chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    buf
}

#[test]
fn the_directory_shows_one_file_of_the_volumes_size() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let names: Vec<_> =
        mounted.dir.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [mounted.file().file_name().unwrap()]);
    let file = mounted.file();
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    assert!(!mounted.dir.path().join("other").exists());
    let open = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    assert!(open.set_len(SIZE / 2).is_err(), "the size is not the file's to change");
    assert_eq!(open.read_at(&mut [0; 10], SIZE).unwrap(), 0, "the end of the file");
    for (offset, len) in [(1, 4096), (0, 100), (4096, 4097), (SIZE, 4096), (SIZE - 4096, 8192)] {
        let written = open.write_at(&vec![1; len], offset);
        assert!(written.is_err() || written.is_ok_and(|n| n < len), "{offset}+{len}");
    }
    assert_eq!(Counters::get(&mounted.server.counters.illegal), 0);
}

#[test]
fn a_loop_device_does_direct_io_and_reads_what_was_written() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    assert!(attached.device().direct_io(), "the kernel dropped direct I/O");
    let found = loopdev::find_by_backing(&mounted.file()).unwrap();
    assert_eq!(found, std::slice::from_ref(&attached.path));

    let direct = attached.open(true);
    assert_eq!((&direct).seek(SeekFrom::End(0)).unwrap(), SIZE);
    for (seed, len, offset) in
        [(1, 4096, 0), (2, 65536, 4096), (3, 1 << 20, 1 << 20), (4, 3 << 20, SIZE - (3 << 20))]
    {
        let written = pattern(seed, len);
        direct.write_all_at(written.as_slice(), offset).unwrap();
        let mut read = BufMut::zeroed(len);
        direct.read_exact_at(read.as_mut_slice(), offset).unwrap();
        assert!(read.as_slice() == written.as_slice(), "{len} at {offset}");
    }
    assert!(direct.write_at(pattern(0, 512).as_slice(), 0).is_err(), "less than a block");

    // Buffered: what a later direct read sees after the flush is what was written.
    let mut buffered = attached.open(false);
    buffered.seek(SeekFrom::Start(8 << 20)).unwrap();
    let written = pattern(5, 5_000_000);
    buffered.write_all(written.as_slice()).unwrap();
    let flushes = Counters::get(&mounted.server.counters.flushes);
    buffered.sync_data().unwrap();
    assert!(Counters::get(&mounted.server.counters.flushes) > flushes, "the flush arrived");
    let mut read = BufMut::zeroed(4_997_120);
    direct.read_exact_at(read.as_mut_slice(), 8 << 20).unwrap();
    assert!(read.as_slice() == &written.as_slice()[..read.len()]);
    assert_eq!(Counters::get(&mounted.server.counters.illegal), 0);
}

#[test]
fn discard_and_zeroes_reach_the_device() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    let direct = attached.open(true);
    let counters = &mounted.server.counters;
    for (how, counter) in [("-o", None), ("-z", Some(&counters.zeroes))] {
        direct.write_all_at(pattern(9, 1 << 20).as_slice(), 0).unwrap();
        let before = [&counters.discards, &counters.zeroes].map(Counters::get);
        let args = if how == "-z" {
            vec!["-z", "-o", "4096", "-l", "65536", attached.text()]
        } else {
            vec!["-o", "4096", "-l", "65536", attached.text()]
        };
        if succeed("blkdiscard", &args).is_none() {
            return;
        }
        let after = [&counters.discards, &counters.zeroes].map(Counters::get);
        assert_ne!(before, after, "{how} did not arrive");
        if counter.is_none() {
            assert!(after[0] > before[0], "a discard arrives as one");
        }
        let mut read = BufMut::with_len(1 << 20);
        direct.read_exact_at(read.as_mut_slice(), 0).unwrap();
        let mut expected = pattern(9, 1 << 20);
        expected.as_mut_slice()[4096..69632].fill(0);
        assert!(read.as_slice() == expected.as_slice(), "{how}");
    }
}

#[test]
fn ext4_lives_on_it() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    if succeed("mkfs.ext4", &["-q", "-E", "nodiscard", attached.text()]).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    succeed("mount", &["-t", "ext4", attached.text(), at]).unwrap();
    let filesystem = Filesystem(dir.path().to_owned());
    let written = pattern(11, 3_333_333);
    for name in ["a", "b"] {
        let mut file = File::create(dir.path().join(name)).unwrap();
        file.write_all(written.as_slice()).unwrap();
        file.sync_all().unwrap();
    }
    std::fs::remove_file(dir.path().join("b")).unwrap();
    let discards = Counters::get(&mounted.server.counters.discards);
    succeed("fstrim", &[at]);
    assert!(Counters::get(&mounted.server.counters.discards) > discards, "fstrim arrived");
    succeed("umount", &[at]).unwrap();
    succeed("e2fsck", &["-fn", attached.text()]);
    succeed("mount", &["-t", "ext4", attached.text(), at]).unwrap();
    let mut read = Vec::new();
    File::open(dir.path().join("a")).unwrap().read_to_end(&mut read).unwrap();
    assert!(read == written.as_slice());
    succeed("umount", &[at]).unwrap();
    drop(filesystem);
    assert_eq!(Counters::get(&mounted.server.counters.illegal), 0);
}

#[test]
fn fio_verifies_random_io() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    let filename = format!("--filename={}", attached.text());
    for bs in ["--bs=4k", "--bsrange=4k-512k"] {
        let args = [
            "--name=v",
            &filename,
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=32",
            "--rw=randwrite",
            bs,
            "--bs_unaligned=0",
            "--size=64m",
            "--io_size=64m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--minimal",
        ];
        if succeed("fio", &args).is_none() {
            return;
        }
    }
    assert_eq!(Counters::get(&mounted.server.counters.illegal), 0);
}

#[test]
fn it_grows_while_in_use() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    let direct = attached.open(true);
    mounted.server.resize(2 * SIZE);
    attached.device().set_capacity().unwrap();
    assert_eq!((&direct).seek(SeekFrom::End(0)).unwrap(), 2 * SIZE);
    let written = pattern(21, 8192);
    direct.write_all_at(written.as_slice(), 2 * SIZE - 8192).unwrap();
    let mut read = BufMut::zeroed(8192);
    direct.read_exact_at(read.as_mut_slice(), 2 * SIZE - 8192).unwrap();
    assert!(read.as_slice() == written.as_slice());
}

#[test]
fn errors_of_the_device_reach_the_kernel_with_their_errno() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    let direct = attached.open(true);
    for (error, errno) in
        [(types::IoError::Io, 5), (types::IoError::Fenced, 5), (types::IoError::NoSpace, 28)]
    {
        mounted.server.fail(Some(error));
        let failed = direct.write_at(pattern(1, 4096).as_slice(), 0).unwrap_err();
        // A loop device passes only some errors through as they are.
        assert!([errno, 5].contains(&failed.raw_os_error().unwrap()), "{error:?} gave {failed}");
        let file = OpenOptions::new().write(true).open(mounted.file()).unwrap();
        let failed = file.write_at(pattern(1, 4096).as_slice(), 0).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(errno), "through FUSE alone");
        assert!(file.sync_data().is_err());
    }
    mounted.server.fail(None);
    direct.write_all_at(pattern(1, 4096).as_slice(), 0).unwrap();
}

#[test]
fn a_device_whose_server_is_dead_is_found_and_detached() {
    let Some(mut mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    // The descriptor closes with the thread, as it does when a process is killed.
    mounted.server = common::Server::start(SIZE);
    let direct = attached.open(true);
    assert!(direct.write_at(pattern(1, 4096).as_slice(), 0).is_err());
    drop(direct);
    let file = mounted.file();
    let found = loopdev::find_by_backing(&file).unwrap();
    assert_eq!(found, std::slice::from_ref(&attached.path));
    let device = LoopDevice::open(&attached.path, &file).unwrap();
    assert!(device.direct_io());
    device.detach().unwrap();
    drop(attached);
    assert!(loopdev::find_by_backing(&file).unwrap().is_empty());
}

/// As after the end of the process in whose mount namespace it was made.
#[test]
fn a_device_whose_mount_is_gone_is_found_by_the_name_of_its_file() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    hostio::fuse::unmount(mounted.dir.path(), true).unwrap();
    let file = mounted.file();
    let found = loopdev::find_by_backing(&file).unwrap();
    assert_eq!(found, std::slice::from_ref(&attached.path));
    assert!(loopdev::find_by_backing(&file.with_file_name("another")).unwrap().is_empty());
    loopdev::detach_all(&file).unwrap();
    drop(attached);
    assert!(loopdev::find_by_backing(&file).unwrap().is_empty());
}

#[test]
fn an_abort_ends_a_device_that_nobody_serves() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let dir = tempfile::tempdir().unwrap();
    // Mounted, and its requests read by nobody.
    let fd = hostio::fuse::mount_at(dir.path(), "holdfast-test").unwrap();
    let file = dir.path().join("volume");
    let (done, ended) = std::sync::mpsc::channel();
    let stat = std::thread::spawn(move || done.send(Path::new(&file).metadata().is_err()));
    hostio::fuse::abort(dir.path()).unwrap();
    let failed = ended.recv_timeout(std::time::Duration::from_secs(10));
    hostio::fuse::unmount(dir.path(), true).unwrap();
    drop(fd);
    assert!(failed.unwrap(), "the waiting call failed instead of hanging");
    stat.join().unwrap().unwrap();
    assert_eq!(mounted.server.counters.illegal.load(Ordering::Relaxed), 0);
}
