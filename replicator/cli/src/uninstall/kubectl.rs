//! Kubernetes as its administrator reaches it: by kubectl.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The program.
#[derive(Clone, Debug)]
pub struct Kubectl(pub PathBuf);

impl Kubectl {
    /// What it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, "")
    }

    /// As [`Self::run`], with text on its standard input.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn run_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(&self.0)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.0.display()))?;
        child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// One object; `None` if it is not there.
    ///
    /// # Errors
    /// kubectl's.
    pub fn find(&self, arguments: &[&str]) -> Result<Option<Value>> {
        let all = [&["get", "--ignore-not-found", "-o", "json"][..], arguments].concat();
        let text = self.run(&all)?;
        if text.trim().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&text)?)) }
    }

    /// The items of a list.
    ///
    /// # Errors
    /// kubectl's.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let text = self.run(&[&["get", "-o", "json"][..], arguments].concat())?;
        let mut list: Value = serde_json::from_str(&text)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }
}
