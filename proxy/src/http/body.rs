//! The one body type of the data path, whichever protocol it came over.
//!
//! A body carries its stream's guard: it fails when permission is withdrawn, and the exchange is accounted for when it
//! **ends**, not when its head was sent. Empty DATA frames are dropped: h2 closes a connection after a hundred of them
//! in its life, so one flushing application could cut every other call on a shared connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::h2::RecvBody;
use super::headers;
use super::interim::{Gate, Told};
use super::server::Serving;
use crate::connections::{End, Entry, Stream};
use crate::error::{Error, Reason, Side};

/// A request's or response's body.
#[derive(Debug)]
pub struct Body {
    source: Source,
    guard: Option<Box<Stream>>,
    held: Option<Arc<Serving>>,
    /// It is what `held` is answered with.
    is_answer: bool,
    /// What is waited for before it is asked for.
    gate: Option<Box<Gate>>,
}

/// A connection that waits for its response to end.
pub trait ReturnTo: std::fmt::Debug + Send + Sync {
    /// The response has ended: the connection is free.
    fn give_back(self: Box<Self>);
}

#[derive(Debug)]
enum Source {
    Empty,
    Full(Bytes),
    /// From an HTTP/1 connection: the side it comes from, and where the connection goes at its end.
    H1(Incoming, Side, Option<Box<dyn ReturnTo>>),
    H2(RecvBody),
}

impl Body {
    /// No body at all.
    pub fn empty() -> Self {
        Self { source: Source::Empty, guard: None, held: None, is_answer: false, gate: None }
    }

    /// A short text of our own.
    pub fn full(text: impl Into<Bytes>) -> Self {
        let text = text.into();
        let source = if text.is_empty() { Source::Empty } else { Source::Full(text) };
        Self { source, guard: None, held: None, is_answer: false, gate: None }
    }

    /// What hyper reads from an HTTP/1 connection to `side`.
    pub fn h1(incoming: Incoming, side: Side) -> Self {
        let source = if incoming.is_end_stream() { Source::Empty } else { Source::H1(incoming, side, None) };
        Self { source, guard: None, held: None, is_answer: false, gate: None }
    }

    /// The same, on a connection that is given back once the body has been read to its end.
    pub fn h1_returning(incoming: Incoming, side: Side, back: Box<dyn ReturnTo>) -> Self {
        if incoming.is_end_stream() {
            back.give_back();
            return Self::empty();
        }
        Self {
            source: Source::H1(incoming, side, Some(back)),
            guard: None,
            held: None,
            is_answer: false,
            gate: None,
        }
    }

    /// What h2 reads from a stream.
    pub fn h2(body: RecvBody) -> Self {
        Self { source: Source::H2(body), guard: None, held: None, is_answer: false, gate: None }
    }

    /// Ties the stream's life to this body's: revoked with it, accounted for at its end.
    pub fn guarded(mut self, guard: Box<Stream>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Holds on to an HTTP/1 exchange until the body has ended.
    pub fn held(mut self, serving: Arc<Serving>) -> Self {
        if !self.is_end_stream() {
            self.held = Some(serving);
        }
        self
    }

    /// Asks for nothing of it until the far end does, which `told` hears of.
    pub fn expecting(mut self, told: Told) -> Self {
        self.gate = Some(Box::new(Gate::new(told)));
        self
    }

    /// Holds on to an HTTP/1 exchange whose answer this is: should the body break, so does the connection.
    pub fn answering(mut self, serving: Arc<Serving>) -> Self {
        self.is_answer = true;
        self.held(serving)
    }

    /// Says that the exchange cannot be completed.
    fn break_off(&self) {
        if let (Some(serving), true) = (&self.held, self.is_answer) {
            serving.breaks();
        }
    }

    /// Lets go of the source, which has ended in order.
    fn release(&mut self) {
        self.held = None;
        if let Source::H1(_, _, Some(back)) = std::mem::replace(&mut self.source, Source::Empty) {
            back.give_back();
        }
    }

    /// The stream whose permission this body has, if it needs one.
    pub fn entry(&self) -> Option<&Arc<Entry>> {
        self.guard.as_ref().map(|guard| guard.entry())
    }

    /// Ready once permission is withdrawn: the body has failed then. For those who wait for something else meanwhile.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        match &self.guard {
            Some(guard) => ready!(guard.poll_revoked(cx)),
            None => return Poll::Pending,
        }
        self.source = Source::Empty;
        self.break_off();
        self.end(End::Revoked);
        Poll::Ready(Error::new(Side::Us, Reason::Revoked, "the policy changed"))
    }

    /// Accounts for an end that only the sender knows of.
    pub fn fail(&mut self, reason: Reason) {
        self.end(End::Failed(reason));
    }

    fn end(&mut self, end: End) {
        if let Some(guard) = self.guard.take() {
            guard.finish(end);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(revoked) = this.poll_revoked(cx) {
            return Poll::Ready(Some(Err(revoked)));
        }
        if let Some(gate) = &mut this.gate {
            ready!(gate.poll_open(cx));
            this.gate = None;
        }
        loop {
            let frame = match &mut this.source {
                Source::Empty => None,
                Source::Full(bytes) => {
                    let frame = Frame::data(std::mem::take(bytes));
                    this.source = Source::Empty;
                    Some(Ok(frame))
                }
                Source::H1(incoming, side, _) => ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| {
                    frame.map_err(|error| match side {
                        Side::Workload => Error::new(*side, Reason::WorkloadReset, error.to_string()),
                        _ => Error::new(*side, Reason::Canceled, error.to_string()),
                    })
                }),
                Source::H2(body) => ready!(body.poll_frame(cx)),
            };
            match frame {
                Some(Ok(mut frame)) => match frame.data_ref().map(Bytes::len) {
                    Some(0) => continue,
                    None => {
                        if let Some(trailers) = frame.trailers_mut() {
                            headers::strip_trailers(trailers);
                        }
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Some(count) => {
                        if let Some(guard) = &this.guard {
                            guard.count_response_bytes(count);
                        }
                        return Poll::Ready(Some(Ok(frame)));
                    }
                },
                Some(Err(error)) => {
                    this.source = Source::Empty;
                    this.break_off();
                    this.held = None;
                    this.end(End::Failed(error.reason));
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.release();
                    this.end(End::Complete);
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Full(_) => false,
            Source::H1(incoming, ..) => incoming.is_end_stream(),
            Source::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::H1(incoming, ..) => incoming.size_hint(),
            Source::H2(_) => SizeHint::default(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // Nobody polls past the end of a body that says it has ended.
        let ended = self.is_end_stream();
        if ended {
            self.release();
        }
        if let Some(guard) = &self.guard {
            let revoked = guard.entry().is_revoked();
            self.end(match (ended, revoked) {
                (true, _) => End::Complete,
                (false, true) => End::Revoked,
                (false, false) => End::Failed(Reason::Canceled),
            });
        }
    }
}

#[cfg(test)]
mod tests;
