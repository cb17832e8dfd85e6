//! PostgreSQL as its users run it: a StatefulSet with a volume claim template.

use crate::bed::{Bed, Namespace};
use crate::poll;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::time::Duration;

/// How long a pod may take to be ready.
const READY: Duration = Duration::from_secs(120);

/// The StatefulSet `pg` of one namespace.
#[derive(Debug)]
pub struct Postgres<'a> {
    bed: &'a Bed,
    namespace: &'a str,
}

/// What is asked for; the defaults are one pod anywhere on `holdfast-replicated`.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Pods.
    pub replicas: u32,
    /// StorageClass.
    pub class: &'static str,
    /// Where the first pod had better be.
    pub node: Option<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { replicas: 1, class: "holdfast-replicated", node: None }
    }
}

fn objects(image: &str, wanted: &Wanted) -> String {
    let Wanted { replicas, class, node } = wanted;
    // A wish, not a condition: the pod has to be able to go elsewhere.
    let affinity = node.as_ref().map_or("{}".to_owned(), |node| {
        format!(
            "{{nodeAffinity: {{preferredDuringSchedulingIgnoredDuringExecution: [{{weight: 100, preference: \
             {{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}}}]}}}}"
        )
    });
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: pg}}
spec: {{clusterIP: None, publishNotReadyAddresses: true, selector: {{app: pg}}, ports: [{{port: 5432}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: pg}}
spec:
  serviceName: pg
  replicas: {replicas}
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: pg}}}}
  template:
    metadata: {{labels: {{app: pg}}}}
    spec:
      terminationGracePeriodSeconds: 10
      affinity: {affinity}
      securityContext: {{runAsUser: 999, runAsGroup: 999, fsGroup: 999, fsGroupChangePolicy: OnRootMismatch}}
      containers:
      - name: pg
        image: {image}
        imagePullPolicy: IfNotPresent
        command: [/usr/bin/pg-start]
        env: [{{name: PGDATA, value: /data/pg}}]
        readinessProbe: {{exec: {{command: [pg_isready, -U, postgres]}}, periodSeconds: 1}}
        volumeMounts: [{{name: data, mountPath: /data}}, {{name: run, mountPath: /run/postgresql}}]
      volumes: [{{name: run, emptyDir: {{}}}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec:
      storageClassName: {class}
      accessModes: [ReadWriteOnce]
      resources: {{requests: {{storage: 1Gi}}}}
"#
    )
}

impl<'a> Postgres<'a> {
    /// Applies it and waits until all of its pods are ready.
    ///
    /// # Errors
    /// kubectl's; pods that do not become ready, with what the cluster says of them.
    pub fn start(bed: &'a Bed, namespace: &'a Namespace, wanted: &Wanted) -> Result<Self> {
        namespace.apply(&objects(&bed.postgres, wanted))?;
        let replicas = wanted.replicas;
        let postgres = Self { bed, namespace: &namespace.name };
        for ordinal in 0..replicas {
            postgres.ready(ordinal)?;
            // What the image writes beside the database, like pg_hba.conf, is not synced by anyone: a node
            // that is lost within seconds would take it along, as it would from a disk of its own.
            postgres.exec(ordinal, &["sync", "-f", "/data/pg"])?;
        }
        Ok(postgres)
    }

    /// Waits until a pod is ready, and returns it.
    ///
    /// # Errors
    /// With what the cluster says of it, if it does not become ready in time.
    pub fn ready(&self, ordinal: u32) -> Result<Value> {
        let name = format!("pg-{ordinal}");
        let found = poll(READY, || {
            let pod = self.pod(ordinal).ok()?;
            let conditions = pod["status"]["conditions"].as_array()?;
            let ready = |c: &&Value| c["type"] == "Ready" && c["status"] == "True";
            let leaving = !pod["metadata"]["deletionTimestamp"].is_null();
            conditions.iter().find(ready).filter(|_| !leaving)?;
            Some(pod)
        });
        found.with_context(|| {
            let told = self.bed.kubectl(&["describe", "pod", "-n", self.namespace, &name]);
            format!("{name} did not become ready: {}", told.unwrap_or_else(|e| e.to_string()))
        })
    }

