//! Records on their way from a server to a backtest in another process: each is the trace's id, a
//! byte (0: opened, 1: why it cannot be), a length and the bytes.

use super::backtest::Opened;
use crate::id::TraceId;

/// The media type of frames.
pub const MEDIA_TYPE: &str = "application/vnd.millgate.inputs";

/// Appends a frame.
pub fn write_frame(out: &mut Vec<u8>, trace: TraceId, record: &Opened) {
    let (kind, bytes) = match record {
        Ok(bytes) => (0, bytes.as_slice()),
        Err(why) => (1, why.as_bytes()),
    };
    out.extend_from_slice(trace.bytes());
    out.push(kind);
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The frames of an answer; each with its first byte. `None`: it is cut off.
#[must_use]
pub fn read_frames(mut bytes: &[u8]) -> Option<Vec<(TraceId, Vec<u8>)>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let (kind, rest) = rest.split_first()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (record, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        let mut raw = Vec::with_capacity(1 + record.len());
        raw.push(*kind);
        raw.extend_from_slice(record);
        frames.push((TraceId::from_bytes(*id), raw));
        bytes = rest;
    }
    Some(frames)
}

/// A frame's record, as [`read_frames`] gives it.
pub fn open_frame(mut raw: Vec<u8>) -> Opened {
    if raw.is_empty() {
        return Err("an empty frame".to_owned());
    }
    match raw.remove(0) {
        0 => Ok(raw),
        _ => Err(String::from_utf8_lossy(&raw).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_and_a_cut_is_seen() {
        let (a, b) = (TraceId::new(1), TraceId::new(2));
        let mut out = Vec::new();
        write_frame(&mut out, a, &Ok(vec![7, 8]));
        write_frame(&mut out, b, &Err("gone".into()));
        let mut frames = read_frames(&out).unwrap();
        assert_eq!(frames[0].0, a);
        assert_eq!(open_frame(frames.pop().unwrap().1), Err("gone".to_owned()));
        assert_eq!(open_frame(frames.pop().unwrap().1), Ok(vec![7, 8]));
        assert!(read_frames(&out[..out.len() - 1]).is_none());
    }
}
