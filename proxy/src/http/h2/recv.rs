//! The receiving half of a stream as a body.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::Frame;

use super::client::InFlight;
use crate::error::{Error, Reason, Side};
use crate::runtime::Owned;

/// A stream's DATA and trailers. Dropping it before the end resets the stream.
#[derive(Debug)]
pub struct RecvBody {
    stream: RecvStream,
    side: Side,
    data_ended: bool,
    /// On the client's side: what ends with the response.
    _exchange: Option<Exchange>,
}

/// The other half of a client's exchange, which must not outlive its response.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Sends the request's body; aborted with the response, so that a canceled call cancels upstream.
    pub(super) _pump: Option<Owned>,
    pub(super) _in_flight: InFlight,
}

impl RecvBody {
    /// A request's body, seen by a server.
    pub(super) fn request(stream: RecvStream) -> Self {
        Self { stream, side: Side::Peer, data_ended: false, _exchange: None }
    }

    /// A response's body, seen by a client.
    pub(super) fn response(stream: RecvStream, side: Side, exchange: Exchange) -> Self {
        Self { stream, side, data_ended: false, _exchange: Some(exchange) }
    }

    /// Whether nothing more will come.
    pub fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// The next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Given back as the frame is handed on: the consumer polls again only once it has room.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.error(&error)))),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(self.error(&error)))),
        }
    }

    fn error(&self, error: &h2::Error) -> Error {
        let reason = match self.side {
            Side::Peer => Reason::Canceled,
            Side::Workload => Reason::WorkloadReset,
            Side::Remote | Side::Us => Reason::RemoteReset,
        };
        Error::new(self.side, reason, error.to_string())
    }
}
