//! Tokens with their log-probabilities, in the two forms of OpenAI's API.

use bytes::{BufMut, BytesMut};
use millgate_ops::Endpoint;
use millgate_ops::response::TokenLogprob;

use crate::render::{format, number, string};

/// Writes them, or `null`. `offset`: characters of the text before them.
pub(crate) fn logprobs(
    out: &mut BytesMut,
    endpoint: Endpoint,
    tokens: Option<&[TokenLogprob]>,
    offset: usize,
) {
    let Some(tokens) = tokens else {
        out.put_slice(b"null");
        return;
    };
    match endpoint {
        Endpoint::Completions => legacy_logprobs(out, tokens, offset),
        _ => {
            out.put_slice(b"{\"content\":[");
            for (place, token) in tokens.iter().enumerate() {
                if place > 0 {
                    out.put_u8(b',');
                }
                out.put_u8(b'{');
                token_fields(out, &token.text, token.logprob.unwrap_or(0.0));
                out.put_slice(b",\"top_logprobs\":[");
                for (place, (text, logprob)) in token.top.iter().enumerate() {
                    out.put_slice(if place > 0 { b",{" } else { b"{" });
                    token_fields(out, text, *logprob);
                    out.put_u8(b'}');
                }
                out.put_slice(b"]}");
            }
            out.put_slice(b"],\"refusal\":null}");
        }
    }
}

fn token_fields(out: &mut BytesMut, text: &str, logprob: f32) {
    out.put_slice(b"\"token\":");
    string(out, text);
    out.put_slice(b",\"logprob\":");
    number(out, logprob);
    out.put_slice(b",\"bytes\":[");
    for (place, byte) in text.bytes().enumerate() {
        if place > 0 {
            out.put_u8(b',');
        }
        format(out, format_args!("{byte}"));
    }
    out.put_u8(b']');
}

/// The form of `/v1/completions`: parallel arrays.
fn legacy_logprobs(out: &mut BytesMut, tokens: &[TokenLogprob], offset: usize) {
    let mut list = |name: &str, item: &mut dyn FnMut(&mut BytesMut, &TokenLogprob)| {
        format(out, format_args!("{name}["));
        for (place, token) in tokens.iter().enumerate() {
            if place > 0 {
                out.put_u8(b',');
            }
            item(out, token);
        }
        out.put_u8(b']');
    };
    list("{\"tokens\":", &mut |out, token| string(out, &token.text));
    list(
        ",\"token_logprobs\":",
        &mut |out, token| match token.logprob {
            Some(logprob) => number(out, logprob),
            None => out.put_slice(b"null"),
        },
    );
    list(",\"top_logprobs\":", &mut |out, token| {
        if token.logprob.is_none() {
            out.put_slice(b"null");
            return;
        }
        out.put_u8(b'{');
        for (place, (text, logprob)) in token.top.iter().enumerate() {
            if place > 0 {
                out.put_u8(b',');
            }
            string(out, text);
            out.put_u8(b':');
            number(out, *logprob);
        }
        out.put_u8(b'}');
    });
    let mut at = offset;
    list(",\"text_offset\":", &mut |out, token| {
        format(out, format_args!("{at}"));
        at += token.text.chars().count();
    });
    out.put_u8(b'}');
}
