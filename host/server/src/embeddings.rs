//! Vectors as `/v1/embeddings` has them.

use base64::Engine as _;
use bytes::{BufMut, Bytes, BytesMut};
use millgate_ops::response::Embeddings;

use crate::render::{Head, format, number, string};

/// The vectors of texts.
pub(crate) fn embeddings(head: Head<'_>, answer: &Embeddings) -> Bytes {
    let numbers: usize = answer.vectors.iter().map(Vec::len).sum();
    let mut out = BytesMut::with_capacity(256 + 12 * numbers);
    out.put_slice(b"{\"object\":\"list\",\"data\":[");
    for (index, vector) in answer.vectors.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        out.put_slice(b"{\"object\":\"embedding\",\"embedding\":");
        if answer.base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            string(&mut out, &base64::prelude::BASE64_STANDARD.encode(bytes));
        } else {
            for (place, x) in vector.iter().enumerate() {
                out.put_u8(if place > 0 { b',' } else { b'[' });
                number(&mut out, *x);
            }
            out.put_u8(b']');
        }
        format(&mut out, format_args!(",\"index\":{index}}}"));
    }
    out.put_slice(b"],\"model\":");
    string(&mut out, head.model);
    let tokens = answer.tokens;
    format(
        &mut out,
        format_args!(",\"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}}}"),
    );
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use millgate_ops::{Endpoint, TraceId};
    use serde_json::Value;

    #[test]
    fn vectors_are_numbers_or_their_bytes() {
        let answer = |base64| Embeddings {
            vectors: vec![vec![1.0, -0.5]],
            base64,
            tokens: 3,
        };
        let head = Head {
            trace: TraceId::new(7),
            model: "m",
            created: 3,
            endpoint: Endpoint::Embeddings,
            include_usage: false,
            echoed: None,
        };
        let read = |base64| -> Value {
            serde_json::from_slice(&embeddings(head, &answer(base64))).unwrap()
        };
        let plain = read(false);
        let numbers = plain["data"][0]["embedding"].as_array().unwrap();
        let numbers: Vec<f64> = numbers.iter().filter_map(Value::as_f64).collect();
        assert_eq!(numbers, [1.0, -0.5]);
        assert_eq!(plain["usage"]["total_tokens"], 3);
        assert_eq!(read(true)["data"][0]["embedding"], "AACAPwAAAL8=");
    }
}
