//! The calls themselves, in etcd's terms.

mod reach;

use std::time::Duration;

use parking_lot::Mutex;
use postern_ca::store::shared::{Change, Entry, Fence, Listing, MAX_ALL, SharedError, Swap, Write};
use postern_svid::TrustDomain;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::StreamExt as _;
use tonic::{Code, Response, Status};

use crate::config::{Config, after};
use crate::connect::Connection;
use crate::proto::compare::{CompareTarget, TargetUnion};
use crate::proto::request_op::Request as Op;
use crate::proto::response_op::Response as OpAnswer;
use crate::proto::watch_request::RequestUnion;
use crate::proto::{
    Compare, DeleteRangeRequest, KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest,
};
use crate::refusal;

/// For a call with everything that belongs to it: connection, handshake, a second member.
pub(crate) const CALL: Duration = Duration::from_secs(2);
/// The least that a member gets to answer when there are others to ask.
const LEAST: Duration = Duration::from_millis(300);

/// What is asked, and of whom.
pub(crate) struct Calls {
    config: Config,
    trust_domain: String,
    state: Mutex<State>,
    /// One dials at a time, and the others use what it has got.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// The member to try next.
    next: usize,
}

/// Whether a call that may have been carried out may be asked again.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Again {
    Yes,
    No,
}

