//! The two kinds of response body: bytes that are all there, and a stream of events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::stream::{StreamExt as _, unfold};
use http_body::{Body, Frame, SizeHint};
use millgate_ops::ResponseStream;

use crate::render::StreamRenderer;
use crate::service::InFlight;

/// The body of an answer.
pub(crate) enum AnswerBody {
    /// All there; `None` once it was taken.
    Whole(Option<Bytes>),
    /// Server-sent events. Each is handed over as soon as it is there, and hyper writes it out
    /// before it waits for the next: no event waits for another.
    ///
    /// When the client goes away hyper drops the body, which drops the stream, which cancels the
    /// generation.
    Events {
        /// The rendered events.
        events: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
        /// Counts the request as in flight until the stream ends.
        in_flight: Option<InFlight>,
    },
}

impl AnswerBody {
    /// The events of a stream, rendered.
    pub(crate) fn events(stream: Box<ResponseStream>, renderer: StreamRenderer) -> Self {
        let events = unfold(
            (stream, renderer),
            |(mut stream, mut renderer)| async move {
                let event = stream.next().await?;
                Some((renderer.render(&event), (stream, renderer)))
            },
        );
        Self::Events {
            events: Box::pin(events),
            in_flight: None,
        }
    }

    /// Keeps the request counted while its answer still streams.
    pub(crate) fn hold(&mut self, guard: InFlight) {
        if let Self::Events { in_flight, .. } = self {
            *in_flight = Some(guard);
        }
    }
}

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events { events, .. } => events
                .poll_next_unpin(context)
                .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Events { .. } => SizeHint::default(),
        }
    }
}
