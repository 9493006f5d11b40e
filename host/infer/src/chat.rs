//! Conversations to text and tokens, by the template in the model's file (Jinja, as Hugging Face runs it).
//!
//! What users write must not become control tokens: a message that says `<|im_end|>` would end its own turn
//! and begin another role's. The template sees the contents as they are, because templates look into them
//! (trim them, split them at tags); so before it runs, a mark is put inside everything in a content that
//! reads like a control token, and after it ran, control tokens are found in the text, where a marked one is none,
//! and the marks are taken out of what lies between them. Contents without such text, that is nearly all, are
//! untouched.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind};
use serde_json::{Value, json};

use crate::tokenizer::Tokenizer;
use crate::tools::{self, Tool, ToolCall, each_text};
use crate::{ChatMessage, Error, Result};

/// Steps that a template may take: a hostile one ends.
const FUEL: u64 = 10_000_000;
/// Characters that may serve as the mark: private ones, of which some is in no message.
const MARKS: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{f0fff}';

/// A model's chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    beginning: String,
    end: String,
    /// Whether it tells the model of tools, in the form that [`crate::tools`] describes.
    knows_tools: bool,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles a template. `beginning` and `end` are what it gets as `bos_token` and `eos_token`.
    pub(crate) fn new(source: String, beginning: String, end: String) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: String| {
            strftime(&format, SystemTime::now())
        });
        environment.add_filter("tojson", to_json);
        let knows_tools = source.contains("tools") && source.contains(tools::CALL_BEGINS);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| Error::Template(error.to_string()))?;
        Ok(Self {
            environment,
            beginning,
            end,
            knows_tools,
        })
    }

    /// A conversation as text.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_with(messages, None, add_generation_prompt)
    }

    fn render_with(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Tool]>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(described).collect();
        let tools: Option<Vec<Value>> =
            tools.map(|tools| tools.iter().map(Tool::described).collect());
        let values = minijinja::context! {
            messages => messages,
            tools => tools,
            add_generation_prompt => add_generation_prompt,
            bos_token => &self.beginning,
            eos_token => &self.end,
        };
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| Error::Template(error.to_string()))?;
        template
            .render(values)
            .map_err(|error| Error::Template(error.to_string()))
    }

    /// A conversation as tokens. Control tokens come from the template alone.
    pub(crate) fn encode(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>> {
        self.encode_with(messages, None, add_generation_prompt, tokenizer)
    }

    /// A conversation with tools as tokens.
    pub(crate) fn encode_tools(
        &self,
        messages: &[ChatMessage],
        tools: &[Tool],
        add_generation_prompt: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>> {
        if self.knows_tools {
            let tools = (!tools.is_empty()).then_some(tools);
            return self.encode_with(messages, tools, add_generation_prompt, tokenizer);
        }
        let plain = tools::plain(messages, tools);
        self.encode_with(&plain, None, add_generation_prompt, tokenizer)
    }

    fn encode_with(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Tool]>,
        add_generation_prompt: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>> {
        let mark = free_marks(messages, tools).next();
        let mark = mark.ok_or_else(no_mark)?;
        let text = self.marked(messages, tools, add_generation_prompt, tokenizer, mark)?;
        let mut out = Vec::new();
        let clean = |part| {
            if str::contains(part, mark) {
                Cow::Owned(part.replace(mark, ""))
            } else {
                Cow::Borrowed(part)
            }
        };
        tokenizer.encode_parts(&text, true, clean, &mut out);
        Ok(out)
    }

    /// A conversation with an opened turn as text, and where the messages' contents stand in it, each with its
    /// message's place. A content that the template leaves out stands nowhere.
    pub(crate) fn spans(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Tool]>,
        tokenizer: &Tokenizer,
    ) -> Result<(String, Vec<Span>)> {
        let (tools, plain) = match tools {
            Some(tools) if !self.knows_tools => (None, Some(tools::plain(messages, tools))),
            Some([]) | None => (None, None),
            tools => (tools, None),
        };
        let messages = plain.as_deref().unwrap_or(messages);
        let mut marks = free_marks(messages, tools);
        let control = marks.next().ok_or_else(no_mark)?;
        let marks: Vec<char> = marks.take(messages.len()).collect();
        if marks.len() < messages.len() {
            return Err(no_mark());
        }
        // Inside the white space, which templates trim.
        let marked = messages.iter().zip(&marks).map(|(message, mark)| {
            let content = &message.content;
            let text = content.trim();
            let before = content.len() - content.trim_start().len();
            let after = before + text.len();
            let (head, tail) = (&content[..before], &content[after..]);
            ChatMessage {
                content: format!("{head}{mark}{text}{mark}{tail}"),
                ..message.clone()
            }
        });
        let marked: Vec<ChatMessage> = marked.collect();
        let text = self.marked(&marked, tools, true, tokenizer, control)?;
        let (mut out, mut spans) = (String::with_capacity(text.len()), Vec::new());
        let mut open: Vec<Option<usize>> = vec![None; marks.len()];
        for c in text.chars() {
            match marks.binary_search(&c) {
                Ok(message) => match open[message].take() {
                    Some(start) => spans.push((message, start..out.len())),
                    None => open[message] = Some(out.len()),
                },
                Err(_) if c == control => {}
                Err(_) => out.push(c),
            }
        }
        Ok((out, spans))
    }

    /// A conversation as text, with the mark inside whatever in its contents reads like a control token.
    fn marked(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Tool]>,
        add_generation_prompt: bool,
        tokenizer: &Tokenizer,
        mark: char,
    ) -> Result<String> {
        let safe = |text: &str| mark_controls(text, mark, tokenizer);
        let marked = messages.iter().map(|m| ChatMessage {
            role: safe(&m.role),
            content: safe(&m.content),
            tool_calls: m.tool_calls.iter().map(|call| call.mapped(&safe)).collect(),
        });
        let tools: Option<Vec<Tool>> =
            tools.map(|tools| tools.iter().map(|tool| tool.mapped(&safe)).collect());
        self.render_with(
            &marked.collect::<Vec<_>>(),
            tools.as_deref(),
            add_generation_prompt,
        )
    }
}