impl Calls {
    pub(crate) fn new(config: Config, td: &TrustDomain) -> Self {
        Self {
            config,
            trust_domain: td.to_string(),
            state: Mutex::default(),
            dialling: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) async fn read(&self, prefix: &str) -> Result<Listing, SharedError> {
        let key = self.config.prefix.entry(prefix);
        let range = RangeRequest { range_end: after(&key), key, ..RangeRequest::default() };
        let (found, _) = self.range(range).await?;
        let mut listing = Listing { revision: revision(found.header.as_ref()), entries: Vec::new() };
        let mut total = 0;
        for KeyValue { key, mod_revision, value, .. } in found.kvs {
            let Some(name) = self.config.prefix.name_of(&key) else {
                let key = String::from_utf8_lossy(&key).escape_default().to_string();
                return Err(SharedError::Damaged { key, detail: "no name of an entry".to_owned() });
            };
            total += value.len();
            listing.entries.push(Entry { key: name.to_owned(), version: unsigned(mod_revision), value });
        }
        if total > 2 * MAX_ALL {
            let detail = format!("{total} bytes are there, where a control plane writes at most {MAX_ALL}");
            return Err(SharedError::Damaged { key: self.config.prefix.to_string(), detail });
        }
        Ok(listing)
    }

    pub(crate) async fn swap(&self, changes: &[Change], fence: Option<&Fence>) -> Result<Swap, SharedError> {
        let prefix = &self.config.prefix;
        let mut compare: Vec<Compare> = changes
            .iter()
            .map(|change| equal(prefix.entry(&change.key), TargetUnion::ModRevision(signed(change.expected))))
            .collect();
        let success = changes.iter().filter_map(|Change { key, write, .. }| {
            let key = prefix.entry(key);
            match write {
                Write::Put(value) => Some(Op::RequestPut(PutRequest { key, value: value.clone(), lease: 0 })),
                Write::Delete => Some(Op::RequestDeleteRange(DeleteRangeRequest { key })),
                Write::Keep => None,
            }
        });
        // Why a transaction was not made is read within it: of the mark and the fence, and what is left is a conflict.
        let mut failure = vec![get(prefix.mark())];
        compare.push(equal(prefix.mark(), TargetUnion::Value(self.trust_domain.clone().into_bytes())));
        if let Some(fence) = fence {
            compare.push(equal(prefix.lease(&fence.name), TargetUnion::CreateRevision(signed(fence.token))));
            failure.push(get(prefix.lease(&fence.name)));
        }
        let transaction = TxnRequest { compare, success: success.map(op).collect(), failure };
        let (answer, connection) = self.transact(transaction, Again::No).await?;
        if answer.succeeded {
            return Ok(Swap::Done(revision(answer.header.as_ref())));
        }
        let mut read = ranges(answer).into_iter();
        match read.next().flatten() {
            Some(mark) if mark.value == self.trust_domain.as_bytes() => {}
            Some(mark) => {
                return Err(refusal::marked(
                    &mark.value,
                    &self.trust_domain,
                    &self.config,
                    &connection.endpoint,
                ));
            }
            // It was put back to a time before us: the next connection marks it anew, and readers see what became of it.
            None => {
                self.forget(&connection);
                return Ok(Swap::Conflict);
            }
        }
        let is_held = |fence: &Fence| {
            read.next().flatten().is_some_and(|lease| lease.create_revision == signed(fence.token))
        };
        Ok(if fence.is_none_or(is_held) { Swap::Conflict } else { Swap::Fenced })
    }

    pub(crate) async fn wait(&self, prefix: &str, since: u64, within: Duration) -> Result<u64, SharedError> {
        let until = Instant::now() + within;
        let mut first = true;
        loop {
            let connection = timeout(CALL, self.connection()).await.map_err(|_| self.silent())??;
            match self.watch(&connection, prefix, since, until).await {
                Ok(Some(revision)) => return Ok(revision),
                // Silence may be that of a member that hangs, or has fallen behind: what it answers now tells.
                Ok(None) => break,
                Err(Failed::Silent(error)) => return Err(error),
                Err(Failed::Status(status)) => {
                    self.forget(&connection);
                    // For a token that has ended a watch is refused as if the user might not.
                    let again = refusal::is_stale_token(&status) || status.code() == Code::PermissionDenied;
                    if !(first && again) {
                        return Err(refusal::of(&status, &connection, &self.config));
                    }
                    first = false;
                }
            }
        }
        let key = self.config.prefix.mark();
        let asked = RangeRequest { key, count_only: true, limit: 1, ..RangeRequest::default() };
        let (found, _) = self.range(asked).await?;
        // A revision above `since` is not given: what was changed below the prefix meanwhile has not been heard.
        Ok(revision(found.header.as_ref()).min(since))
    }

    /// The revision at which something changed, or `None` if nothing did in time.
    async fn watch(
        &self,
        connection: &Connection,
        prefix: &str,
        since: u64,
        until: Instant,
    ) -> Result<Option<u64>, Failed> {
        let key = self.config.prefix.entry(prefix);
        let create = WatchCreateRequest {
            range_end: after(&key),
            key,
            start_revision: signed(since.saturating_add(1)),
            fragment: true,
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // etcd ends the watch when we say that nothing more is to come.
        let requests = tokio_stream::once(create).chain(tokio_stream::pending());
        let mut client = connection.watch();
        let opened = timeout(CALL, async {
            let mut changes = client.watch(connection.request(requests)).await?.into_inner();
            let first = changes.message().await?;
            Ok::<_, Status>((changes, first))
        });
        let hangs = |_| Failed::Silent(self.hangs(connection));
        let (mut changes, first) = opened.await.map_err(hangs)?.map_err(Failed::Status)?;
        let ended = || Failed::Status(Status::unavailable("it has ended the watch"));
        let mut heard = first.ok_or_else(ended)?;
        let mut now = revision(heard.header.as_ref());
        loop {
            let newest =
                heard.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
            if let Some(newest) = newest {
                return Ok(Some(unsigned(newest)));
            }
            if heard.compact_revision > 0 {
                // What happened since then is forgotten there: whoever waits reads all of it anew.
                return Ok(Some(now.max(unsigned(heard.compact_revision))));
            }
            if heard.canceled {
                let status = match heard.cancel_reason.as_str() {
                    text if text.contains("permission denied") => Status::permission_denied(text),
                    text if text.contains("token") => Status::unauthenticated(text),
                    text => Status::unavailable(text),
                };
                return Err(Failed::Status(status));
            }
            if now < since {
                return Ok(Some(now));
            }
            heard = match timeout_at(until, changes.message()).await {
                Err(_) => return Ok(None),
                Ok(next) => next.map_err(Failed::Status)?.ok_or_else(ended)?,
            };
            now = now.max(revision(heard.header.as_ref()));
        }
    }

    pub(crate) async fn acquire(
        &self,
        name: String,
        holder: String,
        ttl: Duration,
    ) -> Result<Option<Fence>, SharedError> {
        if self.lease_key(&name).await?.is_some() {
            return Ok(None);
        }
        // Whole seconds, and rather a lease that is too long: who goes away gives it back.
        let seconds =
            i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX).max(1);
        let (granted, _) = self
            .call(Again::No, move |connection| async move {
                connection.lease().lease_grant(connection.request(LeaseGrantRequest { ttl: seconds })).await
            })
            .await?;
        let key = self.config.prefix.lease(&name);
        let value = holder.clone().into_bytes();
        let transaction = TxnRequest {
            compare: vec![
                equal(key.clone(), TargetUnion::CreateRevision(0)),
                equal(self.config.prefix.mark(), TargetUnion::Value(self.trust_domain.clone().into_bytes())),
            ],
            success: vec![op(Op::RequestPut(PutRequest { key, value, lease: granted.id }))],
            failure: Vec::new(),
        };
        let answer = self.transact(transaction, Again::No).await;
        match answer {
            Ok((answer, _)) if answer.succeeded => {
                let token = revision(answer.header.as_ref());
                Ok(Some(Fence { name, holder, token, lease: granted.id, ttl }))
            }
            // Somebody was faster. A lease that nothing hangs on ends by itself, if it must.
            Ok(_) => {
                let _ = self.revoke(granted.id).await;
                Ok(None)
            }
            Err(error) => {
                let _ = self.revoke(granted.id).await;
                Err(error)
            }
        }
    }

    pub(crate) async fn renew(&self, fence: &Fence) -> Result<bool, SharedError> {
        let id = fence.lease;
        let (kept, _) = self
            .call(Again::Yes, move |connection| async move {
                let asked = connection.request(tokio_stream::once(LeaseKeepAliveRequest { id }));
                let mut answers = connection.lease().lease_keep_alive(asked).await?.into_inner();
                let answer =
                    answers.message().await?.ok_or_else(|| Status::unavailable("it has not answered"))?;
                Ok(Response::new(answer))
            })
            .await?;
        // The key may have been taken away from below the lease, by hand.
        Ok(kept.ttl > 0
            && self
                .lease_key(&fence.name)
                .await?
                .is_some_and(|key| key.create_revision == signed(fence.token)))
    }

    pub(crate) async fn release(&self, fence: &Fence) -> Result<(), SharedError> {
        self.revoke(fence.lease).await
    }

    pub(crate) async fn holder(&self, name: &str) -> Result<Option<String>, SharedError> {
        let found = self.lease_key(name).await?;
        Ok(found.map(|key| {
            String::from_utf8_lossy(&key.value).chars().filter(|c| !c.is_control()).take(200).collect()
        }))
    }

    async fn revoke(&self, id: i64) -> Result<(), SharedError> {
        self.call(Again::Yes, move |connection| async move {
            match connection.lease().lease_revoke(connection.request(LeaseRevokeRequest { id })).await {
                Err(status) if status.code() == Code::NotFound => Ok(Response::new(Default::default())),
                other => other,
            }
        })
        .await
        .map(drop)
    }

    async fn lease_key(&self, name: &str) -> Result<Option<KeyValue>, SharedError> {
        let key = self.config.prefix.lease(name);
        let (found, _) = self.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(found.kvs.into_iter().next())
    }

    async fn range(&self, range: RangeRequest) -> Result<(RangeResponse, Connection), SharedError> {
        self.call(Again::Yes, move |connection| {
            let range = range.clone();
            async move { connection.kv().range(connection.request(range)).await }
        })
        .await
    }

    async fn transact(
        &self,
        all: TxnRequest,
        again: Again,
    ) -> Result<(TxnResponse, Connection), SharedError> {
        self.call(again, move |connection| {
            let all = all.clone();
            async move { connection.kv().txn(connection.request(all)).await }
        })
        .await
    }
}

enum Failed {
    Status(Status),
    Silent(SharedError),
}

fn equal(key: Vec<u8>, wanted: TargetUnion) -> Compare {
    let target = match &wanted {
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
    };
    Compare { result: 0, target: target.into(), key, target_union: Some(wanted) }
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn get(key: Vec<u8>) -> RequestOp {
    op(Op::RequestRange(RangeRequest { key, ..RangeRequest::default() }))
}

/// What each range of a transaction has found.
fn ranges(answer: TxnResponse) -> Vec<Option<KeyValue>> {
    let first = |one: crate::proto::ResponseOp| match one.response {
        Some(OpAnswer::ResponseRange(range)) => range.kvs.into_iter().next(),
        None => None,
    };
    answer.responses.into_iter().map(first).collect()
}

fn revision(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| unsigned(header.revision))
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn signed(version: u64) -> i64 {
    // No revision of etcd's is that high, so nothing is equal to it.
    i64::try_from(version).unwrap_or(i64::MAX)
}
