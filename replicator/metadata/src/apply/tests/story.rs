//! A small language for the tables. A cluster of voters 1, 2, 3 holds a volume of 1 GiB with
//! `repl: "2"` and replicas a on node 1 and b on node 2; then come steps, separated by `;`:
//!
//! ```text
//! lost N | up N | register N | remove N
//! create NAME [KEY=VALUE ...] | ready R | failed R | add R | remove-replica R
//! delete | deleted R | expand MIB | resized R MIB
//! begin N | activate RR | detach clean|dirty | fence | sealed R | shrink RR | grow R
//! ```
//! `@E`, `vV` and `iI` give an epoch, an ISR version or an engine other than the current one. Each
//! step but the last must succeed.

use crate::*;
use std::collections::BTreeMap;
use types::{
    BootId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, PoolId, ReplicaId, VolumeId,
};
use uuid::Uuid;

pub(super) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(0xF00));

pub(super) fn replica(name: char) -> ReplicaId {
    ReplicaId(Uuid::from_u128(u128::from(u32::from(name))))
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
        Ok(Done::Volume { existing: true, .. }) => "Existing".into(),
        Ok(Done::Volume { existing: false, .. }) => "Created".into(),
        Ok(Done::Deleting { remaining }) => format!("Deleting {remaining}"),
        Ok(Done::Epoch { epoch, clean }) => {
            format!("Epoch {epoch} {}", if *clean { "clean" } else { "dirty" })
        }
        Ok(Done::Isr { isr_version }) => format!("Isr v{}", isr_version.0),
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
        for volume in self.state.volumes.values() {
            let live = volume.lifecycle != Lifecycle::Deleting;
            assert!(!live || !volume.isr.is_empty(), "R4: the ISR is never empty");
            assert!(volume.isr.iter().all(|id| volume.replicas.contains_key(id)));
        }
        self.events.extend(applied.events.iter().map(|event| event.kind.as_str()));
        applied.outcome
    }

    /// Persistence relies on `changed`.
    fn check_changed(&self, before: &State, applied: &Applied) {
        let differs = |changed: &Changed| match changed {
            Changed::Node(id) => before.nodes.get(id) != self.state.nodes.get(id),
            Changed::Volume(id) => before.volumes.get(id) != self.state.volumes.get(id),
            Changed::Event(id) => before.events.get(id) != self.state.events.get(id),
        };
        let all = |state: &State| -> Vec<Changed> {
            let nodes = state.nodes.keys().map(|id| Changed::Node(*id));
            let volumes = state.volumes.keys().map(|id| Changed::Volume(*id));
            nodes.chain(volumes).chain(state.events.keys().map(|id| Changed::Event(*id))).collect()
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
        let volume = VOLUME;
        let known = self.state.volumes.get(&volume);
        let mut epoch = known.map_or(Epoch(0), |v| v.epoch);
        let mut isr_version = known.map_or(IsrVersion(0), |v| v.isr_version);
        let mut instance = known.and_then(|v| v.attachment.instance());
        let mut words = Vec::new();
        for text in step.split_whitespace() {
            let rest = || text[1..].parse::<u64>();
            match text.as_bytes()[0] {
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
            "remove" => Command::RemoveNode { node: node() },
            "create" => create(&words),
            "ready" => Command::ReplicaReady { replica: replica() },
            "failed" => Command::ReplicaFailed { replica: replica(), reason: "test".into() },
            "add" => {
                let replica = new_replica(argument(1).chars().next().unwrap());
                Command::AddReplica { volume, replica }
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
            "move" => {
                let to = new_replica(argument(2).chars().next().unwrap());
                Command::MoveReplica { volume, from: replica(), to }
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
                Command::BeginAttach { volume, node: node(), instance, expected_epoch: epoch }
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
