//! Changes of a JSON text by position: what was not changed stays byte for byte as it came.

use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;

/// Replacements of ranges of one text.
#[derive(Debug, Default)]
pub(crate) struct Splice {
    edits: Vec<(Range<usize>, Vec<u8>)>,
}

impl Splice {
    /// Replaces a range by bytes that are JSON already. Ranges must not overlap.
    pub(crate) fn replace(&mut self, range: Range<usize>, json: impl Into<Vec<u8>>) {
        self.edits.push((range, json.into()));
    }

    /// Replaces a range by a JSON string.
    pub(crate) fn replace_text(&mut self, range: Range<usize>, text: &str) {
        let mut json = Vec::with_capacity(text.len() + 8);
        write_string(&mut json, text);
        self.edits.push((range, json));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The text with the changes made; the very same bytes when there are none.
    pub(crate) fn apply(mut self, text: &Bytes) -> Bytes {
        if self.edits.is_empty() {
            return text.clone();
        }
        let mut out = Vec::with_capacity(
            text.len() + self.edits.iter().map(|edit| edit.1.len()).sum::<usize>(),
        );
        self.apply_into(text, &mut out);
        out.into()
    }

    /// Like [`apply`](Self::apply), appended to a buffer.
    pub(crate) fn apply_into(&mut self, text: &[u8], out: &mut Vec<u8>) {
        self.edits.sort_by_key(|(range, _)| range.start);
        let mut at = 0;
        for (range, json) in self.edits.drain(..) {
            debug_assert!(
                range.start >= at && range.end <= text.len(),
                "ranges overlap"
            );
            out.extend_from_slice(text.get(at..range.start).unwrap_or_default());
            out.extend_from_slice(&json);
            at = range.end;
        }
        out.extend_from_slice(text.get(at..).unwrap_or_default());
    }
}

/// Writes a JSON string, quotes included.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// Where a raw value that was parsed out of `text` stands in it.
pub(crate) fn span_in(text: &str, raw: &RawValue) -> Range<usize> {
    // Both point into the same buffer: a borrowed `RawValue` is a slice of what was parsed.
    let start = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    start..start + raw.get().len()
}

/// Whether a raw value is a string.
pub(crate) fn is_string(raw: &RawValue) -> bool {
    raw.get().starts_with('"')
}

/// Whether a raw value is `null`.
pub(crate) fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// The text of a raw string.
pub(crate) fn decode(raw: &RawValue) -> serde_json::Result<String> {
    serde_json::from_str(raw.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn nothing_changed_is_the_very_same_bytes() {
        let text = Bytes::from_static(b"{ \"a\" : 1.0e2 }");
        let out = Splice::default().apply(&text);
        assert_eq!(out.as_ptr(), text.as_ptr());
    }

    fn object() -> impl Strategy<Value = Vec<(String, String)>> {
        proptest::collection::vec((any::<String>(), any::<String>()), 1..6)
    }

    proptest! {
        /// Against serde_json: splicing strings by position is the same as changing the parsed
        /// value and leaves every other byte alone.
        #[test]
        fn a_splice_is_what_reserialising_would_give(texts in object(), new in any::<String>(), pick in any::<prop::sample::Index>()) {
            let items: Vec<Value> = texts.iter().map(|(a, b)| json!({ "k": a, "v": b })).collect();
            let text = serde_json::to_string_pretty(&items).unwrap();
            #[derive(serde::Deserialize)]
            struct Item<'a> { #[serde(borrow)] v: &'a RawValue }
            let parsed: Vec<Item<'_>> = serde_json::from_str(&text).unwrap();
            let at = pick.index(parsed.len());
            let mut splice = Splice::default();
            splice.replace_text(span_in(&text, parsed[at].v), &new);
            let out = splice.apply(&Bytes::from(text.clone()));
            let mut expected = items.clone();
            expected[at]["v"] = Value::String(new);
            let got: Vec<Value> = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(&got, &expected);
            prop_assert_eq!(out, serde_json::to_string_pretty(&expected).unwrap());
        }
    }
}
