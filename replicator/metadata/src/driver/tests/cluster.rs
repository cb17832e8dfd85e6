//! The test bed. Everything is deterministic: election timeouts differ by node and are fixed.

use super::super::*;
use crate::apply::Changed;
use crate::storage::{LogBatch, LogContents};
use crate::{Command, NodeInfo, Outcome};
use core::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use types::BootId;
use uuid::Uuid;

/// A log whose contents outlive the driver.
#[derive(Clone, Default)]
pub(super) struct TestLog {
    pub contents: Rc<RefCell<LogContents>>,
    pub persists: Rc<RefCell<u64>>,
    pub rewrites: Rc<RefCell<u64>>,
    pub fail: Rc<RefCell<bool>>,
}

impl LogStore for TestLog {
    fn persist(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        if *self.fail.borrow() {
            return Err("the disk is gone".into());
        }
        *self.persists.borrow_mut() += 1;
        let mut contents = self.contents.borrow_mut();
        if let Some(hard_state) = batch.hard_state {
            contents.hard_state = hard_state;
        }
        if let Some(first) = batch.entries.first() {
            contents.entries.retain(|entry| entry.index < first.index);
            contents.entries.extend(batch.entries.iter().cloned());
        }
        Ok(())
    }

    fn rewrite(&mut self, contents: &LogContents) -> Result<(), StoreError> {
        *self.rewrites.borrow_mut() += 1;
        *self.contents.borrow_mut() = contents.clone();
        Ok(())
    }
}

/// An applied state of which only what was flushed survives.
#[derive(Clone, Default)]
pub(super) struct TestApplied {
    now: Option<State>,
    pub durable: Rc<RefCell<Option<State>>>,
}

impl AppliedStore for TestApplied {
    fn write(&mut self, state: &State, _changed: &BTreeSet<Changed>) {
        self.now = Some(state.clone());
    }

    fn replace(&mut self, state: &State) {
        self.now = Some(state.clone());
    }

    fn flush(&mut self) {
        *self.durable.borrow_mut() = self.now.clone();
    }
}

pub(super) struct Member {
    pub driver: Option<Driver<TestLog, TestApplied>>,
    pub log: TestLog,
    pub applied: TestApplied,
    pub config: DriverConfig,
    runs: u128,
}

pub(super) struct Cluster {
    pub members: BTreeMap<u64, Member>,
    /// Nodes that nobody hears and that hear nobody.
    pub cut: BTreeSet<u64>,
    /// Answers by node, in order.
    pub answers: Vec<(u64, Output)>,
    network: VecDeque<(u64, u64, Vec<u8>)>,
    tickets: u64,
}

pub(super) fn info(node: u64) -> NodeInfo {
    NodeInfo {
        node: NodeId(node),
        name: format!("node{node}"),
        control_address: format!("10.0.0.{node}:7420"),
        data_address: format!("10.0.0.{node}:7421"),
        pool: None,
        class: None,
        zone: None,
        boot: BootId(Uuid::from_u128(7)),
        process: EngineInstance(Uuid::from_u128(u128::from(node))),
    }
}

impl Cluster {
    /// `founders` voters 1.., then `joiners` with empty logs.
    pub(super) fn new(founders: u64, joiners: u64) -> Self {
        let voters: Vec<NodeId> = (1..=founders).map(NodeId).collect();
        let mut cluster = Self {
            members: BTreeMap::new(),
            cut: BTreeSet::new(),
            answers: Vec::new(),
            network: VecDeque::new(),
            tickets: 0,
        };
        for node in 1..=founders + joiners {
            let log = TestLog::default();
            if node <= founders {
                *log.contents.borrow_mut() = LogContents::found(&voters).unwrap();
            }
            let config = DriverConfig {
                snapshot_entries: 50,
                snapshot_bytes: 1 << 20,
                keep_entries: 10,
                election_ticks: Some(10 + (node as usize - 1) * 2 % 10),
                ..DriverConfig::new(NodeId(node), EngineInstance::default())
            };
            let applied = TestApplied::default();
            cluster.members.insert(node, Member { driver: None, log, applied, config, runs: 0 });
            cluster.start(node).unwrap();
        }
        cluster
    }

