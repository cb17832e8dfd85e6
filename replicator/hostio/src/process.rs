//! What the process asks of the kernel for itself (design §7: no memory deadlock under writeback).

use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use std::io;

/// linux/prctl.h
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Version and patch level of the kernel, like (6, 9); (0, 0) if it does not say.
#[must_use]
pub fn kernel_version() -> (u32, u32) {
    let parse = |release: &str| {
        let mut numbers = release.split(['.', '-', '+']).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.ok().and_then(|release| parse(release.trim())).unwrap_or_default()
}

/// Binds the calling thread to one CPU (numbered from 0).
///
/// # Errors
/// EINVAL if there is no such CPU or it is not allowed to this process.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

/// PR_SET_IO_FLUSHER for the calling thread and what it starts: its memory allocations do not wait
/// for writeback that waits for it. Needs CAP_SYS_RESOURCE.
///
/// # Errors
/// EPERM without the capability; EINVAL before Linux 5.6.
pub fn io_flusher() -> io::Result<()> {
    // SAFETY: PR_SET_IO_FLUSHER takes integers only and touches no memory of this process.
    let answer = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    nix::errno::Errno::result(answer)?;
    Ok(())
}

/// Keeps every page of the process, present and future, in memory, faulted in when first touched.
///
/// # Errors
/// EPERM or ENOMEM under a memlock limit.
pub fn lock_memory() -> io::Result<()> {
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    mlockall(flags | MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT))?;
    Ok(())
}

/// Raises the soft limit of open files to the hard limit; returns it.
///
/// # Errors
/// The kernel's.
pub fn raise_nofile() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::sched::sched_getaffinity;

    #[test]
    fn a_thread_is_pinned_alone() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpu = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu).unwrap()).unwrap();
        std::thread::spawn(move || {
            pin_to_cpu(cpu).unwrap();
            let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
            let all: Vec<_> = (0..CpuSet::count()).filter(|c| set.is_set(*c).unwrap()).collect();
            assert_eq!(all, [cpu]);
            assert!(pin_to_cpu(CpuSet::count()).is_err());
        })
        .join()
        .unwrap();
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), before);
    }

    #[test]
    fn open_files_are_raised_to_the_hard_limit() {
        let limit = raise_nofile().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (limit, limit));
    }

    #[test]
    fn a_thread_becomes_an_io_flusher_where_it_may() {
        let done = std::thread::spawn(io_flusher).join().unwrap();
        match done {
            Ok(()) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
    }
}
