//! What happens to a database on any ordinary day: nothing may be lost, everything must be given back.
#![allow(clippy::unwrap_used)]

use kubernetes::bed::{Bed, Namespace};
use kubernetes::poll;
use kubernetes::postgres::{Postgres, Wanted};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

fn rows(postgres: &Postgres<'_>, ordinal: u32) -> String {
    postgres.sql(ordinal, "select count(*) from kept").unwrap()
}

fn fill(postgres: &Postgres<'_>, ordinal: u32) {
    postgres.sql(ordinal, "create table kept as select generate_series(1, 1000) as n").unwrap();
}

/// Waits until the pod is another one than `uid` and ready.
fn another(postgres: &Postgres<'_>, uid: &serde_json::Value) {
    let found = poll(PATIENCE, || {
        let pod = postgres.pod(0).ok()?;
        (pod["metadata"]["uid"] != *uid).then_some(())
    });
    found.expect("the pod is replaced");
    postgres.ready(0).unwrap();
}

#[test]
fn a_deleted_pod_and_a_failed_container_keep_their_rows() {
    let Some(bed) = Bed::find("a_deleted_pod_and_a_failed_container_keep_their_rows") else {
        return;
    };
    let namespace = Namespace::new(&bed, "holdfast-e2e-pod").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    fill(&postgres, 0);
    let uid = postgres.pod(0).unwrap()["metadata"]["uid"].clone();
    bed.kubectl(&["delete", "pod", "pg-0", "-n", &namespace.name]).unwrap();
    another(&postgres, &uid);
    assert_eq!(rows(&postgres, 0), "1000");

    let restarts = |postgres: &Postgres<'_>| {
        postgres.pod(0).unwrap()["status"]["containerStatuses"][0]["restartCount"].as_u64()
    };
    assert_eq!(restarts(&postgres), Some(0));
    // The first process of the container, with everything that it has not written out.
    let _ = postgres.exec(0, &["bash", "-c", "kill -QUIT 1"]);
    poll(PATIENCE, || (restarts(&postgres) == Some(1)).then_some(())).expect("it is started again");
    let back = poll(PATIENCE, || postgres.sql(0, "select count(*) from kept").ok());
    assert_eq!(back.as_deref(), Some("1000"));
}

#[test]
fn a_drained_node_gives_its_database_away_and_takes_it_again() {
    let Some(bed) = Bed::find("a_drained_node_gives_its_database_away") else { return };
    let namespace = Namespace::new(&bed, "holdfast-e2e-drain").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    fill(&postgres, 0);
    let node = postgres.node(0).unwrap();
    struct Uncordon<'a>(&'a Bed, &'a str);
    impl Drop for Uncordon<'_> {
        fn drop(&mut self) {
            let _ = self.0.kubectl(&["uncordon", self.1]);
        }
    }
    let uncordon = Uncordon(&bed, &node);
    let uid = postgres.pod(0).unwrap()["metadata"]["uid"].clone();
    bed.kubectl(&[
        "drain",
        &node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=120s",
        "--pod-selector=app=pg",
    ])
    .unwrap();
    another(&postgres, &uid);
    assert_ne!(postgres.node(0).unwrap(), node);
    assert_eq!(rows(&postgres, 0), "1000");
    // Storage stays on a node that is cordoned: both copies are there.
    drop(uncordon);
    bed.well(PATIENCE).unwrap();
}

#[test]
fn pods_come_back_to_their_claims_when_the_number_changes() {
    let Some(bed) = Bed::find("pods_come_back_to_their_claims") else { return };
    let namespace = Namespace::new(&bed, "holdfast-e2e-scale").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    postgres.scale(3).unwrap();
    for ordinal in 0..3 {
        fill(&postgres, ordinal);
    }
    postgres.scale(5).unwrap();
    fill(&postgres, 4);
    postgres.scale(1).unwrap();
    let claims = || {
        let claims = bed.get(&["persistentvolumeclaims", "-n", &namespace.name]).unwrap();
        claims["items"].as_array().unwrap().len()
    };
    assert_eq!(claims(), 5, "claims are kept");
    postgres.scale(5).unwrap();
    for ordinal in [0, 1, 2, 4] {
        assert_eq!(rows(&postgres, ordinal), "1000", "pg-{ordinal}");
    }
    assert_eq!(claims(), 5, "and used again");
}

/// Ids of all volumes, as some node says.
fn volumes(bed: &Bed) -> Vec<String> {
    let nodes = bed.nodes().unwrap();
    let all = bed.holdfast(&nodes[0], &["volume", "list"]).unwrap();
    let id = |volume: &serde_json::Value| volume["volume_id"].as_str().unwrap().to_owned();
    all.as_array().unwrap().iter().map(id).collect()
}

