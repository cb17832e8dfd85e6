//! What an administrator does with Holdfast itself: update it, remove it, install it again.
#![allow(clippy::unwrap_used)]

use kubernetes::bed::{Bed, Namespace, SYSTEM};
use kubernetes::postgres::{Postgres, Wanted};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn an_update_of_all_nodes_is_not_noticed_by_the_database() {
    let Some(bed) = Bed::find("an_update_of_all_nodes_is_not_noticed_by_the_database") else {
        return;
    };
    bed.well(PATIENCE).unwrap();
    let namespace = Namespace::new(&bed, "holdfast-e2e-update").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    postgres.exec(0, &["pgbench", "-U", "postgres", "-i", "-q", "-s", "5"]).unwrap();
    let before = postgres.pod(0).unwrap();
    // Until told to end: an update takes as long as it takes.
    let bench = "touch /tmp/go; while [ -e /tmp/go ]; do pgbench -U postgres -n -c 2 -R 50 -T 5 || exit 1; done";
    let said = std::thread::scope(|scope| {
        let running = scope.spawn(|| postgres.exec(0, &["bash", "-c", bench]));
        for object in ["daemonset/holdfast-node", "deployment/holdfast-controller"] {
            bed.kubectl(&["rollout", "restart", object, "-n", SYSTEM]).unwrap();
            let status = ["rollout", "status", object, "-n", SYSTEM, "--timeout=300s"];
            bed.kubectl(&status).unwrap();
        }
        bed.well(PATIENCE).unwrap();
        postgres.exec(0, &["rm", "/tmp/go"]).unwrap();
        running.join().unwrap().unwrap()
    });
    assert!(said.contains("number of failed transactions: 0"), "{said}");
    assert!(!said.contains("aborted"), "{said}");
    let after = postgres.pod(0).unwrap();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"], "the same pod");
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
}

/// How Holdfast is installed and removed here: the program, and the file that was applied.
struct Installer<'a> {
    bed: &'a Bed,
    program: String,
    file: String,
}

impl<'a> Installer<'a> {
    fn find(bed: &'a Bed, test: &str) -> Option<Self> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let both = (set("HOLDFAST_E2E_CLI"), set("HOLDFAST_E2E_INSTALL"));
        let (Some(program), Some(file)) = both else {
            println!(
                "SKIPPED: {test}: it removes Holdfast (HOLDFAST_E2E_CLI: the program holdfast, \
                 HOLDFAST_E2E_INSTALL: what was applied)"
            );
            return None;
        };
        Some(Self { bed, program, file })
    }

    fn install(&self) {
        self.bed.kubectl(&["apply", "-f", &self.file]).unwrap();
        for object in ["daemonset/holdfast-node", "deployment/holdfast-controller"] {
            let status = ["rollout", "status", object, "-n", SYSTEM, "--timeout=180s"];
            self.bed.kubectl(&status).unwrap();
        }
        self.bed.well(PATIENCE).unwrap();
    }

