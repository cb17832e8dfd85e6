//! Keeps the pool in step with the applied state; `control::reconcile`.

use super::Ended;
use super::propose::{After, is_done};
use crate::node::Death;
use crate::world::World;
use core::time::Duration;
use metadata::Outcome;
use policy::pool::{Report, Task, plan, swapped};
use store::StoreError;
use types::ReplicaId;

const REPORT: Duration = Duration::from_secs(5);

impl World {
    pub(crate) fn reconcile_pool(&mut self, n: usize) {
        let now = self.local(n);
        let here = self.nodes[n].id;
        let Some(process) = &mut self.nodes[n].process else { return };
        let pool = process.data.store.stats().pool;
        if swapped(process.meta.state(), here, pool).is_some() {
            // `control::reconcile::swapped`: the state that the daemon started with was behind.
            self.note(|| format!("node {}: its replicas are in another pool", n + 1));
            self.kill(n, Death::Kill);
            return self.restart_later(n);
        }
        let Some(process) = &mut self.nodes[n].process else { return };
        let present = process.data.store.replicas();
        if present.is_empty() && process.meta.state().replicas_on(here).next().is_none() {
            return;
        }
        let mut due = Vec::new();
        for task in plan(process.meta.state(), here, pool, &present) {
            if process.control.pool_steps.begin(task.replica(), now) {
                due.push(task);
            }
        }
        for task in due {
            self.note(|| format!("node {} pool: {task:?}", n + 1));
            if let Some(question) = task.question() {
                self.propose(n, question, REPORT, After::Question(task));
            } else if task.admin().is_some() {
                self.pool_admin(n, task);
            } else {
                self.pool_task_done(n, task, &Ok(()));
            }
        }
    }

    /// The pool answered.
    pub(crate) fn pool_task_done(&mut self, n: usize, task: Task, done: &Result<(), StoreError>) {
        let replica = task.replica();
        match task.report(done) {
            Report::Propose(report) => self.propose(n, report, REPORT, After::Pool(replica)),
            Report::Nothing => self.pool_step_ended(n, replica, Ended::Done),
            Report::NotDone => self.pool_step_ended(n, replica, Ended::Refused),
        }
    }

    pub(crate) fn pool_reported(
        &mut self,
        n: usize,
        replica: ReplicaId,
        outcome: &Option<Outcome>,
    ) {
        let ended = match outcome {
            done if is_done(done) => Ended::Done,
            Some(_) => Ended::Refused,
            None => Ended::Again,
        };
        self.pool_step_ended(n, replica, ended);
    }

    /// The leader answered whether there is such a replica.
    pub(crate) fn pool_answered(&mut self, n: usize, task: Task, outcome: &Option<Outcome>) {
        match outcome {
            Some(Err(refused)) if task.is_confirmed_by(refused) => self.pool_admin(n, task),
            Some(_) => self.pool_step_ended(n, task.replica(), Ended::Done),
            None => self.pool_step_ended(n, task.replica(), Ended::Again),
        }
    }

    fn pool_step_ended(&mut self, n: usize, replica: ReplicaId, ended: Ended) {
        let now = self.local(n);
        if let Some(control) = self.control(n) {
            control.pool_steps.end(replica, ended, now);
        }
    }
}
