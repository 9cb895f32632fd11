//! The sending half of a stream: a body into DATA frames, within the windows.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason as Code, SendStream};
use http_body::Body as _;

use crate::error::{Error, Reason, Side};
use crate::http::body::Body;
use crate::http::owned;

/// Sends `body` to its end. On failure the stream is reset, so that a cut body never looks complete.
pub(super) async fn pump(
    mut body: Body,
    mut stream: SendStream<Bytes>,
    stall: Duration,
) -> Result<(), Error> {
    loop {
        let frame = poll_fn(|cx| {
            // First the peer: without this, a call that nobody waits for would be read to its end.
            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                return Poll::Ready(Err(canceled(&reset)));
            }
            Pin::new(&mut body).poll_frame(cx).map(Ok)
        })
        .await?;
        match frame {
            None => return stream.send_data(Bytes::new(), true).map_err(|error| broken(&error)),
            Some(Err(error)) => {
                let code = match error.reason {
                    Reason::Revoked | Reason::Canceled => Code::CANCEL,
                    _ => Code::INTERNAL_ERROR,
                };
                stream.send_reset(code);
                return Err(error);
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let last = body.is_end_stream();
                    if let Err(error) = send_data(&mut stream, data, last, stall, &mut body).await {
                        body.fail(error.reason);
                        return Err(error);
                    }
                    if last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        owned::fields(&mut trailers);
                        return stream.send_trailers(trailers).map_err(|error| broken(&error));
                    }
                }
            },
        }
    }
}

/// Sends `data`, waiting for the window as often as it takes, but never longer than `stall` at a time, and not past the
/// permission of the body that it belongs to: a peer that does not read must not be safe from a change of policy.
async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
    stall: Duration,
    body: &mut Body,
) -> Result<(), Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let mut room = stream.capacity();
        if room == 0 {
            let waiting = poll_fn(|cx| match body.poll_revoked(cx) {
                Poll::Ready(revoked) => Poll::Ready(Err(revoked)),
                Poll::Pending => stream.poll_capacity(cx).map(Ok),
            });
            room = match tokio::time::timeout(stall, waiting).await {
                Ok(Ok(Some(Ok(room)))) => room,
                Ok(Ok(Some(Err(error)))) => return Err(broken(&error)),
                Ok(Err(revoked)) => {
                    stream.send_reset(Code::CANCEL);
                    return Err(revoked);
                }
                Ok(Ok(None)) => return Err(Error::new(Side::Peer, Reason::Canceled, "the stream is closed")),
                Err(_) => {
                    stream.send_reset(Code::CANCEL);
                    return Err(Error::new(Side::Peer, Reason::Stalled, "the peer does not read"));
                }
            };
        }
        let chunk = data.split_to(room.min(data.len()));
        let end = last && data.is_empty();
        stream.send_data(chunk, end).map_err(|error| broken(&error))?;
    }
    Ok(())
}

fn canceled(reset: &Result<Code, h2::Error>) -> Error {
    let detail = match reset {
        Ok(code) => format!("reset by the peer: {code}"),
        Err(error) => error.to_string(),
    };
    Error::new(Side::Peer, Reason::Canceled, detail)
}

fn broken(error: &h2::Error) -> Error {
    Error::new(Side::Peer, Reason::Canceled, error.to_string())
}