    /// What it prints and whether it succeeds.
    fn uninstall(&self, more: &[&str]) -> (bool, String) {
        let kubectl = self.bed.program().to_str().unwrap();
        let mut command = Command::new(&self.program);
        let output = command.args(["uninstall", "--kubectl", kubectl]).args(more).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

/// What is left of Holdfast in the API server and on the nodes' directories that this can see.
fn remains(bed: &Bed) -> Vec<String> {
    let kinds =
        "csidrivers,storageclasses,priorityclasses,clusterroles,clusterrolebindings,namespaces";
    let served = bed.kubectl(&["api-resources", "-o", "name"]).unwrap();
    let classes =
        ["volumeattributesclasses.storage.k8s.io", "volumesnapshotclasses.snapshot.storage.k8s.io"];
    let more = classes.into_iter().filter(|kind| served.lines().any(|line| line == *kind));
    let kinds = &std::iter::once(kinds).chain(more).collect::<Vec<_>>().join(",");
    let label = "app.kubernetes.io/name=holdfast";
    let mut found: Vec<String> = bed
        .kubectl(&["get", kinds, "-l", label, "-o", "name", "--ignore-not-found"])
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    for node in bed.get(&["nodes"]).unwrap()["items"].as_array().unwrap() {
        let text = format!("{}{}", node["metadata"]["labels"], node["spec"]["taints"]);
        if text.contains("holdfast.dev/") {
            found.push(format!("node {}: {text}", node["metadata"]["name"]));
        }
    }
    for node in bed.get(&["csinodes"]).unwrap()["items"].as_array().unwrap() {
        if node["spec"]["drivers"].to_string().contains("holdfast") {
            found.push(format!("csinode {}", node["metadata"]["name"]));
        }
    }
    found
}

/// Mounts, loop devices, sockets and directories of Holdfast on the nodes, but for those of `kept`.
fn traces(bed: &Bed, kept: &[&str]) -> Vec<String> {
    let look = "grep -E 'holdfast' /proc/self/mountinfo | grep -v -E ' - (overlay|tmpfs) '; \
                losetup --list --noheadings --output NAME,BACK-FILE | grep -E ' /volume|/(lib|data)/holdfast/'; \
                find /var/lib/kubelet/plugins /var/lib/kubelet/plugins_registry -name '*holdfast*'; \
                find /var/lib/holdfast /mnt/data/holdfast -mindepth 1 -maxdepth 1 2>/dev/null";
    let mut found = Vec::new();
    for node in bed.nodes().unwrap() {
        let Some(text) = bed.on_node(&node, look) else { continue };
        let left = text.lines().filter(|line| !kept.iter().any(|name| line.ends_with(name)));
        found.extend(left.map(|line| format!("{node}: {line}")));
    }
    found
}

#[test]
fn holdfast_goes_without_a_trace_and_comes_back_with_the_data() {
    let test = "holdfast_goes_without_a_trace_and_comes_back_with_the_data";
    let Some(bed) = Bed::find(test) else { return };
    let Some(installer) = Installer::find(&bed, test) else { return };
    bed.well(PATIENCE).unwrap();
    let namespace = Namespace::new(&bed, "holdfast-e2e-removal").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    postgres.sql(0, "create table kept as select generate_series(1, 1000) as n").unwrap();

    let (done, said) = installer.uninstall(&[]);
    assert!(!done && said.contains("holdfast-e2e-removal/pg-0"), "it names who uses it: {said}");
    assert_eq!(postgres.sql(0, "select count(*) from kept").unwrap(), "1000", "nothing happened");

    postgres.scale(0).unwrap();
    let (done, said) = installer.uninstall(&[]);
    assert!(done, "{said}");
    assert_eq!(remains(&bed), Vec::<String>::new());
    let kept = ["/identity.json", "/pool", "/node-1", "/node-2", "/node-3", "/node-4", "/node-5"];
    assert_eq!(traces(&bed, &kept), Vec::<String>::new());

    installer.install();
    postgres.scale(1).unwrap();
    assert_eq!(postgres.sql(0, "select count(*) from kept").unwrap(), "1000");

    postgres.scale(0).unwrap();
    let (done, said) = installer.uninstall(&["--wipe"]);
    assert!(done, "{said}");
    assert_eq!(remains(&bed), Vec::<String>::new());
    assert_eq!(traces(&bed, &[]), Vec::<String>::new());
    let claims =
        ["get", "persistentvolumeclaims,persistentvolumes", "-n", &namespace.name, "-o", "name"];
    assert_eq!(bed.kubectl(&claims).unwrap().trim(), "", "no finalizer held them");
    drop(namespace);

    installer.install();
    let nodes = bed.nodes().unwrap();
    let volumes = bed.holdfast(&nodes[0], &["volume", "list"]).unwrap();
    assert_eq!(volumes, serde_json::json!([]), "a new cluster");
}
