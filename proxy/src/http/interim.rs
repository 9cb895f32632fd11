//! Informational answers (1xx), which come before the answer itself: passed on where the leg can carry them.
//!
//! HTTP/2 carries 100 and 103 towards any caller. On HTTP/1 hyper sends 100 by itself, when a body is first asked for, and can
//! send nothing else; so there a body that is expected to be asked for is not, until the far end asks: [`Gate`].

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::header::EXPECT;
use http::{HeaderMap, Response, StatusCode};
use parking_lot::Mutex;
use tokio::time::Sleep;

use super::headers;

/// More than a workload may send of them (`informational`) are not kept.
const WAITING: usize = 16;
/// A caller need not wait for 100 for ever (RFC 9110, 10.1.1), and there are workloads that never send it.
const LONGEST: Duration = Duration::from_secs(1);

/// Tells a request's caller what comes before the answer. It travels among the request's extensions.
#[derive(Clone, Debug)]
pub struct Interim(Arc<Teller>);

/// Where the caller's side hears of it.
#[derive(Debug)]
pub struct Told(Arc<Mutex<Heads>>);

#[derive(Debug)]
struct Teller(Arc<Mutex<Heads>>);

/// Each request has one, and hardly any needs it: a channel of tokio's would take kilobytes for it.
#[derive(Debug, Default)]
struct Heads {
    waiting: VecDeque<Response<()>>,
    is_over: bool,
    waker: Option<Waker>,
}

impl Interim {
    /// Both ends.
    pub fn new() -> (Self, Told) {
        let heads = Arc::new(Mutex::default());
        (Self(Arc::new(Teller(Arc::clone(&heads)))), Told(heads))
    }

    /// Passes on what may be: who is not listening any more, or has too much to hear, misses it.
    pub fn tell(&self, status: StatusCode, fields: &HeaderMap) {
        if ![StatusCode::CONTINUE, StatusCode::EARLY_HINTS].contains(&status) {
            return;
        }
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = fields.clone();
        headers::strip_hop_by_hop(head.headers_mut());
        headers::strip_postern(head.headers_mut());
        let Self(teller) = self;
        let mut heads = teller.0.lock();
        if heads.waiting.len() < WAITING {
            heads.waiting.push_back(head);
        }
        let waker = heads.waker.take();
        drop(heads);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let mut heads = self.0.lock();
        heads.is_over = true;
        let waker = heads.waker.take();
        drop(heads);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Told {
    /// The next one that waits.
    pub fn waiting(&self) -> Option<Response<()>> {
        self.0.lock().waiting.pop_front()
    }

    /// The next one; none once nobody is left to tell of any.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Response<()>>> {
        let mut heads = self.0.lock();
        match heads.waiting.pop_front() {
            Some(head) => Poll::Ready(Some(head)),
            None if heads.is_over => Poll::Ready(None),
            None => {
                heads.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Whether the caller waits for 100 before it sends the body.
pub fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Keeps a body from being asked for until the far end asks, has answered, or time is up.
#[derive(Debug)]
pub struct Gate {
    told: Told,
    clock: Pin<Box<Sleep>>,
}

impl Gate {
    /// A gate that `told` opens.
    pub fn new(told: Told) -> Self {
        Self { told, clock: Box::pin(tokio::time::sleep(LONGEST)) }
    }

    /// Ready once the body may be read.
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(told) = self.told.poll(cx) {
            match told {
                Some(head) if head.status() != StatusCode::CONTINUE => {}
                // Nobody is left to say it: the answer is there, or the leg carries none.
                Some(_) | None => return Poll::Ready(()),
            }
        }
        ready!(self.clock.as_mut().poll(cx));
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gate_opens_for_100_or_when_nobody_will_say_it() {
        let none = HeaderMap::new();
        let (interim, told) = Interim::new();
        let (mut gate, began) = (Gate::new(told), Instant::now());
        interim.tell(StatusCode::EARLY_HINTS, &none);
        poll_fn(|cx| gate.poll_open(cx)).await;
        assert_eq!(began.elapsed(), LONGEST, "103 says nothing of the body");

        let (interim, told) = Interim::new();
        let (mut gate, began) = (Gate::new(told), Instant::now());
        interim.tell(StatusCode::CONTINUE, &none);
        poll_fn(|cx| gate.poll_open(cx)).await;
        let (interim, told) = Interim::new();
        let mut other = Gate::new(told);
        drop(interim);
        poll_fn(|cx| other.poll_open(cx)).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[test]
    fn only_what_callers_can_use_is_passed_on_and_clean() {
        let (interim, told) = Interim::new();
        let mut fields = HeaderMap::new();
        for (name, value) in
            [("link", "</a>; rel=preload"), ("postern-error", "forged"), ("connection", "x-a"), ("x-a", "1")]
        {
            fields.insert(name, value.parse().unwrap());
        }
        interim.tell(StatusCode::SWITCHING_PROTOCOLS, &fields);
        interim.tell(StatusCode::PROCESSING, &fields);
        interim.tell(StatusCode::EARLY_HINTS, &fields);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(head)) = told.poll(&mut cx) else { panic!("103 is passed on") };
        assert_eq!((head.status(), head.headers().len()), (StatusCode::EARLY_HINTS, 1));
        assert!(head.headers().contains_key("link") && told.poll(&mut cx).is_pending());
        for _ in 0..100 {
            interim.tell(StatusCode::CONTINUE, &fields);
        }
        drop(interim);
        let kept = std::iter::from_fn(|| match told.poll(&mut cx) {
            Poll::Ready(head) => head,
            Poll::Pending => panic!("nobody is left to tell"),
        });
        assert_eq!(kept.count(), WAITING);
    }
}