#[test]
fn a_deleted_claim_gives_its_space_back() {
    let Some(bed) = Bed::find("a_deleted_claim_gives_its_space_back") else { return };
    let before = volumes(&bed);
    let namespace = Namespace::new(&bed, "holdfast-e2e-reclaim").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    fill(&postgres, 0);
    assert_eq!(volumes(&bed).len(), before.len() + 1);
    let claim = bed.get(&["persistentvolumeclaim", "data-pg-0", "-n", &namespace.name]).unwrap();
    let volume = claim["spec"]["volumeName"].as_str().unwrap();
    postgres.scale(0).unwrap();
    bed.kubectl(&["delete", "persistentvolumeclaim", "data-pg-0", "-n", &namespace.name]).unwrap();
    let gone = poll(PATIENCE, || {
        let found = bed.kubectl(&["get", "persistentvolume", volume, "--ignore-not-found"]).ok()?;
        (found.trim().is_empty() && volumes(&bed) == before).then_some(())
    });
    gone.expect("the volume and its copies are deleted");
}

/// A StorageClass for XFS, until it is dropped.
struct Xfs<'a>(&'a Bed);

const XFS: &str = "holdfast-e2e-xfs";

impl<'a> Xfs<'a> {
    fn new(bed: &'a Bed) -> Self {
        let class = format!(
            "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {XFS}}}
provisioner: csi.holdfast.dev
parameters: {{csi.storage.k8s.io/fstype: xfs}}
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
"
        );
        bed.kubectl_with(&["apply", "-f", "-"], &class).unwrap();
        Self(bed)
    }
}

impl Drop for Xfs<'_> {
    fn drop(&mut self) {
        let _ = self.0.kubectl(&["delete", "storageclass", XFS, "--ignore-not-found"]);
    }
}

fn grows(bed: &Bed, namespace: &Namespace, postgres: &Postgres<'_>) {
    fill(postgres, 0);
    let size = || -> u64 {
        let said = postgres.exec(0, &["df", "--output=size", "-k", "/data"]).unwrap();
        said.lines().last().unwrap().trim().parse().unwrap()
    };
    let before = size();
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#;
    let claim = ["patch", "persistentvolumeclaim", "data-pg-0", "-n", &namespace.name, "-p", patch];
    bed.kubectl(&claim).unwrap();
    poll(PATIENCE, || (size() > before * 18 / 10).then_some(())).expect("the filesystem is larger");
    assert_eq!(rows(postgres, 0), "1000");
}

#[test]
fn an_xfs_volume_grows_under_its_database() {
    let Some(bed) = Bed::find("an_xfs_volume_grows_under_its_database") else { return };
    let _class = Xfs::new(&bed);
    let namespace = Namespace::new(&bed, "holdfast-e2e-grow-xfs").unwrap();
    let wanted = Wanted { class: XFS, ..Wanted::default() };
    grows(&bed, &namespace, &Postgres::start(&bed, &namespace, &wanted).unwrap());
}

#[test]
fn an_ext4_volume_grows_under_its_database() {
    let test = "an_ext4_volume_grows_under_its_database";
    let Some(bed) = Bed::find(test) else { return };
    let namespace = Namespace::new(&bed, "holdfast-e2e-grow").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    // EXT4_IOC_RESIZE_FS needs CAP_SYS_RESOURCE (bit 24), which not every test machine gives its root.
    let bounds = bed.on_node(&postgres.node(0).unwrap(), "grep CapBnd /proc/1/status");
    let bits =
        bounds.and_then(|text| u64::from_str_radix(text.split_whitespace().last()?, 16).ok());
    if bits.is_some_and(|bits| bits & 1 << 24 == 0) {
        println!("SKIPPED: {test}: nobody on the node has CAP_SYS_RESOURCE");
        return;
    }
    grows(&bed, &namespace, &postgres);
}

fn pod(name: &str, image: &str, node: &str, claim: &str, block: bool) -> String {
    let (key, place) =
        if block { ("volumeDevices", "devicePath") } else { ("volumeMounts", "mountPath") };
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions:
    [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]}}}}}}
  containers:
  - name: main
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
    {key}: [{{name: data, {place}: /volume}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
"#
    )
}

fn claim(name: &str, mode: &str, access: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  storageClassName: holdfast-replicated
  volumeMode: {mode}
  accessModes: [{access}]
  resources: {{requests: {{storage: 64Mi}}}}
"#
    )
}

fn running(bed: &Bed, namespace: &str, name: &str) {
    let wait = ["wait", "pod", name, "-n", namespace, "--for=condition=Ready", "--timeout=120s"];
    bed.kubectl(&wait).unwrap();
}

