//! A small language for the tables. A cluster of voters 1, 2, 3 holds a volume of 1 GiB with
//! `repl: "2"` and replicas a on node 1 and b on node 2; then come steps, separated by `;`:
//!
//! ```text
//! lost N | up N | register N | remove N
//! create NAME [KEY=VALUE ...] | ready R | failed R | add R | remove-replica R
//! delete | deleted R | expand MIB | resized R MIB
//! begin N [internal] | activate RR | detach clean|dirty | fence | sealed R | shrink RR | grow R
//! snap S [as=NAME] [hidden] | taken S RR | abort S | unsnap S | dropped S R | filled
//! ```
//! `@E`, `vV`, `+N` and `iI` give an epoch, an ISR version, a count of added replicas or an engine other
//! than the current one, `#ID` another volume. Each step but the last must succeed.

use crate::*;
use std::collections::BTreeMap;
use types::{
    BootId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, PoolId, ReplicaId, SnapshotId,
    VolumeId,
};
use uuid::Uuid;

pub(super) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(0xF00));

pub(super) fn replica(name: char) -> ReplicaId {
    ReplicaId(Uuid::from_u128(u128::from(u32::from(name))))
}

pub(super) fn snapshot(name: &str) -> SnapshotId {
    SnapshotId(Uuid::from_u128(u128::from(u32::from(name.chars().next().unwrap())) << 16))
}

fn replicas(names: &str) -> Vec<ReplicaId> {
    names.chars().filter(|c| *c != '-').map(replica).collect()
}

/// Replica a is on node 1, b on node 2, and so on.
fn new_replica(name: char) -> NewReplica {
    NewReplica {
        replica: replica(name),
        incarnation: Incarnation(Uuid::from_u128(u128::from(u32::from(name)) << 8)),
        node: NodeId(u64::from(u32::from(name) - u32::from('a') + 1)),
    }
}

pub(super) fn info(node: u64) -> NodeInfo {
    NodeInfo {
        node: NodeId(node),
        name: format!("node{node}"),
        control_address: format!("10.0.0.{node}:7420"),
        data_address: format!("10.0.0.{node}:7421"),
        pool: Some(PoolInfo { id: PoolId(Uuid::from_u128(u128::from(node))), bytes: 10 << 30 }),
        class: None,
        zone: None,
        boot: BootId(Uuid::from_u128(7)),
        process: EngineInstance(Uuid::from_u128(8)),
    }
}

pub(super) struct Story {
    pub state: State,
    pub events: Vec<&'static str>,
}

/// One word for an outcome.
pub(super) fn word(outcome: &Outcome) -> String {
    match outcome {
        Ok(Done::Ok) => "Ok".into(),
        Ok(Done::Volume { existing: true, .. } | Done::Snapshot { existing: true, .. }) => {
            "Existing".into()
        }
        Ok(Done::Volume { existing: false, .. }) => "Created".into(),
        Ok(Done::Snapshot { existing: false, .. }) => "Begun".into(),
        Ok(Done::Deleting { remaining }) => format!("Deleting {remaining}"),
        Ok(Done::Epoch { epoch, clean }) => {
            format!("Epoch {epoch} {}", if *clean { "clean" } else { "dirty" })
        }
        Ok(Done::Isr { isr_version }) => format!("Isr v{}", isr_version.0),
        Ok(Done::NotGrown { isr_version, .. }) => format!("NotGrown v{}", isr_version.0),
        Ok(Done::Size { committed, target }) => {
            format!("Size {}/{}", committed >> 20, target >> 20)
        }
        Err(Refused::Conflict { field, .. }) => format!("Conflict {field}"),
        Err(Refused::Invalid { field, .. }) => format!("Invalid {field}"),
        Err(refused) => {
            let text = format!("{refused:?}");
            text.split([' ', '{']).next().unwrap().to_owned()
        }
    }
}

