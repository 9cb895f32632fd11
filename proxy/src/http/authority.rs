//! Whom a request is addressed to.

use http::Uri;
use http::header::HOST;
use http::uri::Authority;
use postern_policy::norm::CanonHost;

use crate::error::{Error, Reason, Side};

/// The one authority of a request, canonical: `:authority` and `Host` must not disagree, or policy and workload could
/// be told different stories.
pub fn of(uri: &Uri, fields: &http::HeaderMap) -> Result<CanonHost, Error> {
    let bad = |text: String| Error::new(Side::Peer, Reason::BadRequest, text);
    let mut lines = fields.get_all(HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(bad("two Host fields".to_owned()));
    }
    let parse = |text: &str| CanonHost::parse(text).map_err(|error| bad(format!("host: {error}")));
    let from_line = match line {
        Some(line) => Some(parse(line.to_str().map_err(|_| bad("host: not ASCII".to_owned()))?)?),
        None => None,
    };
    let from_uri = uri.authority().map(|authority| parse(authority.as_str())).transpose()?;
    match (from_uri, from_line) {
        (Some(one), Some(other)) if one != other => {
            Err(bad("the request target and Host name different hosts".to_owned()))
        }
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(bad("no Host".to_owned())),
    }
}

/// The same where a backend checks a signature of what came: whoever spells it otherwise than it would be forwarded hears
/// so here, and not from a signature that does not fit.
pub fn check_raw(uri: &Uri, fields: &http::HeaderMap) -> Result<(), Error> {
    let line = fields.get(HOST).and_then(|line| line.to_str().ok());
    for text in uri.authority().map(Authority::as_str).into_iter().chain(line) {
        CanonHost::parse_raw(text)
            .map_err(|error| Error::new(Side::Peer, Reason::BadRequest, format!("host: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use postern_policy::{SourceFile, yaml};
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Vectors {
        authorities: Vec<Vector>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Vector {
        target: String,
        lines: Vec<String>,
        host: Option<String>,
    }

    /// Explanations cut off a fragment as the library does; if it begins to do otherwise, so must they.
    #[test]
    fn a_fragment_is_dropped_with_the_target_that_is_parsed() {
        for target in ["/a", "/a#b", "/a#", "/a?x#y", "/a?x#y?z#", "/a#/../b?c", "/#?"] {
            let left = postern_policy::norm::without_fragment(target);
            let uri: Uri = target.parse().unwrap();
            assert_eq!(uri.path_and_query().unwrap().as_str(), left, "{target}");
            let uri: Uri = format!("http://host{target}").parse().unwrap();
            assert_eq!(uri.path_and_query().unwrap().as_str(), left, "{target}");
            let path = http::uri::PathAndQuery::try_from(target).unwrap();
            assert_eq!(path.as_str(), left, "{target}, as HTTP/2 carries it");
        }
    }

    #[test]
    fn authorities() {
        let text = include_bytes!("../../../policy/tests/vectors/requests.yaml").to_vec();
        let file = SourceFile { name: "requests.yaml".to_owned(), text };
        let vectors: Vectors = yaml::parse(&file).unwrap();
        for Vector { target, lines, host } in vectors.authorities {
            let uri: Uri = target.parse().unwrap();
            let mut fields = http::HeaderMap::new();
            for line in &lines {
                fields.append(HOST, HeaderValue::from_str(line).unwrap());
            }
            let found = of(&uri, &fields).ok().map(|host| host.to_string());
            assert_eq!(found, host, "{target} {lines:?}");
            // Whoever must not be rewritten names the host as it is forwarded, in each place.
            let spelled = lines.iter().map(String::as_str).chain(uri.authority().map(Authority::as_str));
            let canonical =
                spelled.map(|text| Some(text) == host.as_deref()).reduce(|one, other| one && other);
            if host.is_some() {
                assert_eq!(Some(check_raw(&uri, &fields).is_ok()), canonical, "{target} {lines:?}");
            }
        }
    }
}
