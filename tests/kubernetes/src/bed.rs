//! The cluster under test, and what can be done to its nodes.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the cluster's image of PostgreSQL comes from unless `HOLDFAST_E2E_POSTGRES` names another.
const POSTGRES: &str = "localhost/pg:15";

/// Where Holdfast's own pods are.
pub const SYSTEM: &str = "holdfast-system";

/// A running cluster with Holdfast installed.
#[derive(Clone, Debug)]
pub struct Bed {
    kubectl: PathBuf,
    /// Directory with programs, each called with a node's name, with or without the ending `.sh`: `cut` and
    /// `heal` (frames are dropped), `link-down` and `link-up`, `crash` and `shutdown` (every process gets
    /// SIGTERM first) and `boot`; `api-cut` and `api-heal` (nobody reaches the API server), called with `all`.
    faults: Option<PathBuf>,
    /// The image of the database and its clients: PostgreSQL's programs, and `pg-start` to run it.
    pub postgres: String,
}

impl Bed {
    /// The cluster that the environment names, or `None` with a line that says what is skipped and why.
    ///
    /// - `KUBECONFIG`: the cluster, for `kubectl` in the PATH (`HOLDFAST_E2E_KUBECTL` for another one);
    /// - `HOLDFAST_E2E_FAULTS`: directory of programs that cut nodes off, heal, crash and boot them;
    /// - `HOLDFAST_E2E_POSTGRES`: image with PostgreSQL.
    #[must_use]
    pub fn find(test: &str) -> Option<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let kubectl = set("HOLDFAST_E2E_KUBECTL").map(PathBuf::from);
        if kubectl.is_none() && set("KUBECONFIG").is_none() {
            println!("SKIPPED: {test}: no cluster (KUBECONFIG or HOLDFAST_E2E_KUBECTL)");
            return None;
        }
        Some(Self {
            kubectl: kubectl.unwrap_or_else(|| "kubectl".into()),
            faults: set("HOLDFAST_E2E_FAULTS").map(PathBuf::from),
            postgres: std::env::var("HOLDFAST_E2E_POSTGRES").unwrap_or_else(|_| POSTGRES.into()),
        })
    }

    /// As [`Self::find`], for scenarios that need a node to fail.
    #[must_use]
    pub fn with_faults(test: &str) -> Option<Self> {
        let bed = Self::find(test)?;
        if bed.faults.is_none() {
            println!("SKIPPED: {test}: nothing can cut a node off (HOLDFAST_E2E_FAULTS)");
            return None;
        }
        Some(bed)
    }

    /// As [`Self::with_faults`], for scenarios that need a program of this name.
    #[must_use]
    pub fn with_fault(test: &str, fault: &str) -> Option<Self> {
        let bed = Self::with_faults(test)?;
        if bed.fault_program(fault).is_none() {
            println!("SKIPPED: {test}: there is no program {fault} (HOLDFAST_E2E_FAULTS)");
            return None;
        }
        Some(bed)
    }

    /// The program that reaches the cluster.
    #[must_use]
    pub fn program(&self) -> &std::path::Path {
        &self.kubectl
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// As [`Self::kubectl`], with text on its standard input.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        use std::io::Write as _;
        let mut child = Command::new(&self.kubectl)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.kubectl.display()))?;
        child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An object, or a list of them, as JSON.
    ///
    /// # Errors
    /// kubectl's.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend_from_slice(arguments);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Names of the nodes.
    ///
    /// # Errors
    /// kubectl's.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let nodes = self.get(&["nodes"])?;
        let items = nodes["items"].as_array().context("a list")?;
        Ok(items.iter().filter_map(|n| Some(n["metadata"]["name"].as_str()?.to_owned())).collect())
    }

    /// Does `fault` (the name of a program) to a node; returns when it began.
    ///
    /// # Errors
    /// The program's.
    pub fn fault(&self, fault: &str, node: &str) -> Result<f64> {
        let program = self.fault_program(fault).with_context(|| format!("no program {fault}"))?;
        let begun = now();
        let output = Command::new(&program).arg(node).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {node}: {error}", program.display());
        Ok(begun)
    }

    fn fault_program(&self, fault: &str) -> Option<PathBuf> {
        let directory = self.faults.as_ref()?;
        let named = |ending: &str| directory.join(format!("{fault}{ending}"));
        [named(""), named(".sh")].into_iter().find(|path| path.is_file())
    }

    /// What a shell command prints on a node itself, if there is a program `in` (a node's name and a command)
    /// beside those for faults.
    #[must_use]
    pub fn on_node(&self, node: &str, command: &str) -> Option<String> {
        let output =
            Command::new(self.fault_program("in")?).args([node, "sh", "-c", command]).output();
        Some(String::from_utf8_lossy(&output.ok()?.stdout).into_owned())
    }

    /// What `holdfast` prints on a node, as JSON; it asks that node's replicator.
    ///
    /// # Errors
    /// kubectl's and the program's.
    pub fn holdfast(&self, node: &str, arguments: &[&str]) -> Result<Value> {
        let pods = self.get(&[
            "pods",
            "-n",
            SYSTEM,
            "-l",
            "app.kubernetes.io/component=node",
            "--field-selector",
            &format!("spec.nodeName={node}"),
        ])?;
        let pod = pods["items"][0]["metadata"]["name"].as_str().context("no pod of Holdfast")?;
        let exec = ["exec", "-n", SYSTEM, pod, "-c", "replicator", "--", "holdfast", "--json"];
        Ok(serde_json::from_str(&self.kubectl(&[&exec[..], arguments].concat())?)?)
    }

    /// Waits until every node is as it should be: ready, without a taint of ours, and every volume has all
    /// of its copies.
    ///
    /// # Errors
    /// What is not well after `patience`.
    pub fn well(&self, patience: Duration) -> Result<()> {
        let begun = std::time::Instant::now();
        loop {
            match self.look() {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > patience => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    fn look(&self) -> Result<()> {
        for node in self.nodes()? {
            let taints = self.taints(&node)?;
            ensure!(taints.is_empty(), "{node} is tainted: {taints:?}");
            let status = self.holdfast(&node, &["cluster", "status"])?;
            for other in status["nodes"].as_array().context("nodes")? {
                ensure!(
                    other["state"] == "up",
                    "{node} has {} as {}",
                    other["name"],
                    other["state"]
                );
            }
            for volume in status["volumes"].as_array().context("volumes")? {
                ensure!(volume["degraded"] == false, "volume {} is degraded", volume["name"]);
            }
        }
        Ok(())
    }

    /// Taints of a node, as `key:effect`.
    ///
    /// # Errors
    /// kubectl's.
    pub fn taints(&self, node: &str) -> Result<Vec<String>> {
        let node = self.get(&["node", node])?;
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let text = |taint: &Value| {
            Some(format!("{}:{}", taint["key"].as_str()?, taint["effect"].as_str()?))
        };
        Ok(taints.iter().filter_map(text).collect())
    }
}

/// Heals whatever a scenario did to a node when it ends: the bed, the node, the program that does it.
#[derive(Debug)]
pub struct Healed<'a>(pub &'a Bed, pub String, pub &'static str);

impl Drop for Healed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.fault(self.2, &self.1) {
            eprintln!("{} is not healed: {error:#}", self.1);
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// A namespace that goes when it is dropped, with everything in it.
#[derive(Debug)]
pub struct Namespace {
    bed: Bed,
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// Makes it; remains of an earlier run of the same name go first.
    ///
    /// # Errors
    /// kubectl's.
    pub fn new(bed: &Bed, name: &str) -> Result<Self> {
        bed.kubectl(&[
            "delete",
            "namespace",
            name,
            "--ignore-not-found",
            "--wait=true",
            "--timeout=120s",
        ])?;
        bed.kubectl(&["create", "namespace", name])?;
        Ok(Self { bed: bed.clone(), name: name.to_owned() })
    }

    /// Applies objects in it.
    ///
    /// # Errors
    /// kubectl's.
    pub fn apply(&self, objects: &str) -> Result<()> {
        self.bed.kubectl_with(&["apply", "-n", &self.name, "-f", "-"], objects).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.name, "--wait=true", "--timeout=180s"];
        if let Err(error) = self.bed.kubectl(&delete) {
            eprintln!("namespace {}: {error:#}", self.name);
        }
    }
}