impl Story {
    /// Nodes only.
    pub(super) fn nodes() -> Self {
        let mut state = State::default();
        state.membership.voters = (1..=3).map(NodeId).collect();
        let mut story = Self { state, events: Vec::new() };
        for node in 1..=3 {
            story.must(&format!("register {node}"));
        }
        story
    }

    /// With the volume.
    pub(super) fn new() -> Self {
        let mut story = Self::nodes();
        for step in ["create data", "ready a", "ready b"] {
            story.must(step);
        }
        story.events.clear();
        story
    }

    pub(super) fn must(&mut self, step: &str) {
        let outcome = self.step(step);
        assert!(outcome.is_ok(), "{step:?} was refused: {outcome:?}");
    }

    pub(super) fn volume(&self) -> &Volume {
        &self.state.volumes[&VOLUME]
    }

    pub(super) fn apply(&mut self, command: &Command) -> Outcome {
        // What goes through the log must come out of it unchanged.
        let command: Command = decode(&encode(command).unwrap()).unwrap();
        let before = self.state.clone();
        let applied = self.state.apply(before.applied + 1, 1, &command);
        if applied.outcome.is_err() {
            let moved = State { applied: self.state.applied, applied_term: 1, ..before };
            assert_eq!(self.state, moved, "a refused command changed something");
        } else {
            self.check_changed(&before, &applied);
        }
        self.check_invariants();
        self.events.extend(applied.events.iter().map(|event| event.kind.as_str()));
        applied.outcome
    }

    fn check_invariants(&self) {
        for volume in self.state.volumes.values() {
            let live = !volume.is_deleted();
            assert!(!live || !volume.isr.is_empty(), "R4: the ISR is never empty");
            assert!(volume.isr.iter().all(|id| volume.replicas.contains_key(id)));
            let retired = volume.lifecycle == Lifecycle::Retired;
            let ready = |s: &&Snapshot| s.state == SnapshotState::Ready;
            let mut kept = self.state.snapshots_of(volume.volume).filter(ready).peekable();
            assert!(!retired || kept.peek().is_some(), "nothing keeps a retired volume");
            for snapshot in kept {
                assert!(
                    volume.isr.is_subset(&snapshot.holders),
                    "who is in sync has every snapshot"
                );
            }
            assert!(volume.attachment.holder().is_some() || !volume.internal);
        }
        for snapshot in self.state.snapshots.values() {
            let volume = self.state.volumes.get(&snapshot.volume).expect("its volume's record");
            let taking = snapshot.state == SnapshotState::Creating;
            assert_eq!(snapshot.holders.is_empty(), taking, "{snapshot:?}");
            assert!(snapshot.holders.iter().all(|id| volume.replicas.contains_key(id)));
            assert!(!taking || volume.lifecycle == Lifecycle::Live, "{snapshot:?}");
        }
        for volume in self.state.volumes.values() {
            let unfilled = matches!(volume.lifecycle, Lifecycle::Creating | Lifecycle::Filling);
            let Some(source) = volume.source.filter(|_| unfilled) else { continue };
            // It may be lost with its last replica, but nobody deletes it.
            let source = self.state.snapshots.get(&source.snapshot());
            assert!(source.is_none_or(|source| source.state == SnapshotState::Ready));
        }
    }

    /// Persistence relies on `changed`.
    fn check_changed(&self, before: &State, applied: &Applied) {
        let differs = |changed: &Changed| match changed {
            Changed::Node(id) => before.nodes.get(id) != self.state.nodes.get(id),
            Changed::Volume(id) => before.volumes.get(id) != self.state.volumes.get(id),
            Changed::Snapshot(id) => before.snapshots.get(id) != self.state.snapshots.get(id),
            Changed::Event(id) => before.events.get(id) != self.state.events.get(id),
        };
        let all = |state: &State| -> Vec<Changed> {
            let nodes = state.nodes.keys().map(|id| Changed::Node(*id));
            let volumes = state.volumes.keys().map(|id| Changed::Volume(*id));
            let snapshots = state.snapshots.keys().map(|id| Changed::Snapshot(*id));
            let events = state.events.keys().map(|id| Changed::Event(*id));
            nodes.chain(volumes).chain(snapshots).chain(events).collect()
        };
        for changed in all(before).iter().chain(&all(&self.state)) {
            assert!(
                !differs(changed) || applied.changed.contains(changed),
                "{changed:?} is missing"
            );
        }
    }

