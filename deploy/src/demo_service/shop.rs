//! What the three services answer.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::ledger::{Ledger, MARKER};
use crate::demo::http::Client;
use crate::demo::plan::{NAMESPACE, Service};

type Body = BoxBody<Bytes, Infallible>;
type Answer = Response<Body>;

/// Often enough that a stopped stream is noticed, rarely enough to read along.
const EVENT_PERIOD: Duration = Duration::from_millis(100);

/// One service: its name, its way out, its ledger.
#[derive(Debug)]
pub(super) struct Shop {
    service: Service,
    out: Client,
    demo: String,
    ledger: Ledger,
}

impl Shop {
    /// A service whose calls to others go by `out`.
    pub(super) fn new(service: Service, out: Client, demo: String) -> Self {
        Self { service, out, demo, ledger: Ledger::default() }
    }

    /// Answers one request; whatever a service cannot do is an HTTP status.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let marker = request.headers().get(MARKER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if let Some(marker) = &marker {
            self.ledger.record(marker);
        }
        let path = request.uri().path().trim_matches('/').to_owned();
        let segments: Vec<&str> = path.split('/').collect();
        let get = request.method() == Method::GET;
        Ok(match (self.service, segments.as_slice()) {
            (_, ["whoami"]) if get => self.whoami(&request),
            (_, ["demo", "about"]) if get => {
                data(StatusCode::OK, &json!({"service": self.name(), "demo": self.demo}))
            }
            (_, ["demo", "seen", marker]) if get => {
                data(StatusCode::OK, &json!({"seen": self.ledger.count(marker)}))
            }
            (Service::Storefront, [""]) if get => self.front_page(),
            (Service::Storefront, ["v1", "checkout", id]) if get => self.checkout(id, marker).await,
            (Service::Orders, ["v1", "orders", id]) => match *request.method() {
                Method::GET => self.order(id, marker).await,
                Method::POST => {
                    data(StatusCode::CREATED, &json!({"service": "orders", "order": id, "placed": true}))
                }
                Method::PUT => {
                    data(StatusCode::OK, &json!({"service": "orders", "order": id, "replaced": true}))
                }
                Method::DELETE => {
                    data(StatusCode::OK, &json!({"service": "orders", "order": id, "deleted": true}))
                }
                _ => self.unknown(StatusCode::METHOD_NOT_ALLOWED),
            },
            (Service::Orders, ["v1", "events"] | ["v1", "refunds", "events"]) if get => events(),
            (Service::Orders, ["v1", "refunds", id]) if get => {
                data(StatusCode::OK, &json!({"service": "orders", "refund": id}))
            }
            (Service::Store, ["v1", "stock", id]) if get => {
                data(StatusCode::OK, &json!({"service": "store", "item": id, "left": 7}))
            }
            _ => self.unknown(StatusCode::NOT_FOUND),
        })
    }

    async fn checkout(&self, id: &str, marker: Option<String>) -> Answer {
        match self.ask("orders", &format!("/v1/orders/{id}"), marker).await {
            Ok(order) => {
                data(StatusCode::OK, &json!({"service": "storefront", "checkout": id, "order": order}))
            }
            Err(failed) => failed,
        }
    }

    async fn order(&self, id: &str, marker: Option<String>) -> Answer {
        match self.ask("store", &format!("/v1/stock/{id}"), marker).await {
            Ok(stock) => data(StatusCode::OK, &json!({"service": "orders", "order": id, "stock": stock})),
            Err(failed) => failed,
        }
    }

    /// Asks the next service by its name in the mesh; anything but 200 becomes a 502 that tells what it was.
    async fn ask(&self, service: &str, path: &str, marker: Option<String>) -> Result<Value, Answer> {
        let fields: Vec<(&str, &str)> = marker.iter().map(|marker| (MARKER, marker.as_str())).collect();
        let uri = format!("http://{service}.{NAMESPACE}{path}");
        let failed =
            |why: Value| data(StatusCode::BAD_GATEWAY, &json!({"service": self.name(), "failed": why}));
        let reply = self
            .out
            .get(&uri, &fields)
            .await
            .map_err(|e| failed(json!({"uri": uri, "error": e.to_string()})))?;
        if reply.status != StatusCode::OK {
            let why = json!({
                "uri": uri,
                "status": reply.status.as_u16(),
                "error": reply.header("postern-error"),
                "decision": reply.header("postern-decision"),
                "body": reply.excerpt(),
            });
            return Err(failed(why));
        }
        Ok(reply.json())
    }

    /// Every header field as it arrived: what a service could believe about its caller.
    fn whoami(&self, request: &Request<Incoming>) -> Answer {
        let fields: Vec<Value> = request
            .headers()
            .iter()
            .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
            .collect();
        data(StatusCode::OK, &json!({"service": self.name(), "headers": fields}))
    }

    fn front_page(&self) -> Answer {
        let text =
            "The storefront of the demo. Try /v1/checkout/42, which asks orders, which asks the store.\n";
        Response::builder()
            .header(CONTENT_TYPE, "text/plain; charset=utf-8")
            .body(Full::from(text).boxed())
            .unwrap_or_default()
    }

    fn unknown(&self, status: StatusCode) -> Answer {
        data(status, &json!({"service": self.name(), "error": status.canonical_reason()}))
    }

    const fn name(&self) -> &'static str {
        self.service.name()
    }
}

fn data(status: StatusCode, value: &Value) -> Answer {
    let text = format!("{value}\n");
    let mut answer = Response::new(Full::from(text).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    answer
}

/// Server-sent events without end: numbered from 1, one every [`EVENT_PERIOD`].
fn events() -> Answer {
    let numbered = stream::unfold(1_u64, |number| async move {
        if number > 1 {
            sleep(EVENT_PERIOD).await;
        }
        let event = Bytes::from(format!("data: {number}\n\n"));
        Some((Ok::<_, Infallible>(Frame::data(event)), number + 1))
    });
    Response::builder()
        .header(CONTENT_TYPE, "text/event-stream")
        .header(CACHE_CONTROL, "no-store")
        .body(BodyExt::boxed(StreamBody::new(numbered)))
        .unwrap_or_default()
}
