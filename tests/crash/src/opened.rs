//! An open store on an image, driven as far as an image needs.

use std::collections::{BTreeMap, VecDeque};

use kit::ids::{CLUSTER, POOL, boot, hello};
use store::{Input, IoId, IoResult, OpenError, OpenOptions, Output, SessionId, Store};
use types::{Instant, LEASE};
use wire::{Hello, Reply, Request, Role};

use crate::image::Image;

/// An open store on an image; its disk operations are done at once.
pub(crate) struct Opened<'i, 'm> {
    pub(crate) store: Store,
    pub(crate) image: &'i mut Image<'m>,
    now: Instant,
    pub(crate) replies: BTreeMap<(SessionId, u64), Reply>,
    ended: VecDeque<(IoId, IoResult)>,
    next: u64,
    /// Free slots are zeroed only when somebody will write: it takes longer than all the rest.
    zeroing: bool,
    postponed: Vec<(IoId, u64, u64)>,
}

impl<'i, 'm> Opened<'i, 'm> {
    /// Opens the pool.
    pub(crate) fn open(image: &'i mut Image<'m>, n: u8) -> Result<Self, OpenError> {
        let options = OpenOptions { cluster: CLUSTER, expected_pool: Some(POOL), boot: boot(n) };
        Ok(Self {
            store: store::open(image, &options)?,
            image,
            now: Instant(1),
            replies: BTreeMap::new(),
            ended: VecDeque::new(),
            next: 1,
            zeroing: false,
            postponed: Vec::new(),
        })
    }

    /// Asks for a seal of volume `n`, answered after [`Self::wait_for_leases`].
    pub(crate) fn attach(&mut self, n: u8, epoch: u64) -> (SessionId, u64) {
        let session = SessionId(u64::from(n));
        self.open_session(session, hello(n, epoch, Role::Engine));
        (session, self.send(session, Request::Seal))
    }

    pub(crate) fn open_session(&mut self, session: SessionId, hello: Hello) {
        self.step(Input::Open { session, hello });
    }

    /// Lets the leases of the life before run out.
    pub(crate) fn wait_for_leases(&mut self) {
        self.finish();
        self.now = self.now.after(LEASE);
        self.step(Input::Tick);
        self.finish();
    }

    fn step(&mut self, input: Input) {
        let mut out = Vec::new();
        self.store.step(self.now, input, &mut out);
        for output in out {
            let done = match output {
                Output::Reply { session, seq, reply } => {
                    self.replies.insert((session, seq), reply);
                    continue;
                }
                Output::Read { id, offset, len } => {
                    (id, IoResult::Read(Ok(self.image.read(offset, len.into()))))
                }
                Output::Write { id, offset, data, .. } => {
                    self.image.write(offset, data.len() as u64, Some(&data));
                    (id, IoResult::Done(Ok(())))
                }
                Output::Zero { id, offset, len } => {
                    if !self.zeroing {
                        self.postponed.push((id, offset, len));
                        continue;
                    }
                    self.image.write(offset, len, None);
                    (id, IoResult::Done(Ok(())))
                }
                Output::Sync { id } => (id, IoResult::Done(Ok(()))),
                _ => continue,
            };
            self.ended.push_back(done);
        }
    }

    pub(crate) fn finish(&mut self) {
        while let Some((id, result)) = self.ended.pop_front() {
            self.step(Input::Io { id, result });
        }
    }

    pub(crate) fn send(&mut self, session: SessionId, request: Request) -> u64 {
        self.next += 1;
        self.step(Input::Request { session, seq: self.next, request });
        self.next
    }

    pub(crate) fn ask(&mut self, session: SessionId, request: Request) -> Result<Reply, String> {
        let what = match &request {
            Request::Read { offset, len } => format!("a read of {len} bytes at {offset}"),
            Request::Write { offset, .. } => format!("a write at {offset}"),
            other => format!("{other:?}"),
        };
        let seq = self.send(session, request);
        self.finish();
        match self.replies.remove(&(session, seq)) {
            None => Err(format!("{what} was not answered")),
            Some(Reply::Failed(error)) => Err(format!("{what} was refused: {error}")),
            Some(reply) => Ok(reply),
        }
    }

    pub(crate) fn start_zeroing(&mut self) {
        self.zeroing = true;
        for (id, offset, len) in std::mem::take(&mut self.postponed) {
            self.image.write(offset, len, None);
            self.ended.push_back((id, IoResult::Done(Ok(()))));
        }
        self.finish();
    }
}
