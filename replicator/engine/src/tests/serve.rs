//! The replicas' side of the world, and how it breaks.

use super::replica::{Replica, SessionKey};
use super::world::{Event, World};
use crate::{Input, LinkId};
use core::time::Duration;
use std::collections::BTreeMap;
use wire::{Hello, Reply, Request, Role, WireError};

impl World {
    // ---- faults ------------------------------------------------------------------------------

    /// Every link of the replica breaks; messages under way are lost. The engine notices within
    /// `notice`.
    pub(super) fn cut(&mut self, replica: usize, notice: Duration) {
        let keys: Vec<SessionKey> =
            self.links.iter().filter(|(_, r)| **r == replica).map(|(key, _)| *key).collect();
        for key in keys {
            self.links.remove(&key);
            self.queue.retain(|_, event| !matches!(event,
                Event::Hello { key: k, .. } | Event::Request { key: k, .. } | Event::Reply { key: k, .. } if *k == key));
            let bound = u64::try_from(notice.as_nanos()).unwrap().max(1);
            let due = self.now.after(Duration::from_nanos(self.rng.below(bound)));
            self.post(due, Event::Broken { key });
            self.post(due, Event::Closed { key });
        }
    }

    /// The replica's process dies; with `power`, the host does.
    pub(super) fn kill(&mut self, replica: usize, power: bool) {
        self.cut(replica, Duration::from_millis(5));
        // What the kernel had taken is done, or is lost with the power.
        let disk: Vec<_> = self
            .queue
            .iter()
            .filter(|(_, e)| matches!(e, Event::Disk { replica: r, .. } if *r == replica))
            .map(|(at, _)| *at)
            .collect();
        for at in disk {
            if let Some(Event::Disk { key, request, was, process, .. }) = self.queue.remove(&at)
                && process == self.replicas[replica].process
                && self.rng.chance(50)
                && !matches!(request, Request::SealEra { .. } | Request::Close { .. })
            {
                let epoch = self.slots[key.0].epoch;
                self.replicas[replica].execute(epoch, &request, &was, self.now);
            }
        }
        if power {
            self.replicas[replica].lose_power(&mut self.rng);
            self.history.power_lost();
            self.power_lost[replica] = Some(self.history.clock);
        } else {
            self.replicas[replica].kill();
        }
    }

    pub(super) fn revive(&mut self, replica: usize) {
        self.replicas[replica].alive = true;
    }

    /// Its host loses power and is back, behind links that look alive for a while.
    pub(super) fn reboot_unnoticed(&mut self, replica: usize) {
        self.cut(replica, Duration::from_secs(60));
        self.kill(replica, true);
        self.revive(replica);
    }

    /// Its process is killed and finds another pool.
    pub(super) fn restore(&mut self, replica: usize, image: Replica) {
        self.kill(replica, false);
        let process = self.replicas[replica].process;
        self.replicas[replica] = image;
        self.replicas[replica].kill();
        self.replicas[replica].process = process;
        self.revive(replica);
    }

    pub(super) fn silence(&mut self, replica: usize, time: Duration) {
        self.replicas[replica].silent_until = self.now.after(time);
    }

    // ---- service -----------------------------------------------------------------------------

    pub(super) fn hello(&mut self, key: SessionKey, hello: Hello) {
        let Some(index) = self.links.get(&key).copied() else { return };
        if !self.replicas[index].alive {
            self.links.remove(&key);
            return self.post(self.now, Event::Broken { key });
        }
        match self.replicas[index].hello(key, hello) {
            Ok(()) => self.tell(key.0, Input::Connected { link: LinkId(key.1) }),
            Err(error) => {
                let due = self.ordered(key, false);
                self.post(due, Event::Reply { key, seq: 0, reply: Reply::Failed(error) });
                self.post(due, Event::Broken { key });
            }
        }
    }

    pub(super) fn request(&mut self, key: SessionKey, seq: u64, request: Request) {
        let Some(index) = self.links.get(&key).copied() else { return };
        let replica = &mut self.replicas[index];
        let Some(session) = replica.sessions.get(&key) else { return };
        match request {
            Request::Seal => match replica.seal(key, seq) {
                Ok(closed) => {
                    for key in closed {
                        let due = self.ordered(key, false);
                        self.post(due, Event::Broken { key });
                    }
                    self.check_seals(index);
                }
                Err(error) => self.answer(index, key, seq, Reply::Failed(error), false),
            },
            Request::Ping => self.answer(index, key, seq, Reply::Done, true),
            Request::Snapshots => {
                let held = self.replicas[index].list();
                self.answer(index, key, seq, held, true);
            }
            _ if !session.sealed && session.hello.role != Role::Reader => {
                let reason = "not sealed".into();
                self.answer(index, key, seq, Reply::Failed(WireError::Invalid { reason }), false);
            }
            request => {
                *replica.in_flight.entry(key).or_default() += 1;
                let was = match request {
                    Request::Flush => replica.blocks.clone(),
                    _ => BTreeMap::new(),
                };
                let process = replica.process;
                let due = self.random(self.disk);
                let due = self.now.after(due);
                self.post(due, Event::Disk { replica: index, process, key, seq, request, was });
            }
        }
    }

    pub(super) fn answer(
        &mut self,
        replica: usize,
        key: SessionKey,
        seq: u64,
        reply: Reply,
        lease: bool,
    ) {
        if !self.replicas[replica].sessions.contains_key(&key) {
            return;
        }
        if lease {
            self.replicas[replica].grant_lease(key, self.now);
        }
        let due = self.ordered(key, false);
        self.post(due, Event::Reply { key, seq, reply });
    }

    pub(super) fn check_seals(&mut self, index: usize) {
        for (key, seq, reply) in self.replicas[index].finished_seals(self.now) {
            self.answer(index, key, seq, reply, true);
        }
        if !self.replicas[index].sealing.is_empty() && self.replicas[index].lease.0 > self.now {
            self.post(self.replicas[index].lease.0, Event::CheckSeals { replica: index });
        }
    }
}