#[test]
fn a_raw_block_volume_is_the_same_bytes_on_the_next_node() {
    let Some(bed) = Bed::find("a_raw_block_volume_is_the_same_bytes") else { return };
    let namespace = Namespace::new(&bed, "holdfast-e2e-block").unwrap();
    let nodes = bed.nodes().unwrap();
    namespace.apply(&claim("raw", "Block", "ReadWriteOnce")).unwrap();
    let exec = |pod: &str, command: &str| {
        bed.kubectl(&["exec", "-n", &namespace.name, pod, "--", "bash", "-c", command]).unwrap()
    };
    namespace.apply(&pod("writer", &bed.postgres, &nodes[0], "raw", true)).unwrap();
    running(&bed, &namespace.name, "writer");
    let text = "dd if=/dev/urandom of=/volume bs=1M count=32 conv=fsync 2>/dev/null; \
                dd if=/volume bs=1M 2>/dev/null | sha256sum";
    let written = exec("writer", text);
    bed.kubectl(&["delete", "pod", "writer", "-n", &namespace.name]).unwrap();
    namespace.apply(&pod("reader", &bed.postgres, &nodes[1], "raw", true)).unwrap();
    running(&bed, &namespace.name, "reader");
    assert_eq!(exec("reader", "dd if=/volume bs=1M 2>/dev/null | sha256sum"), written);
}

#[test]
fn one_pod_only_means_one_pod_only() {
    let Some(bed) = Bed::find("one_pod_only_means_one_pod_only") else { return };
    let namespace = Namespace::new(&bed, "holdfast-e2e-rwop").unwrap();
    let nodes = bed.nodes().unwrap();
    namespace.apply(&claim("only", "Filesystem", "ReadWriteOncePod")).unwrap();
    namespace.apply(&pod("first", &bed.postgres, &nodes[0], "only", false)).unwrap();
    running(&bed, &namespace.name, "first");
    namespace.apply(&pod("second", &bed.postgres, &nodes[0], "only", false)).unwrap();
    let phase = || {
        let pod = bed.get(&["pod", "second", "-n", &namespace.name]).unwrap();
        pod["status"]["phase"].as_str().unwrap_or_default().to_owned()
    };
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(phase(), "Pending", "the second waits");
    bed.kubectl(&["delete", "pod", "first", "-n", &namespace.name]).unwrap();
    running(&bed, &namespace.name, "second");
}

#[test]
fn deployments_hand_their_volume_from_pod_to_pod() {
    let Some(bed) = Bed::find("deployments_hand_their_volume_from_pod_to_pod") else { return };
    let namespace = Namespace::new(&bed, "holdfast-e2e-deployment").unwrap();
    for (name, strategy) in [
        ("recreate", "{type: Recreate}"),
        // The new pod waits in Pending or in NodeStage until the old one is gone.
        ("rolling", "{type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}"),
    ] {
        namespace.apply(&claim(name, "Filesystem", "ReadWriteOnce")).unwrap();
        let image = &bed.postgres;
        let deployment = |version: u32| {
            format!(
                r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 1
  strategy: {strategy}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}, annotations: {{version: "{version}"}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: {image}
        imagePullPolicy: IfNotPresent
        command: [bash, -c, "echo {version} >> /data/log && sync /data/log && exec sleep infinity"]
        volumeMounts: [{{name: data, mountPath: /data}}]
      volumes: [{{name: data, persistentVolumeClaim: {{claimName: {name}}}}}]
"#
            )
        };
        let object = format!("deployment/{name}");
        for version in 1..=3 {
            namespace.apply(&deployment(version)).unwrap();
            let status = ["rollout", "status", &object, "-n", &namespace.name, "--timeout=120s"];
            bed.kubectl(&status).unwrap();
        }
        let cat = ["exec", "-n", &namespace.name, &object, "--", "cat", "/data/log"];
        let log = poll(PATIENCE, || {
            let log = bed.kubectl(&cat).ok()?;
            log.contains('3').then_some(log)
        });
        assert_eq!(log.as_deref(), Some("1\n2\n3\n"), "{name}");
    }
}

#[test]
fn a_generic_ephemeral_volume_lives_as_long_as_its_pod() {
    let Some(bed) = Bed::find("a_generic_ephemeral_volume_lives_as_long_as_its_pod") else {
        return;
    };
    let namespace = Namespace::new(&bed, "holdfast-e2e-ephemeral").unwrap();
    let before = volumes(&bed);
    let image = &bed.postgres;
    let pod = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: scratch}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [bash, -c, "echo kept > /data/file && exec sleep infinity"]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - name: data
    ephemeral:
      volumeClaimTemplate:
        spec:
          storageClassName: holdfast-replicated
          accessModes: [ReadWriteOnce]
          resources: {{requests: {{storage: 64Mi}}}}
"#
    );
    namespace.apply(&pod).unwrap();
    running(&bed, &namespace.name, "scratch");
    let exec = ["exec", "-n", &namespace.name, "scratch", "--"];
    let file = bed.kubectl(&[&exec[..], &["cat", "/data/file"]].concat()).unwrap();
    assert_eq!(file, "kept\n");
    let source = bed.kubectl(&[&exec[..], &["stat", "-f", "-c", "%T", "/data"]].concat()).unwrap();
    assert_eq!(source.trim(), "ext2/ext3", "a filesystem of its own");
    assert_eq!(volumes(&bed).len(), before.len() + 1);
    bed.kubectl(&["delete", "pod", "scratch", "-n", &namespace.name]).unwrap();
    poll(PATIENCE, || (volumes(&bed) == before).then_some(())).expect("it went with its pod");
}
