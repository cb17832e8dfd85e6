//! Seals on behalf of a fence: no engine takes part.

use super::{Sealer, SessionEnd};
use crate::net::{Item, Purpose};
use crate::world::World;
use std::net::SocketAddr;
use wire::{Frame, Hello, Reply, Request, Role, SealInfo, WireError};

/// A seal without an engine is given up after this.
const SEAL_TIMEOUT: core::time::Duration = core::time::Duration::from_secs(6);

impl World {
    /// Seals one replica on behalf of a fence; the answer goes to [`World::sealed`].
    pub(crate) fn start_seal(
        &mut self,
        n: usize,
        hello: Hello,
        address: Option<SocketAddr>,
    ) -> u64 {
        let until = self.local(n).after(SEAL_TIMEOUT);
        let hello = Hello { role: Role::Sealer, ..hello };
        let Some(data) = self.data_mut(n) else { return 0 };
        data.next_ticket += 1;
        let id = data.next_ticket;
        data.sealers.insert(id, Sealer { until, session: None, conn: None });
        match address {
            None => {
                if let Some(session) = self.open_session(n, SessionEnd::Sealer(id), hello) {
                    self.request(n, session, 1, Request::Seal);
                    self.sealer(n, id, |sealer| sealer.session = Some(session));
                }
            }
            Some(address) => {
                if let Some(conn) = self.connect(n, address, Purpose::Sealer(id)) {
                    for frame in
                        [Frame::Hello(hello), Frame::Request { seq: 1, request: Request::Seal }]
                    {
                        self.send_item(conn, 0, Item::Frame(Box::new(frame)));
                    }
                    self.sealer(n, id, |sealer| sealer.conn = Some(conn));
                }
            }
        }
        id
    }

    fn sealer(&mut self, n: usize, id: u64, change: impl FnOnce(&mut Sealer)) {
        if let Some(sealer) = self.data_mut(n).and_then(|data| data.sealers.get_mut(&id)) {
            change(sealer);
        }
    }

    pub(super) fn sealer_reply(&mut self, n: usize, id: u64, reply: Reply) {
        let result = match reply {
            Reply::Sealed(info) => Ok(info),
            Reply::Failed(error) => Err(error),
            _ => Err(WireError::Invalid { reason: "not an answer to a seal".into() }),
        };
        self.end_seal(n, id, result);
    }

    pub(super) fn end_seal(&mut self, n: usize, id: u64, result: Result<SealInfo, WireError>) {
        let Some(sealer) = self.data_mut(n).and_then(|data| data.sealers.remove(&id)) else {
            return;
        };
        if let Some(session) = sealer.session {
            self.end_session(n, session);
        }
        if let Some(conn) = sealer.conn {
            self.close_conn(conn, 0);
        }
        self.sealed(n, id, &result);
    }
}
