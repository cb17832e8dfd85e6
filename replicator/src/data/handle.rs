//! The control plane's end of the data thread.

use super::command::{Answer, Command, DataError, DataEvent, EngineSpec};
use super::pool::{DataConfig, PoolError};
use super::thread;
use engine::{CompareResult, FillSource, IsrAnswer, IsrView, MemberSpec, SnapshotTaken, Status};
use hostio::Waker;
use metadata::Limits;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use store::{Admin, PoolStats, ReplicaInfo};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use types::{ReplicaId, SnapshotId, VolumeId};
use wire::{Hello, SealInfo};

/// Sends commands to the data thread; cheap to clone. Every call answers [`DataError::Ended`] once
/// the thread is gone. The thread ends with the last one.
#[derive(Clone, Debug)]
pub struct DataHandle(Arc<Line>);

/// Dropped in this order: the thread wakes up when there is nobody left who could send.
#[derive(Debug)]
struct Line {
    commands: mpsc::Sender<Command>,
    waker: LastWake,
}

#[derive(Debug)]
struct LastWake(Waker);

impl Drop for LastWake {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// Opens the pool, recovers it and starts the thread.
///
/// # Errors
/// The pool is not the one that the configuration names, is in use, or failed; the ring or the
/// listener could not be set up.
pub fn start(
    config: DataConfig,
) -> Result<(DataHandle, UnboundedReceiver<DataEvent>, JoinHandle<()>), PoolError> {
    let (commands, inbox) = mpsc::channel();
    let (events, outbox) = tokio::sync::mpsc::unbounded_channel();
    let (ready, started) = mpsc::sync_channel(1);
    let join = std::thread::Builder::new()
        .name("data".into())
        .spawn(move || thread::main(config, inbox, events, &ready))
        .map_err(|source| PoolError::Setup { what: "data thread", source })?;
    let waker = started.recv().map_err(|_| PoolError::Ended)??;
    let line = Line { commands, waker: LastWake(waker) };
    Ok((DataHandle(Arc::new(line)), outbox, join))
}

impl DataHandle {
    fn send(&self, command: Command) {
        // A failed send drops the command and with it its answer: the caller sees `Ended`.
        if self.0.commands.send(command).is_ok() {
            self.0.waker.0.wake();
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, DataError> {
        let (answer, result) = oneshot::channel();
        self.send(command(answer));
        result.await.unwrap_or(Err(DataError::Ended))
    }

    /// Makes, deletes or grows a replica. Idempotent.
    ///
    /// # Errors
    /// [`DataError::Store`].
    pub async fn admin(&self, admin: Admin) -> Result<(), DataError> {
        self.ask(|answer| Command::Admin { admin, answer }).await
    }

    /// The replicas in this node's pool.
    ///
    /// # Errors
    /// [`DataError::Ended`].
    pub async fn replicas(&self) -> Result<Vec<ReplicaInfo>, DataError> {
        self.ask(|answer| Command::Replicas { answer }).await
    }

    /// Numbers of this node's pool.
    ///
    /// # Errors
    /// [`DataError::Ended`].
    pub async fn pool(&self) -> Result<PoolStats, DataError> {
        self.ask(|answer| Command::Pool { answer }).await
    }

    /// Seals one replica without an engine (R7), here (`address` `None`) or on another node.
    ///
    /// # Errors
    /// [`DataError::Replica`] if it refused, [`DataError::Unreachable`] after 6 s.
    pub async fn seal(
        &self,
        hello: Hello,
        address: Option<SocketAddr>,
    ) -> Result<SealInfo, DataError> {
        self.ask(|answer| Command::Seal { hello, address, answer }).await
    }

    /// Starts the engine of a granted epoch: seals, chooses the source, reconciles (R2, R20).
    /// Returns the ISR to be committed by `Activate`.
    ///
    /// # Errors
    /// [`DataError::Attached`]; [`DataError::Engine`] if it was superseded or nobody of the ISR
    /// could be sealed in time (stop it then).
    pub async fn start_engine(&self, spec: EngineSpec) -> Result<Vec<ReplicaId>, DataError> {
        let spec = Box::new(spec);
        self.ask(|answer| Command::StartEngine { spec, answer }).await
    }

    /// `Activate` was committed with this ISR: I/O may start.
    ///
    /// # Errors
    /// [`DataError::NotAttached`].
    pub async fn activate(&self, volume: VolumeId, view: IsrView) -> Result<(), DataError> {
        self.ask(|answer| Command::Activate { volume, view, answer }).await
    }

    /// Refreshes addresses and liveness of the volume's replicas.
    pub fn set_members(&self, volume: VolumeId, members: Vec<MemberSpec>) {
        self.send(Command::SetMembers { volume, members });
    }

    /// Lets no more I/O pass than this.
    pub fn set_limits(&self, volume: VolumeId, limits: Limits) {
        self.send(Command::SetLimits { volume, limits });
    }

    /// The volume has `size` bytes now (R25); front-ends are told.
    ///
    /// # Errors
    /// [`DataError::NotAttached`].
    pub async fn resize_engine(&self, volume: VolumeId, size: u64) -> Result<(), DataError> {
        self.ask(|answer| Command::Resize { volume, size, answer }).await
    }

    /// Flushes, seals and closes (R20), and forgets the engine. True if that was clean on every
    /// ISR member. Front-ends must be gone before. Also ends an engine that has failed.
    ///
    /// # Errors
    /// [`DataError::NotAttached`].
    pub async fn stop_engine(&self, volume: VolumeId) -> Result<bool, DataError> {
        self.ask(|answer| Command::StopEngine { volume, answer }).await
    }

    /// The attachment was superseded: every I/O fails at once, now and from here on.
    pub fn fail_engine(&self, volume: VolumeId) {
        self.send(Command::FailEngine { volume });
    }

    /// Serves a FUSE session on `fd`, an open `/dev/fuse` that was mounted: one file called `name`.
    ///
    /// # Errors
    /// [`DataError::NotAttached`], [`DataError::Descriptor`].
    pub async fn attach_fuse(
        &self,
        volume: VolumeId,
        fd: OwnedFd,
        name: String,
    ) -> Result<(), DataError> {
        self.ask(|answer| Command::AttachFuse { volume, fd, name, answer }).await
    }

    /// Serves NBD clients of `listener`.
    ///
    /// # Errors
    /// [`DataError::NotAttached`], [`DataError::Descriptor`].
    pub async fn attach_nbd(
        &self,
        volume: VolumeId,
        listener: UnixListener,
    ) -> Result<(), DataError> {
        self.ask(|answer| Command::AttachNbd { volume, listener, answer }).await
    }

    /// Serves the kernel's NBD driver on `socket`. When that ends unasked, [`DataEvent::LinkDead`]
    /// says so.
    ///
    /// # Errors
    /// [`DataError::NotAttached`], [`DataError::Descriptor`].
    pub async fn attach_kernel_nbd(
        &self,
        volume: VolumeId,
        socket: OwnedFd,
    ) -> Result<(), DataError> {
        self.ask(|answer| Command::AttachKernelNbd { volume, socket, answer }).await
    }

    /// Ends all front-ends of the volume; returns when they are gone.
    ///
    /// # Errors
    /// [`DataError::Ended`].
    pub async fn detach_frontends(&self, volume: VolumeId) -> Result<(), DataError> {
        self.ask(|answer| Command::DetachFrontends { volume, answer }).await
    }

    /// What the engine is doing; `None` if there is none.
    pub async fn engine_status(&self, volume: VolumeId) -> Option<Status> {
        self.ask(|answer| Command::Status { volume, answer }).await.ok()
    }

    /// Compares all in-sync replicas, online.
    ///
    /// # Errors
    /// [`DataError::NotAttached`], [`DataError::Comparison`].
    pub async fn compare(&self, volume: VolumeId) -> Result<CompareResult, DataError> {
        self.ask(|answer| Command::Compare { volume, answer }).await
    }

    /// Takes a snapshot of a volume that is active here (R26). Nothing counts of it before Raft has
    /// committed who holds it.
    ///
    /// # Errors
    /// [`DataError::NotAttached`], [`DataError::Snapshot`].
    pub async fn snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<SnapshotTaken, DataError> {
        self.ask(|answer| Command::Snapshot { volume, snapshot, answer }).await
    }

    /// Copies a snapshot into a new volume that is active here. What was written is not flushed yet:
    /// [`Self::stop_engine`] does that.
    ///
    /// # Errors
    /// [`DataError::NotAttached`], [`DataError::Fill`].
    pub async fn fill(&self, volume: VolumeId, source: FillSource) -> Result<(), DataError> {
        self.ask(|answer| Command::Fill { volume, source, answer }).await
    }

    /// Answers [`DataEvent::ShrinkIsr`] and [`DataEvent::GrowIsr`].
    pub fn isr_changed(&self, volume: VolumeId, ticket: u64, result: IsrAnswer) {
        self.send(Command::IsrChanged { volume, ticket, result });
    }

    /// Ends the thread; engines are not stopped cleanly by this.
    pub fn shutdown(&self) {
        self.send(Command::Shutdown);
    }
}
