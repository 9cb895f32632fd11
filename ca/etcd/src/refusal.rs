//! What etcd answers when it does not do what it was asked for, as what there is to do about it.

use postern_ca::store::shared::SharedError;
use tonic::{Code, Status};

use crate::config::{Config, Endpoint};
use crate::connect::Connection;

/// What to do with a call that failed.
pub(crate) fn is_stale_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated || status.message().contains("revision of auth store is old")
}

/// Whether etcd itself has answered, not the connection.
pub(crate) fn is_answer(status: &Status) -> bool {
    std::error::Error::source(status).is_none()
}

/// The error that a status is.
pub(crate) fn of(status: &Status, connection: &Connection, config: &Config) -> SharedError {
    if !is_answer(status) {
        return connection.broken(status, config);
    }
    let (endpoint, prefix, said) = (&connection.endpoint, &config.prefix, status.message());
    let has = |text: &str| said.contains(text);
    if has("user name is empty") {
        return refused(format!(
            "{endpoint}: it wants to know who asks: name `user` and `passwordFile`, or a client certificate with a user's name (tls.cert)"
        ));
    }
    if status.code() == Code::PermissionDenied {
        let user = config.user.as_ref().map_or("of the client certificate", |user| user.name.as_str());
        return refused(format!(
            "{endpoint}: the user {user} may not read and write below {prefix}/: etcdctl role grant-permission ROLE readwrite --prefix {prefix}/, etcdctl user grant-role USER ROLE"
        ));
    }
    if has("database space exceeded") {
        return refused(format!(
            "{endpoint}: its database is full, so it takes no writes: etcdctl compact, etcdctl defrag, etcdctl alarm disarm (--quota-backend-bytes is its size)"
        ));
    }
    if has("request is too large") {
        return refused(format!(
            "{endpoint}: it takes smaller requests than its own default: --max-request-bytes must be at least 1572864"
        ));
    }
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unknown => {
            unavailable(endpoint, said)
        }
        Code::Unimplemented => {
            refused(format!("{endpoint}: what answers there is no etcd of version 3.4 or newer ({said})"))
        }
        code => refused(format!("{endpoint}: {said} ({code:?})")),
    }
}

/// Another trust domain, or a newer program, was here first.
pub(crate) fn marked(found: &[u8], wanted: &str, config: &Config, endpoint: &Endpoint) -> SharedError {
    let prefix = &config.prefix;
    let shown: String =
        String::from_utf8_lossy(found).chars().filter(|c| !c.is_control()).take(300).collect();
    refused(format!(
        "{endpoint}: below {prefix}/ is what the control planes of trust domain {shown:?} share, and this one is of {wanted:?}: name another `prefix`, or leave it out, which takes /postern/{wanted}"
    ))
}

pub(crate) fn refused(why: String) -> SharedError {
    SharedError::Refused(why)
}

pub(crate) fn unavailable(endpoint: &Endpoint, why: &str) -> SharedError {
    SharedError::Unavailable(format!("{endpoint}: {why}"))
}