    /// Changes the number of pods, and waits until there are so many and all are ready.
    ///
    /// # Errors
    /// kubectl's; pods that do not come or go in time.
    pub fn scale(&self, replicas: u32) -> Result<()> {
        let count = format!("--replicas={replicas}");
        self.bed.kubectl(&["scale", "statefulset/pg", "-n", self.namespace, &count])?;
        for ordinal in 0..replicas {
            self.ready(ordinal)?;
        }
        let gone = poll(READY, || {
            let pods = self.bed.get(&["pods", "-n", self.namespace, "-l", "app=pg"]).ok()?;
            (pods["items"].as_array()?.len() == replicas as usize).then_some(())
        });
        gone.context("pods that were to go are still there")
    }

    /// When the server of the pod began its recovery and when it accepted connections, as it says itself:
    /// seconds since 1970.
    ///
    /// # Errors
    /// kubectl's; a log that says neither.
    pub fn recovery(&self, ordinal: u32) -> Result<(f64, f64)> {
        let name = format!("pg-{ordinal}");
        let log = self.bed.kubectl(&["logs", "-n", self.namespace, &name, "--timestamps"])?;
        let at = |text: &str| {
            let line = log.lines().find(|line| line.contains(text))?;
            seconds(line.split(' ').next()?)
        };
        let began = at("starting PostgreSQL").context("the server's first word")?;
        Ok((began, at("ready to accept connections").context("the server's readiness")?))
    }

    /// The pod `pg-ORDINAL` as it is now.
    ///
    /// # Errors
    /// kubectl's.
    pub fn pod(&self, ordinal: u32) -> Result<Value> {
        self.bed.get(&["pod", &format!("pg-{ordinal}"), "-n", self.namespace])
    }

    /// The node of a pod.
    ///
    /// # Errors
    /// kubectl's; a pod without a node.
    pub fn node(&self, ordinal: u32) -> Result<String> {
        let pod = self.pod(ordinal)?;
        Ok(pod["spec"]["nodeName"].as_str().context("the pod has no node")?.to_owned())
    }

    /// The id of a pod's volume, as the driver knows it.
    ///
    /// # Errors
    /// kubectl's; a claim without a volume.
    pub fn volume(&self, ordinal: u32) -> Result<String> {
        let claim = format!("data-pg-{ordinal}");
        let claim = self.bed.get(&["persistentvolumeclaim", &claim, "-n", self.namespace])?;
        let name = claim["spec"]["volumeName"].as_str().context("the claim has no volume")?;
        let volume = self.bed.get(&["persistentvolume", name])?;
        Ok(volume["spec"]["csi"]["volumeHandle"].as_str().context("not of a driver")?.to_owned())
    }

    /// What a statement returns, run in the pod.
    ///
    /// # Errors
    /// kubectl's and psql's.
    pub fn sql(&self, ordinal: u32, statement: &str) -> Result<String> {
        let psql = ["psql", "-U", "postgres", "-qtAX", "-v", "ON_ERROR_STOP=1", "-c", statement];
        self.exec(ordinal, &psql)
    }

    /// What a program prints, run in the pod.
    ///
    /// # Errors
    /// kubectl's and the program's.
    pub fn exec(&self, ordinal: u32, program: &[&str]) -> Result<String> {
        let pod = format!("pg-{ordinal}");
        let mut arguments = vec!["exec", "-n", self.namespace, &pod, "--"];
        arguments.extend_from_slice(program);
        Ok(self.bed.kubectl(&arguments)?.trim().to_owned())
    }
}

/// Seconds since 1970 of a time of this day's or the day before's (RFC 3339, UTC), which need not be more
/// exact than its digits.
fn seconds(text: &str) -> Option<f64> {
    let (_, time) = text.split_once('T')?;
    let mut parts = time.trim_end_matches('Z').split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    let now = crate::bed::now();
    let at = now - now % 86_400.0 + hours * 3600.0 + minutes * 60.0 + seconds;
    Some(if at > now + 3600.0 { at - 86_400.0 } else { at })
}