    pub(super) fn start(&mut self, node: u64) -> Result<(), DriverError> {
        let member = self.members.get_mut(&node).unwrap();
        member.runs += 1;
        let instance = Uuid::from_u128(u128::from(node) << 64 | member.runs);
        member.config.instance = EngineInstance(instance);
        let durable = member.applied.durable.borrow().clone();
        member.applied.now = durable.clone();
        let contents = member.log.contents.borrow().clone();
        let driver = Driver::open(
            member.config,
            contents,
            durable,
            member.log.clone(),
            member.applied.clone(),
        )?;
        member.driver = Some(driver);
        Ok(())
    }

    /// Ends a member as SIGKILL would.
    pub(super) fn kill(&mut self, node: u64) {
        self.members.get_mut(&node).unwrap().driver = None;
        self.network.retain(|(_, to, _)| *to != node);
    }

    pub(super) fn driver(&self, node: u64) -> &Driver<TestLog, TestApplied> {
        self.members[&node].driver.as_ref().unwrap()
    }

    pub(super) fn state(&self, node: u64) -> &State {
        self.driver(node).state()
    }

    pub(super) fn input(&mut self, node: u64, input: Input) {
        self.try_input(node, input).unwrap();
    }

    pub(super) fn try_input(&mut self, node: u64, input: Input) -> Result<(), DriverError> {
        let Some(driver) = self.members.get_mut(&node).unwrap().driver.as_mut() else {
            return Ok(());
        };
        let mut out = Vec::new();
        driver.step(input, &mut out)?;
        driver.flush(&mut out)?;
        for output in out {
            match output {
                Output::Send { to, message } => self.network.push_back((node, to.0, message)),
                other => self.answers.push((node, other)),
            }
        }
        Ok(())
    }

    /// Delivers messages until there are none.
    pub(super) fn settle(&mut self) {
        while let Some((from, to, message)) = self.network.pop_front() {
            if self.cut.contains(&from) || self.cut.contains(&to) || !self.members.contains_key(&to)
            {
                continue;
            }
            self.input(to, Input::Message(message));
        }
    }

    /// One tick everywhere, then quiet.
    pub(super) fn tick(&mut self, ticks: u32) {
        for _ in 0..ticks {
            let nodes: Vec<u64> = self.members.keys().copied().collect();
            for node in nodes {
                self.input(node, Input::Tick);
            }
            self.settle();
        }
    }

    /// The one leader among members that are not cut off.
    pub(super) fn leader(&self) -> Option<u64> {
        let mut leaders = self.members.iter().filter(|(node, member)| {
            let leads = |d: &Driver<_, _>| d.status().role == Role::Leader;
            !self.cut.contains(node) && member.driver.as_ref().is_some_and(leads)
        });
        let leader = leaders.next().map(|(node, _)| *node);
        assert!(leaders.next().is_none(), "two leaders hear each other");
        leader
    }

    /// Ticks until there is a leader.
    pub(super) fn elect(&mut self) -> u64 {
        for _ in 0..100 {
            self.tick(1);
            if let Some(leader) = self.leader() {
                self.tick(3);
                return leader;
            }
        }
        panic!("no leader within 100 ticks");
    }

    pub(super) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    pub(super) fn propose(&mut self, node: u64, command: Command) -> u64 {
        let ticket = self.ticket();
        self.input(node, Input::Propose { ticket, command });
        ticket
    }

    pub(super) fn proposed(&self, ticket: u64) -> Option<Result<(u64, Outcome), ProposeError>> {
        let mut found = self.answers.iter().filter_map(|(_, output)| match output {
            Output::Proposed { ticket: t, result } if *t == ticket => Some(result.clone()),
            _ => None,
        });
        let result = found.next();
        assert!(found.next().is_none(), "ticket {ticket} answered twice");
        result
    }

    pub(super) fn read(&self, ticket: u64) -> Option<Result<u64, ProposeError>> {
        self.answers.iter().find_map(|(_, output)| match output {
            Output::Read { ticket: t, result } if *t == ticket => Some(*result),
            _ => None,
        })
    }

    /// Proposes on the leader and waits for success.
    pub(super) fn must(&mut self, node: u64, command: Command) -> u64 {
        let ticket = self.propose(node, command);
        self.settle();
        let (index, outcome) = self.proposed(ticket).unwrap().unwrap();
        outcome.unwrap();
        index
    }

    pub(super) fn change(&mut self, node: u64, change: Change) -> Result<u64, ChangeError> {
        let ticket = self.ticket();
        self.input(node, Input::ChangeMembership { ticket, change });
        self.settle();
        self.answers
            .iter()
            .find_map(|(_, output)| match output {
                Output::Changed { ticket: t, result } if *t == ticket => Some(result.clone()),
                _ => None,
            })
            .unwrap()
    }
}
