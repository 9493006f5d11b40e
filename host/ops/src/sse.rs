//! Server-sent events (WHATWG HTML, "Server-sent events"), read incrementally: the same events come
//! out however the bytes are cut. Each event keeps its bytes, so that it can be passed on as it came.

use bytes::{Bytes, BytesMut};

/// The largest event that is read, in bytes.
const MAX_EVENT: usize = 16 << 20;

/// One event: its bytes with the blank line, and its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SseEvent {
    pub raw: Bytes,
    /// The `data` lines, joined; `None` where there are none (a comment, a keep-alive).
    pub data: Option<Bytes>,
}

/// An event is larger than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {} MiB", MAX_EVENT >> 20)]
pub(crate) struct EventTooLarge;

/// Reads events out of pieces of a stream.
#[derive(Debug, Default)]
pub(crate) struct SseReader {
    buffer: BytesMut,
    /// Where the line begins that is being read.
    line: usize,
    /// Up to where the buffer has been looked at.
    scanned: usize,
    started: bool,
}

impl SseReader {
    /// Adds a piece of the stream.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole event.
    pub(crate) fn next(&mut self) -> Result<Option<SseEvent>, EventTooLarge> {
        while let Some((end, next)) = self.line_end() {
            let blank = end == self.line
                || (!self.started && &self.buffer[self.line..end] == b"\xef\xbb\xbf");
            self.scanned = next;
            self.line = next;
            if blank {
                let raw = self.buffer.split_to(next).freeze();
                self.line = 0;
                self.scanned = 0;
                let data = data_of(&raw, !self.started);
                self.started = true;
                return Ok(Some(SseEvent { raw, data }));
            }
        }
        if self.buffer.len() > MAX_EVENT {
            Err(EventTooLarge)
        } else {
            Ok(None)
        }
    }

    /// The end of the line being read, and where the next one begins. A `\r` at the end of what
    /// has come waits for the byte after it, which may be its `\n`.
    fn line_end(&mut self) -> Option<(usize, usize)> {
        let unseen = self.buffer.get(self.scanned..)?;
        let Some(found) = unseen.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            self.scanned = self.buffer.len();
            return None;
        };
        let end = self.scanned + found;
        if self.buffer.get(end) == Some(&b'\n') {
            return Some((end, end + 1));
        }
        match self.buffer.get(end + 1) {
            Some(b'\n') => Some((end, end + 2)),
            Some(_) => Some((end, end + 1)),
            None => {
                self.scanned = end;
                None
            }
        }
    }

    /// What is left when the stream has ended: an event without its blank line is still read, as
    /// some servers close right after the last one.
    pub(crate) fn rest(mut self) -> Option<SseEvent> {
        let raw = self.buffer.split().freeze();
        let data = data_of(&raw, !self.started)?;
        Some(SseEvent {
            raw,
            data: Some(data),
        })
    }
}

/// The data of an event's bytes.
fn data_of(raw: &Bytes, first: bool) -> Option<Bytes> {
    let text = if first {
        raw.strip_prefix(b"\xef\xbb\xbf".as_slice()).unwrap_or(raw)
    } else {
        raw
    };
    // What nearly every event is: one line of data.
    if let Some(line) = text.strip_prefix(b"data: ".as_slice()) {
        let end = line.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let (value, rest) = line.split_at_checked(end.unwrap_or(line.len()))?;
        if matches!(rest, b"\n\n" | b"\r\n\r\n") {
            return Some(raw.slice_ref(value));
        }
    }
    let mut data: Option<Bytes> = None;
    for line in text.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let value = match line.strip_prefix(b"data".as_slice()) {
            Some([]) => &line[line.len()..],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            _ => continue,
        };
        data = Some(match data {
            None => raw.slice_ref(value),
            Some(before) => [before.as_ref(), b"\n", value].concat().into(),
        });
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(pieces: &[&[u8]]) -> (Vec<SseEvent>, Option<SseEvent>) {
        let mut reader = SseReader::default();
        let mut events = Vec::new();
        for piece in pieces {
            reader.push(piece);
            while let Some(event) = reader.next().unwrap() {
                events.push(event);
            }
        }
        (events, reader.rest())
    }

    #[test]
    fn all_line_ends_comments_and_many_data_lines_are_read() {
        let (events, rest) = read(&[b"\xef\xbb\xbfdata: a\n\n: ping\r\n\r\ndata:b\rdata: c\r\rdata\nevent: x\n\nid: 1\n\ndata: end"]);
        let data: Vec<_> = events.iter().map(|event| event.data.as_deref()).collect();
        assert_eq!(
            data,
            [Some(b"a".as_slice()), None, Some(b"b\nc"), Some(b""), None]
        );
        assert_eq!(rest.unwrap().data.unwrap(), "end");
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut reader = SseReader::default();
        reader.push(&vec![b'x'; MAX_EVENT + 1]);
        assert_eq!(reader.next(), Err(EventTooLarge));
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_the_same_events_come_out(
            stream in "(data: [a-zé\\{\\}\":]{0,9}|data|:|event: x|\n|\r\n|\r|\n\n|\r\n\r\n){0,40}",
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = picks.iter().map(|pick| pick.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let whole = read(&[bytes]);
            let cut = read(&pieces);
            prop_assert_eq!(&whole, &cut);
            // Every byte is passed on.
            let raw: Vec<u8> = whole.0.iter().flat_map(|event| event.raw.to_vec()).collect();
            prop_assert!(bytes.starts_with(&raw));
        }

        #[test]
        fn any_bytes_at_all_are_read_without_a_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..16)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            read(&pieces);
        }
    }
}
