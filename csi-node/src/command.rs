//! Child processes: mkfs, blkid and the like, bounded in time, their output kept for the error.

use crate::Error;
use core::time::Duration;
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Output, Stdio};
use tokio::process::Command;

/// How much of a program's output an error carries, in bytes.
const OUTPUT: usize = 2048;

/// Runs `program` on `path` and returns what it printed, whatever its exit status.
///
/// # Errors
/// [`Error::Start`]; [`Error::Program`] when it was killed, by a signal or by us after `limit`.
pub async fn output<A: AsRef<OsStr>>(
    program: &'static str,
    arguments: &[A],
    path: &Path,
    limit: Duration,
) -> Result<Output, Error> {
    let child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Error::Start { program, source })?;
    let failed = |outcome: String, output: String| Error::Program {
        program,
        path: path.to_owned(),
        outcome,
        output,
    };
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        // Dropping the future killed it; a child that hangs in the kernel ends when its device does.
        Err(_) => Err(failed(format!("killed after {} s", limit.as_secs()), String::new())),
        Ok(Err(source)) => Err(Error::Start { program, source }),
        Ok(Ok(output)) => match output.status.signal() {
            Some(signal) => Err(failed(format!("killed by signal {signal}"), tail(&output))),
            None => Ok(output),
        },
    }
}

/// Runs `program` on `path` and wants exit status 0.
///
/// # Errors
/// As [`output`], and [`Error::Program`] for another exit status.
pub async fn run<A: AsRef<OsStr>>(
    program: &'static str,
    arguments: &[A],
    path: &Path,
    limit: Duration,
) -> Result<(), Error> {
    let output = output(program, arguments, path, limit).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(unexpected(program, path, &output))
}

/// [`Error::Program`] for an exit status that means failure.
pub fn unexpected(program: &'static str, path: &Path, output: &Output) -> Error {
    let outcome = match output.status.code() {
        Some(code) => format!("exit status {code}"),
        None => "killed".to_owned(),
    };
    Error::Program { program, path: path.to_owned(), outcome, output: tail(output) }
}

/// The end of what was printed, errors last, on one line.
fn tail(output: &Output) -> String {
    let mut all = output.stdout.clone();
    all.extend_from_slice(&output.stderr);
    let end = &all[all.len().saturating_sub(OUTPUT)..];
    let text = String::from_utf8_lossy(end);
    text.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn sh(script: &str, limit: Duration) -> Result<(), Error> {
        run("sh", &["-c", script], Path::new("/dev/x"), limit).await
    }

    #[tokio::test]
    async fn the_output_is_in_the_error() {
        sh("echo fine; true", LIMIT).await.unwrap();
        let error = sh("echo one; echo two >&2; exit 3", LIMIT).await.unwrap_err().to_string();
        assert_eq!(error, "sh on /dev/x: exit status 3: one; two");
        let error = sh("kill -9 $$", LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("signal 9"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed() {
        let error = sh("exec sleep 1000", Duration::from_millis(50)).await.unwrap_err();
        assert!(error.to_string().contains("killed after"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = run("mkfs.holdfast", &["x"], Path::new("/dev/x"), LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("cannot start mkfs.holdfast"), "{error}");
    }
}