    pub(super) fn step(&mut self, step: &str) -> Outcome {
        let command = self.parse(step);
        self.apply(&command)
    }

    fn parse(&self, step: &str) -> Command {
        let other = step.split_whitespace().find_map(|word| word.strip_prefix('#'));
        let volume =
            other.map_or(VOLUME, |id| VolumeId(Uuid::from_u128(id.parse::<u128>().unwrap())));
        let known = self.state.volumes.get(&volume);
        let mut epoch = known.map_or(Epoch(0), |v| v.epoch);
        let mut isr_version = known.map_or(IsrVersion(0), |v| v.isr_version);
        let mut added = known.map_or(0, |v| v.added);
        let mut instance = known.and_then(|v| v.attachment.instance());
        let mut words = Vec::new();
        for text in step.split_whitespace() {
            let rest = || text[1..].parse::<u64>();
            match text.as_bytes()[0] {
                b'#' => {}
                b'+' => added = rest().unwrap(),
                b'@' => epoch = Epoch(rest().unwrap()),
                b'v' if rest().is_ok() => isr_version = IsrVersion(rest().unwrap()),
                b'i' if rest().is_ok() => {
                    instance = Some(EngineInstance(Uuid::from_u128(rest().unwrap().into())));
                }
                _ => words.push(text),
            }
        }
        let argument = |at: usize| words.get(at).copied().unwrap_or_default();
        let node = || NodeId(argument(1).parse().unwrap());
        let replica = || replica(argument(1).chars().next().unwrap());
        let size = |at: usize| argument(at).parse::<u64>().unwrap() << 20;
        let holder = instance.unwrap_or_default();
        match words[0] {
            "lost" => Command::NodeLost { node: node() },
            "up" => {
                let NodeInfo { node, boot, process, .. } = info(node().0);
                Command::NodeUp { node, boot, process }
            }
            "register" => Command::RegisterNode(info(node().0)),
            "reboot" => {
                let boot = BootId(Uuid::from_u128(8));
                Command::RegisterNode(NodeInfo { boot, ..info(node().0) })
            }
            "remove" => Command::RemoveNode { node: node() },
            "create" => create(&words),
            "ready" => Command::ReplicaReady { replica: replica() },
            "failed" => Command::ReplicaFailed { replica: replica(), reason: "test".into() },
            "add" => {
                let replica = new_replica(argument(1).chars().next().unwrap());
                Command::AddReplica { volume, added, replica }
            }
            "remove-replica" => Command::RemoveReplica { volume, replica: replica(), isr_version },
            "modify" => {
                let value = |key: &str| {
                    words.iter().find_map(|w| w.split_once('=').filter(|(k, _)| *k == key))
                };
                let repl = value("repl").map(|(_, repl)| repl.parse().unwrap());
                let class =
                    value("class").map(|(_, text)| PoolClass::parse_optional(text).unwrap());
                Command::ModifyVolume { volume, repl, class }
            }
            "limit" => {
                let value = |key: &str| {
                    let pair = words.iter().find_map(|w| w.split_once('=').filter(|p| p.0 == key));
                    // "none" is no number.
                    pair.map(|(_, limit)| limit.parse().ok())
                };
                Command::LimitVolume { volume, iops: value("iops"), bandwidth: value("bytes") }
            }
            "move" => {
                let to = new_replica(argument(2).chars().next().unwrap());
                Command::MoveReplica { volume, added, from: replica(), to }
            }
            "release" => Command::ReleaseReplica { volume, replica: replica(), isr_version },
            "delete" => Command::DeleteVolume { volume },
            "deleted" => Command::ReplicaDeleted { replica: replica() },
            "expand" => Command::ExpandBegin { volume, size: size(1) },
            "resized" => Command::ReplicaResized { replica: replica(), size: size(2) },
            "begin" => {
                let own = EngineInstance(Uuid::from_u128(node().0.into()));
                let given = step.split_whitespace().any(|w| w.starts_with('i'));
                let instance = if given { holder } else { own };
                let internal = words.contains(&"internal");
                let expected_epoch = epoch;
                Command::BeginAttach { volume, node: node(), instance, expected_epoch, internal }
            }
            "activate" => Command::Activate {
                volume,
                epoch,
                instance: holder,
                isr: replicas(argument(1)),
                isr_version,
            },
            "detach" => {
                let clean = argument(1) == "clean";
                Command::Detach { volume, epoch, instance: holder, clean }
            }
            "fence" => Command::Fence { volume, expected_epoch: epoch },
            "sealed" => Command::FenceSealed { volume, epoch, replica: replica() },
            "shrink" => {
                Command::ShrinkIsr { volume, epoch, isr_version, remove: replicas(argument(1)) }
            }
            "grow" => Command::GrowIsr { volume, epoch, isr_version, add: replica() },
            "snap" => {
                let named = words.iter().find_map(|word| word.strip_prefix("as="));
                Command::CreateSnapshot {
                    snapshot: snapshot(argument(1)),
                    name: named.unwrap_or(argument(1)).replace("<empty>", ""),
                    volume,
                    created_unix_ms: 1_700_000_000_000,
                    hidden: words.contains(&"hidden"),
                }
            }
            "taken" => Command::SnapshotTaken {
                snapshot: snapshot(argument(1)),
                epoch,
                isr_version,
                holders: replicas(argument(2)),
            },
            "abort" => Command::AbortSnapshot { snapshot: snapshot(argument(1)) },
            "unsnap" => Command::DeleteSnapshot { snapshot: snapshot(argument(1)) },
            "dropped" => Command::SnapshotDropped {
                snapshot: snapshot(argument(1)),
                replica: self::replica(argument(2).chars().next().unwrap()),
            },
            "filled" => Command::Filled { volume, epoch },
            other => panic!("no step {other:?}"),
        }
    }
}

