//! Bodies and short answers of the kubelet's API.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::mpsc;

/// Any body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Answer = Response<Body>;

/// A body whose pieces come by and by; its sender waits while nobody reads.
struct Flow(mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for Flow {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

pub(super) fn flow(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    Flow(pieces).boxed_unsync()
}

/// A body that keeps something until it was sent.
struct Holding<G> {
    body: Body,
    _guard: G,
}

impl<G: Unpin> HttpBody for Holding<G> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

pub(super) fn holding<G: Unpin + Send + 'static>(body: Body, guard: G) -> Body {
    Holding { body, _guard: guard }.boxed_unsync()
}

pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer of one type; browsers must not guess another.
pub(super) fn answer(status: StatusCode, kind: &'static str, body: Body) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    answer(status, "text/plain; charset=utf-8", whole(text.into()))
}

pub(super) fn json(bytes: Vec<u8>) -> Answer {
    answer(StatusCode::OK, "application/json", whole(bytes))
}

/// All places for such answers are taken.
pub(super) fn busy(what: &str) -> Answer {
    let mut response = text(StatusCode::TOO_MANY_REQUESTS, format!("too many {what} at once; try again\n"));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
