//! Running other programs: the output on success, the command line and its last words on failure.

use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::io::Write as _;
use std::iter;
use std::process::{Command, Output, Stdio};

/// prctl(2), PR_SET_PDEATHSIG, without unsafe code.
const WRAPPER: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// Runs `program` with `args` and returns its standard output.
///
/// # Errors
/// If it cannot be started or ends with anything but success; the text names the command and what it
/// wrote to standard error.
pub fn run<A: AsRef<OsStr>>(program: &str, args: &[A]) -> Result<String> {
    finish(command(program, args).stdin(Stdio::null()))
}

/// Like [`run`] with `input` on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input<A: AsRef<OsStr>>(program: &str, args: &[A], input: &str) -> Result<String> {
    let mut command = command(program, args);
    let what = describe(&command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {what}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("writing to {what}"))?;
    }
    output(&what, child.wait_with_output().with_context(|| format!("waiting for {what}"))?)
}

/// Runs a tokio command to its end; it is killed if the future is dropped.
///
/// # Errors
/// As [`run`].
pub async fn run_async(mut command: tokio::process::Command) -> Result<String> {
    let what = describe(command.as_std());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let result = command.output().await.with_context(|| format!("cannot start {what}"))?;
    output(&what, result)
}

/// `program` dies with the thread that waits for it: what a killed command had begun does not appear after
/// `down` has looked for it.
fn command<A: AsRef<OsStr>>(program: &str, args: &[A]) -> Command {
    let mut command = Command::new(WRAPPER[0]);
    command.args(&WRAPPER[1..]).arg(program).args(args);
    command
}

fn finish(command: &mut Command) -> Result<String> {
    let what = describe(command);
    let result = command.output().with_context(|| format!("cannot start {what}"))?;
    output(&what, result)
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    let own = if words.starts_with(&WRAPPER.map(Into::into)) { WRAPPER.len() } else { 0 };
    format!("`{}`", words[own..].join(" "))
}

fn output(what: &str, result: Output) -> Result<String> {
    if !result.status.success() {
        let said = String::from_utf8_lossy(&result.stderr);
        let tail: Vec<&str> = said.trim().lines().rev().take(5).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{what} ended with {}: {}", result.status, tail.join(" / "));
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::process::wait_until;
    use std::os::unix::process::ExitStatusExt as _;
    use std::time::Duration;

    #[test]
    fn failure_names_the_command_and_its_last_words() {
        let error = run("sh", &["-c", "echo no room >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("exit 3") && error.contains("no room"), "{error}");
        assert!(error.starts_with("`sh -c echo"), "{error}");
        assert_eq!(run_with_input("cat", &["-"], "words").unwrap(), "words");
    }

    #[test]
    fn a_command_dies_with_the_thread_that_waits_for_it() {
        let begun = std::thread::spawn(|| {
            let child = command("sleep", &["1000"]).spawn().unwrap();
            let name = format!("/proc/{}/comm", child.id());
            let runs = || std::fs::read_to_string(&name).unwrap() == "sleep\n";
            assert!(wait_until(Duration::from_secs(10), runs));
            child
        });
        let ended = begun.join().unwrap().wait().unwrap();
        assert_eq!(ended.signal(), Some(9));
    }
}