fn create(words: &[&str]) -> Command {
    let pairs: BTreeMap<&str, &str> = words[2..].iter().filter_map(|w| w.split_once('=')).collect();
    let get =
        |key: &str, default: &'static str| pairs.get(key).copied().unwrap_or(default).to_owned();
    Command::CreateVolume {
        volume: VolumeId(Uuid::from_u128(get("id", "3840").parse().unwrap())),
        name: words[1].replace("<empty>", "").replace("<long>", &"x".repeat(129)),
        size: get("bytes", "1073741824").parse().unwrap(),
        repl: get("repl", "2").parse().unwrap(),
        class: PoolClass::parse_optional(&get("class", "")).unwrap(),
        fs_type: FsType::parse_optional(&get("fs", "ext4")).unwrap(),
        pinned: false,
        source: match (pairs.get("source"), pairs.get("clone")) {
            (Some(name), _) => Some(Source::Snapshot(snapshot(name))),
            (_, Some(name)) => Some(Source::Clone { volume: VOLUME, snapshot: snapshot(name) }),
            _ => None,
        },
        replicas: get("on", "ab").chars().filter(|c| *c != '-').map(new_replica).collect(),
    }
}

/// Runs each row from the start: the outcome of the last step is the word.
pub(super) fn check(start: fn() -> Story, rows: &[(&str, &str)]) {
    for (steps, expected) in rows {
        let mut story = start();
        let (before, last) = steps.rsplit_once(';').unwrap_or(("", steps));
        for step in before.split(';').map(str::trim).filter(|step| !step.is_empty()) {
            story.must(step);
        }
        let outcome = story.step(last.trim());
        assert_eq!(word(&outcome), *expected, "{steps}: {outcome:?}");
    }
}
