//! What conditions of rules may speak of, and where it comes from.

use std::net::IpAddr;

use jiff::Timestamp;
use postern_svid::SpiffeId;

use super::ast::Span;
use super::eval::{Evaluated, Facts};
use super::types::Type;
use super::value::{Entries, Fail, Shared, Value};
use crate::fields;
use crate::rule::OwnDomains;
use crate::tokens::Tokens;
use crate::verdict::{Operation, Source};

/// The variable of which single fields are named.
pub(super) const HEADERS: &str = "request.headers";
/// `now` counts whole minutes: rules that ask for it are judged anew when it changes.
const MINUTE: i64 = 60;

pub(super) const METHOD: usize = 0;
pub(super) const PATH: usize = 1;
pub(super) const HOST: usize = 2;
const PORT: usize = 3;
const IDENTITY: usize = 4;
const NAMESPACE: usize = 5;
const ACCOUNT: usize = 6;
const TRUST_DOMAIN: usize = 7;
const ADDRESS: usize = 8;
pub(super) const JWT: usize = 9;
pub(super) const NOW: usize = 10;

/// In the order of the numbers above.
pub(super) const VARIABLES: [(&str, Type); 11] = [
    ("request.method", Type::Text),
    ("request.path", Type::Text),
    ("request.host", Type::Text),
    ("request.port", Type::Int),
    ("source.identity", Type::Text),
    ("source.namespace", Type::Text),
    ("source.serviceAccount", Type::Text),
    ("source.trustDomain", Type::Text),
    ("source.address", Type::Text),
    ("jwt", Type::Dyn),
    ("now", Type::Timestamp),
];

/// Who asks, as conditions see it.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    identity: Option<SpiffeId>,
    /// Of the mesh's own trust domain or an alias: elsewhere a namespace of the same name is another one.
    is_own: bool,
    address: IpAddr,
}

impl Caller {
    pub(crate) fn new(source: Source<'_>, domains: &OwnDomains) -> Self {
        Self {
            identity: source.identity.cloned(),
            is_own: source.identity.is_some_and(|id| domains.contain(id)),
            address: source.address.to_canonical(),
        }
    }

    fn identity(&self) -> Result<&SpiffeId, Fail> {
        self.identity.as_ref().ok_or(Fail::Unknown("the peer has proven no identity"))
    }

    /// Namespace and service account.
    fn names(&self) -> Result<(&str, &str), Fail> {
        let id = self.identity()?;
        match id.namespace_and_account() {
            Some(names) if self.is_own => Ok(names),
            Some(_) => Err(Fail::Unknown("the peer's namespace is one of another trust domain")),
            None => Err(Fail::Unknown("the peer's identity names no namespace")),
        }
    }
}

/// A question to a rule, in one reading of the path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) port: u16,
    pub(crate) operation: Operation<'a>,
    pub(crate) view: Option<&'a str>,
    /// Seconds since 1970, if the time has been told.
    pub(crate) at: Option<i64>,
}

/// The minute of a time that is told.
pub(crate) fn minute(at: i64) -> i64 {
    at.div_euclid(MINUTE)
}

pub(super) struct Request<'a> {
    pub(super) asked: Asked<'a>,
    pub(super) headers: &'a [(Box<str>, Span)],
}

const OPAQUE: Fail = Fail::Unknown("opaque bytes show nothing of a request");

impl<'a> Request<'a> {
    /// The lines of a header field: how many, and the value if there is but one element.
    fn lines(&self, name: &str) -> Result<(usize, Option<Vec<u8>>), Fail> {
        let Operation::Http { headers, .. } = self.asked.operation else { return Err(OPAQUE) };
        let unknown = || Fail::Header(name.into(), "is not known");
        let (mut count, mut elements, mut only) = (0, 0, None);
        let is_known = headers.ok_or_else(unknown)?.each(name, &mut |line| {
            count += 1;
            for element in fields::elements(line) {
                elements += 1;
                if elements == 1 {
                    only = Some(element.to_vec());
                }
            }
        });
        if !is_known {
            return Err(unknown());
        }
        Ok((count, only.filter(|_| elements == 1)))
    }

    fn name(&self, at: usize) -> &'a str {
        self.headers.get(at).map_or("", |(name, _)| name)
    }
}

fn text<'a>(text: &'a str) -> Evaluated<'a> {
    Ok(Value::Text(Shared::Given(text)))
}

impl<'a> Facts<'a> for Request<'a> {
    fn variable(&self, at: usize) -> Evaluated<'a> {
        let Asked { caller, port, operation, view, at: told } = self.asked;
        match at {
            PORT => return Ok(Value::Int(port.into())),
            IDENTITY => return caller.identity().and_then(|id| text(id.as_str())),
            NAMESPACE => return caller.names().and_then(|(namespace, _)| text(namespace)),
            ACCOUNT => return caller.names().and_then(|(_, account)| text(account)),
            TRUST_DOMAIN => {
                let domain = caller.identity()?.trust_domain();
                return Ok(Value::Text(Shared::Made(domain.as_str().into())));
            }
            ADDRESS => return Ok(Value::Text(Shared::Made(caller.address.to_string().into()))),
            NOW => {
                let told = told.ok_or(Fail::Unknown("the time is not known"))?;
                let at = Timestamp::from_second(minute(told) * MINUTE);
                return at.map(Value::Timestamp).map_err(|_| Fail::Unknown("the time is not known"));
            }
            _ => {}
        }
        let Operation::Http { method, host, tokens, .. } = operation else { return Err(OPAQUE) };
        match at {
            METHOD => text(method.as_str()),
            PATH => view.map_or(Err(OPAQUE), text),
            HOST => host.map_or(Err(Fail::Unknown("the host is not known")), |host| text(host.name())),
            JWT => match tokens {
                Tokens::Absent => Err(Fail::Unknown("the request carries no token that holds")),
                Tokens::Unknown => Err(Fail::Unknown("the request's token could not be verified")),
                Tokens::Verified([claims]) => Ok(Value::Map(Entries::Json(claims.object()))),
                Tokens::Verified(_) => Err(Fail::Unknown("the request carries more than one token")),
            },
            _ => Err(Fail::Undeclared),
        }
    }

    /// A field in several lines, or with a list, is read differently by different servers: its value is not known.
    fn header(&self, at: usize) -> Evaluated<'a> {
        let name = self.name(at);
        let fail = |what| Err(Fail::Header(name.into(), what));
        match self.lines(name)? {
            (0, _) => fail("is not there"),
            (_, None) => fail("has several values"),
            (1, Some(value)) => match String::from_utf8(value) {
                Ok(value) => Ok(Value::Text(Shared::Made(value.into()))),
                Err(_) => fail("is not UTF-8"),
            },
            (_, Some(_)) => fail("has several lines"),
        }
    }

    fn has_header(&self, at: usize) -> Result<bool, Fail> {
        self.lines(self.name(at)).map(|(count, _)| count > 0)
    }
}
