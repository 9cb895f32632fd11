//! Whom a call reaches, and until when: the connection that there is or a new one, the next member, and the mark that says whose the
//! prefix is.

use std::future::Future;

use postern_ca::store::shared::SharedError;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Response, Status};

use super::{Again, CALL, Calls, LEAST, equal, get, op, ranges};
use crate::connect::Connection;
use crate::proto::compare::TargetUnion;
use crate::proto::request_op::Request as Op;
use crate::proto::{PutRequest, RangeRequest, TxnRequest};
use crate::refusal;

impl Calls {
    /// Asks once; a second time if the token was too old, which changes nothing, or if asking twice does no harm.
    pub(super) async fn call<T, F>(
        &self,
        again: Again,
        ask: impl Fn(Connection) -> F,
    ) -> Result<(T, Connection), SharedError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let end = Instant::now() + CALL;
        let others = self.config.endpoints.len() > 1 && again == Again::Yes;
        let mut first = true;
        loop {
            let connection = timeout_at(end, self.connection()).await.map_err(|_| self.silent())??;
            // What is left is enough for another member then.
            let now = Instant::now();
            let deadline = if first && others { now + end.saturating_duration_since(now) / 2 } else { end };
            let error = match timeout_at(deadline, ask(connection.clone())).await {
                Ok(Ok(answer)) => return Ok((answer.into_inner(), connection)),
                Ok(Err(status)) => {
                    let stale = refusal::is_answer(&status) && refusal::is_stale_token(&status);
                    let error = refusal::of(&status, &connection, &self.config);
                    let retry =
                        stale || (matches!(error, SharedError::Unavailable(_)) && again == Again::Yes);
                    if retry || !refusal::is_answer(&status) {
                        self.forget(&connection);
                    }
                    if !(first && retry) {
                        return Err(error);
                    }
                    error
                }
                Err(_) => {
                    self.forget(&connection);
                    self.hangs(&connection)
                }
            };
            if !first
                || again == Again::No && matches!(error, SharedError::Unavailable(_))
                || Instant::now() >= end
            {
                return Err(error);
            }
            first = false;
        }
    }

    /// The connection that there is, or a new one to whichever member answers.
    pub(super) async fn connection(&self) -> Result<Connection, SharedError> {
        let open = || self.state.lock().connection.clone().filter(|connection| !connection.is_closed());
        if let Some(connection) = open() {
            return Ok(connection);
        }
        let _dialling = self.dialling.lock().await;
        if let Some(connection) = open() {
            return Ok(connection);
        }
        let members = self.config.endpoints.len();
        let each = if members == 1 { CALL } else { (CALL / u32::try_from(members).unwrap_or(1)).max(LEAST) };
        let mut failed = SharedError::Unavailable("no endpoint is configured".to_owned());
        for _ in 0..members {
            let at = self.state.lock().next % members;
            let endpoint = &self.config.endpoints[at];
            let opened = timeout(each, async {
                let connection = Connection::open(&self.config, endpoint).await?;
                self.claim(&connection).await?;
                Ok(connection)
            });
            let error = match opened.await {
                Ok(Ok(connection)) => {
                    tracing::debug!(%endpoint, "connected to etcd");
                    self.state.lock().connection = Some(connection.clone());
                    return Ok(connection);
                }
                Ok(Err(error)) => error,
                Err(_) => refusal::unavailable(endpoint, "it does not answer in time"),
            };
            self.state.lock().next = at + 1;
            // What a member refuses says more than that another one is away.
            if !matches!(failed, SharedError::Refused(_)) {
                failed = error;
            }
        }
        Err(failed)
    }

    /// Makes sure that the prefix is our trust domain's.
    async fn claim(&self, connection: &Connection) -> Result<(), SharedError> {
        let (prefix, wanted) = (&self.config.prefix, &self.trust_domain);
        let failed = |status: Status| refusal::of(&status, connection, &self.config);
        let read = RangeRequest { key: prefix.mark(), ..RangeRequest::default() };
        let found = connection.kv().range(connection.request(read)).await.map_err(failed)?.into_inner();
        let mark = match found.kvs.into_iter().next() {
            Some(mark) => mark,
            None => {
                let put = PutRequest { key: prefix.mark(), value: wanted.clone().into_bytes(), lease: 0 };
                let transaction = TxnRequest {
                    compare: vec![equal(prefix.mark(), TargetUnion::CreateRevision(0))],
                    success: vec![op(Op::RequestPut(put))],
                    failure: vec![get(prefix.mark())],
                };
                let answer =
                    connection.kv().txn(connection.request(transaction)).await.map_err(failed)?.into_inner();
                if answer.succeeded {
                    return Ok(());
                }
                ranges(answer).into_iter().next().flatten().unwrap_or_default()
            }
        };
        if mark.value == wanted.as_bytes() {
            return Ok(());
        }
        Err(refusal::marked(&mark.value, wanted, &self.config, &connection.endpoint))
    }

    /// The next call dials anew, and the next member first.
    pub(super) fn forget(&self, connection: &Connection) {
        let mut state = self.state.lock();
        if state.connection.as_ref().is_some_and(|held| held.is(connection)) {
            state.connection = None;
            state.next = state.next.wrapping_add(1);
        }
    }

    pub(super) fn hangs(&self, connection: &Connection) -> SharedError {
        self.forget(connection);
        let why = format!(
            "no answer within {} s; does it hang, or has its cluster lost its majority?",
            CALL.as_secs()
        );
        refusal::unavailable(&connection.endpoint, &why)
    }

    pub(super) fn silent(&self) -> SharedError {
        let all: Vec<_> = self.config.endpoints.iter().map(ToString::to_string).collect();
        SharedError::Unavailable(format!("no answer within {} s from {}", CALL.as_secs(), all.join(", ")))
    }
}
