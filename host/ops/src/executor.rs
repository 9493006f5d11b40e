//! The way of a request.
use crate::response::Event;

/// A streamed answer.
pub struct ResponseStream {}

impl ResponseStream {
    /// The next event; `None` after [`Event::Done`]. Dropping the stream cancels the request.
    pub async fn next(&mut self) -> Option<Event> {
        None
    }
}