/// A message's place, and where its content stands in the text.
pub(crate) type Span = (usize, Range<usize>);

/// The marks that no message and no tool holds.
fn free_marks<'a>(
    messages: &'a [ChatMessage],
    tools: Option<&'a [Tool]>,
) -> impl Iterator<Item = char> + use<'a> {
    let used = move |mark: &char| {
        let in_text = |text: &str| text.contains(*mark);
        messages.iter().any(|m| {
            let calls = &m.tool_calls;
            let in_call = |call: &ToolCall| in_text(&call.name) || in_text(&call.arguments);
            in_text(&m.content) || in_text(&m.role) || calls.iter().any(in_call)
        }) || tools.is_some_and(|tools| {
            let mut found = false;
            tools.iter().for_each(|tool| {
                let mut described = tool.described();
                each_text(&mut described, &mut |text| found |= in_text(text));
            });
            found
        })
    };
    MARKS.filter(move |mark| !used(mark))
}

fn no_mark() -> Error {
    Error::Invalid("the messages use every private character".into())
}

/// The filter `tojson` as Hugging Face has it: not escaped for HTML, a space after `:` and `,`.
fn to_json(
    value: minijinja::Value,
    options: Kwargs,
) -> std::result::Result<minijinja::Value, minijinja::Error> {
    let value = serde_json::to_value(&value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let text = match options.get::<Option<usize>>("indent")? {
        None => tools::spaced(&value),
        Some(indent) => {
            let mut out = Vec::new();
            let spaces = " ".repeat(indent.min(16));
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, format);
            serde::Serialize::serialize(&value, &mut serializer).map_err(|error| {
                minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
            })?;
            String::from_utf8_lossy(&out).into_owned()
        }
    };
    Ok(minijinja::Value::from_safe_string(text))
}

/// A message as templates read one.
fn described(message: &ChatMessage) -> Value {
    let mut out = json!({"role": message.role, "content": message.content});
    if !message.tool_calls.is_empty() {
        let calls: Vec<Value> = message.tool_calls.iter().map(ToolCall::described).collect();
        out["tool_calls"] = calls.into();
    }
    out
}

/// Puts the mark after the first character of everything in `text` that is a control token, or that the
/// template's own text could complete to one: the end of a token at the text's start, the start of one at its end.
fn mark_controls(text: &str, mark: char, tokenizer: &Tokenizer) -> String {
    let mut cuts = Vec::new();
    for token in tokenizer.control_texts() {
        let first = token.chars().next().map_or(1, char::len_utf8);
        cuts.extend(text.match_indices(token).map(|(at, _)| at + first));
        for (cut, _) in token.char_indices().skip(1) {
            let (head, tail) = token.split_at(cut);
            if text.ends_with(head) {
                cuts.push(text.len() - head.len() + first);
            }
            if text.starts_with(tail) {
                cuts.push(0);
            }
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut out = text.to_owned();
    for cut in cuts.into_iter().rev() {
        out.insert(cut, mark);
    }
    out
}

/// A date by the letters that templates use (C's `strftime`), in UTC. Unknown letters stay as they are.
fn strftime(format: &str, at: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Days to a civil date (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", second / 3600),
            Some('M') => out += &format!("{:02}", second / 60 % 60),
            Some('S') => out += &format!("{:02}", second % 60),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn messages() -> Vec<ChatMessage> {
        vec![
            ChatMessage::new("system", "Be brief."),
            ChatMessage::new("user", "  Hi  "),
        ]
    }

    #[test]
    fn python_methods_filters_and_block_trimming_work_as_in_hugging_face() {
        let source = "{% for m in messages %}\n  {%- if m.role.startswith('sys') %}\nS:{{ m['content'] | upper }};\n    {% else %}\nU:{{ m.content.strip() }};\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}{{ bos_token + 'A:' }}{% endif %}";
        let template = ChatTemplate::new(source.into(), "<s>".into(), "</s>".into()).unwrap();
        assert_eq!(
            template.render(&messages(), true).unwrap(),
            "S:BE BRIEF.;\nU:Hi;\n<s>A:"
        );
    }

    #[test]
    fn an_exception_of_the_template_reaches_the_caller() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let template = ChatTemplate::new(source.into(), String::new(), String::new()).unwrap();
        assert!(
            template
                .render(&messages(), true)
                .unwrap_err()
                .to_string()
                .contains("roles must alternate")
        );
    }

    #[test]
    fn a_template_that_would_never_end_runs_out_of_fuel() {
        let source = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(source.into(), String::new(), String::new()).unwrap();
        assert!(template.render(&messages(), false).is_err());
    }

    #[test]
    fn dates_are_written_as_strftime_writes_them() {
        let at = UNIX_EPOCH + Duration::from_secs(1_709_210_096);
        assert_eq!(
            strftime("%a %A %d %b %B %Y %y %m %H:%M:%S 100%% %q %", at),
            "Thu Thursday 29 Feb February 2024 24 02 12:34:56 100% %q %"
        );
    }
}
