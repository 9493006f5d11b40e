//! Grammars that an answer must follow: JSON, JSON of a schema, tool calls, a regular expression. They are
//! compiled by `llguidance` into a matcher that says, before each token, which ones may come next
//! (docs.rs/llguidance). A grammar is compiled where the request comes in, not on the engine's thread, and
//! what it may cost is bounded, while it is compiled and at each token.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use crate::tokenizer::Tokenizer;
use crate::tools::{CALL_BEGINS, CALL_ENDS, Tool};
use crate::{Error, Result};

/// Compiled grammars that are kept for the next request with the same one.
const KEPT: usize = 16;
/// Longest grammar, as JSON, in bytes.
const LONGEST: usize = 256 << 10;
/// Between the tokens of JSON: a space, or a new line and its indentation. Unbounded white space is what a
/// small model falls into when it may not say what it wants to.
const WHITE_SPACE: &str = r"(\x20|\n\x20{0,24})";
/// Escapes in strings. `\u` is left out: a member's name would have a second spelling, which the check that
/// no member comes twice would miss. What it could say is written as it is.
const ESCAPES: &str = "nrbtf\\\"";

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema describes (draft 2020-12, or what its `$schema` names).
    JsonSchema(Value),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// Calls of tools, as [`Prompt::Tools`](crate::Prompt::Tools) teaches them.
    Tools {
        /// The tools that may be called.
        tools: Vec<Tool>,
        /// What an answer that calls none must look like: JSON of this schema. `None`: any text, also before a call.
        answer: Option<Value>,
        /// Nothing but calls. Else text may come first, or alone.
        required: bool,
        /// Several calls may follow each other.
        parallel: bool,
    },
}

/// The grammars of one vocabulary.
#[derive(Default)]
pub(crate) struct Grammars {
    /// Made at the first request that needs it.
    factory: OnceLock<std::result::Result<ParserFactory, String>>,
    /// The newest last.
    kept: Mutex<Vec<(Grammar, Arc<Matching>)>>,
}

impl Grammars {
    /// A matcher at the grammar's beginning. Blocks for as long as the grammar takes to compile.
    ///
    /// # Errors
    /// [`Error::Grammar`]: no answer can follow it, or it uses something that is not supported; the message names it.
    pub(crate) fn matching(&self, grammar: &Grammar, tokenizer: &Tokenizer) -> Result<Matching> {
        if let Some(kept) = self.kept(grammar) {
            return Ok(kept.fresh());
        }
        let factory = self.factory.get_or_init(|| factory(tokenizer));
        let factory = factory.as_ref().map_err(|why| {
            Error::Grammar(format!("this model's vocabulary has no grammars: {why}"))
        })?;
        let matching = Arc::new(compile(factory, grammar)?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((grammar.clone(), Arc::clone(&matching)));
        drop(kept);
        Ok(matching.fresh())
    }

    fn kept(&self, grammar: &Grammar) -> Option<Arc<Matching>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == grammar)?;
        let found = kept.remove(at);
        let matching = Arc::clone(&found.1);
        kept.push(found);
        Some(matching)
    }
}

/// How far one answer has come in its grammar.
pub(crate) struct Matching(Matcher);

impl Matching {
    /// A copy that shares nothing.
    fn fresh(&self) -> Self {
        Self(self.0.deep_clone())
    }

    /// Whether this token may come next: cheaper than [`Self::mask`].
    pub(crate) fn allows(&mut self, id: u32, ends: bool) -> Result<bool> {
        if ends {
            return self.accepts();
        }
        Ok(self.0.validate_tokens(&[id]).map_err(spent)? == 1)
    }

    /// Whether the answer may end here.
    pub(crate) fn accepts(&mut self) -> Result<bool> {
        if self.complete() {
            return Ok(true);
        }
        self.0.is_accepting().map_err(spent)
    }

    /// Whether the answer can not go on.
    pub(crate) fn complete(&self) -> bool {
        self.0.is_stopped() && !self.0.is_error()
    }

    /// Takes every token out that may not come next.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let allowed = self.0.compute_mask_or_eos().map_err(spent)?;
        let words = allowed.as_slice();
        for (chunk, word) in logits.chunks_mut(32).zip(words) {
            match *word {
                u32::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                bits => {
                    for (bit, logit) in chunk.iter_mut().enumerate() {
                        if bits >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        // Ids beyond the mask are no tokens.
        if let Some(rest) = logits.get_mut(words.len() * 32..) {
            rest.fill(f32::NEG_INFINITY);
        }
        Ok(())
    }

    /// The token is part of the answer.
    pub(crate) fn take(&mut self, id: u32) -> Result<()> {
        self.0.consume_token(id).map_err(spent)
    }

    /// Text that is there already. False where it does not follow the grammar.
    pub(crate) fn take_all(&mut self, ids: &[u32]) -> Result<bool> {
        Ok(self.0.try_consume_tokens(ids).map_err(spent)? == ids.len())
    }

    /// The last `count` tokens are taken back.
    pub(crate) fn take_back(&mut self, count: usize) -> Result<()> {
        self.0.rollback(count).map_err(spent)
    }
}

/// A failure while an answer is made: the grammar needs more than it may.
fn spent(error: impl std::fmt::Display) -> Error {
    Error::Grammar(format!(
        "the grammar is too complex to go on: {}",
        first_line(&error.to_string())
    ))
}

fn factory(tokenizer: &Tokenizer) -> std::result::Result<ParserFactory, String> {
    let ends: Vec<u32> = (0u32..)
        .take(tokenizer.len())
        .filter(|id| tokenizer.is_end(*id))
        .collect();
    let Some(end) = ends.first() else {
        return Err("it has no token that ends an answer".into());
    };
    let words: Vec<Vec<u8>> = (0u32..)
        .take(tokenizer.len())
        .map(|id| {
            let bytes = tokenizer.token_bytes(id);
            match tokenizer.is_control(id) || tokenizer.is_end(id) {
                // The mark keeps it out of every text.
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                false => bytes.to_vec(),
            }
        })
        .collect();
    let make = || {
        let info = TokRxInfo::new(tokenizer.len() as u32, *end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
                .map_err(|error| first_line(&error.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = 20_000;
        limits.initial_lexer_fuel = 500_000;
        limits.max_grammar_size = 200_000;
        limits.verbose_errors = false;
        Ok(factory)
    };
    match catch_unwind(AssertUnwindSafe(make)) {
        Ok(made) => made,
        Err(_) => Err("it could not be read".into()),
    }
}

fn compile(factory: &ParserFactory, grammar: &Grammar) -> Result<Matching> {
    match grammar {
        Grammar::JsonObject => build(factory, from_schema(&json!({"type": "object"}))?),
        Grammar::JsonSchema(schema) => build(factory, from_schema(schema)?),
        Grammar::Regex(pattern) => {
            check_length(pattern.len())?;
            build(factory, TopLevelGrammar::from_regex(pattern))
        }
        Grammar::Tools {
            tools,
            answer,
            required,
            parallel,
        } => {
            let mut schemas = Vec::with_capacity(tools.len());
            for tool in tools {
                let schema = arguments_schema(&tool.parameters);
                let checked = prepared(&schema).and_then(|schema| {
                    build(factory, TopLevelGrammar::from_json_schema(schema.clone()))?;
                    Ok(schema)
                });
                schemas.push(match checked {
                    Ok(schema) => schema,
                    // Without `strict` the schema is advice to the model: it gets it in the prompt.
                    Err(_) if !tool.strict => prepared(&json!({"type": "object"}))?,
                    Err(error) => {
                        let why = match error {
                            Error::Grammar(why) => why,
                            other => other.to_string(),
                        };
                        return Err(Error::Grammar(format!("the tool `{}`: {why}", tool.name)));
                    }
                });
            }
            let answer = answer.as_ref().map(prepared).transpose()?;
            let lark = of_tools(tools, &schemas, answer.as_ref(), *required, *parallel);
            build(factory, TopLevelGrammar::from_lark(lark))
        }
    }
}

/// Builds a grammar under the limits.
fn build(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Matching> {
    let made = catch_unwind(AssertUnwindSafe(|| {
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        match matcher.get_error() {
            Some(error) => Err(error),
            // A grammar that nothing begins is one that no answer follows.
            None => match matcher.compute_mask_or_eos() {
                Ok(mask) if mask.is_zero() => {
                    Err("Unsatisfiable schema: nothing may begin it".into())
                }
                Ok(_) => Ok(matcher),
                Err(error) => Err(error.to_string()),
            },
        }
    }));
    match made {
        Ok(Ok(matcher)) => Ok(Matching(matcher)),
        Ok(Err(message)) => Err(Error::Grammar(refusal(&message))),
        Err(_) => Err(Error::Grammar("it could not be read".into())),
    }
}

fn from_schema(schema: &Value) -> Result<TopLevelGrammar> {
    Ok(TopLevelGrammar::from_json_schema(prepared(schema)?))
}

/// A tool without parameters takes an empty object.
fn arguments_schema(parameters: &Value) -> Value {
    match parameters {
        Value::Null => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Value::Object(fields) if fields.is_empty() => {
            json!({"type": "object", "properties": {}, "additionalProperties": false})
        }
        other => other.clone(),
    }
}

fn check_length(bytes: usize) -> Result<()> {
    if bytes > LONGEST {
        return Err(Error::Grammar(format!(
            "it has {bytes} bytes; at most {LONGEST} are read"
        )));
    }
    Ok(())
}

/// A schema with our settings for the compiler, and without anybody else's.
fn prepared(schema: &Value) -> Result<Value> {
    check_length(schema.to_string().len())?;
    let mut root = match schema {
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err(Error::Grammar("no answer can satisfy `false`".into())),
        Value::Object(fields) => fields.clone(),
        _ => return Err(Error::Grammar("a schema is an object or a boolean".into())),
    };
    check_keywords(schema)?;
    root.insert(
        "x-guidance".into(),
        json!({"whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES}),
    );
    Ok(Value::Object(root))
}

/// Refuses what the compiler takes, but does not hold the answer to.
fn check_keywords(schema: &Value) -> Result<()> {
    match schema {
        Value::Object(fields) => {
            check_members(fields)?;
            for name in ["const", "enum"] {
                if fields.get(name).is_some_and(needs_unicode_escape) {
                    return Err(Error::Grammar(format!(
                        "the keyword `{name}` is not supported with control characters that only `\\u` can write"
                    )));
                }
            }
            fields.values().try_for_each(check_keywords)
        }
        Value::Array(items) => items.iter().try_for_each(check_keywords),
        _ => Ok(()),
    }
}

/// Whether a value holds a character that none of [`ESCAPES`] writes.
fn needs_unicode_escape(value: &Value) -> bool {
    let in_text = |text: &str| {
        let written =
            |c: char| !c.is_control() || matches!(c, '\n' | '\t' | '\r' | '\u{8}' | '\u{c}');
        !text.chars().all(written)
    };
    match value {
        Value::String(text) => in_text(text),
        Value::Array(items) => items.iter().any(needs_unicode_escape),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, field)| in_text(name) || needs_unicode_escape(field)),
        _ => false,
    }
}

fn check_members(fields: &Map<String, Value>) -> Result<()> {
    let Some(least) = fields.get("minProperties").and_then(Value::as_u64) else {
        return Ok(());
    };
    let required = fields.get("required").and_then(Value::as_array);
    let named = required.map_or(0, Vec::len) as u64;
    // Members beyond the required ones have free names, which may come twice, and then count once.
    if least > named + 1 {
        return Err(Error::Grammar(format!(
            "the keyword `minProperties` is supported up to one more than the required members; here it is {least} \
             beside {named} required"
        )));
    }
    Ok(())
}

/// Calls as a grammar in the form that `llguidance` reads (docs.rs/llguidance, "lark").
fn of_tools(
    tools: &[Tool],
    schemas: &[Value],
    answer: Option<&Value>,
    required: bool,
    parallel: bool,
) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    let more = if parallel { " more*" } else { "" };
    let begins = quoted(CALL_BEGINS);
    let mut out = match (required, answer) {
        (true, _) => format!("start: {begins} body{more}\n"),
        (false, Some(schema)) => {
            format!("start: answer | {begins} body{more}\nanswer: %json {schema}\n")
        }
        (false, None) => {
            format!("start: TEXT | head body{more}\nhead[lazy]: TEXT {begins}\nTEXT: /(.|\\n)*/\n")
        }
    };
    if parallel {
        out += &format!("more: {} body\n", quoted(&format!("\n{CALL_BEGINS}")));
    }
    let names: Vec<String> = (0..tools.len()).map(|at| format!("tool_{at}")).collect();
    out += &format!("body: {}\n", names.join(" | "));
    for ((name, tool), schema) in names.iter().zip(tools).zip(schemas) {
        out += &format!(
            "{name}: {} {name}_arguments {}\n{name}_arguments: %json {schema}\n",
            quoted(&format!(
                "\n{{\"name\": {}, \"arguments\": ",
                quoted(&tool.name)
            )),
            quoted(&format!("}}\n{CALL_ENDS}")),
        );
    }
    out
}

/// The compiler's message as a sentence that names the keyword.
fn refusal(message: &str) -> String {
    let line = first_line(message);
    if let Some((_, list)) = line.split_once("Unimplemented keys: [") {
        let keys = list.split(']').next().unwrap_or_default().replace('"', "`");
        return format!("the schema's keywords {keys} are not supported here");
    }
    if line.contains("oneOf constraints") {
        return "the keyword `oneOf` is not supported where its options can overlap; use `anyOf`"
            .into();
    }
    if line.contains("min/maxProperties") {
        return "the keywords `minProperties` and `maxProperties` are supported only where all `properties` are \
                required"
            .into();
    }
    if let Some((_, format)) = line.split_once("Unknown format: ") {
        return format!("the `format` `{format}` is not supported here");
    }
    if let Some((_, why)) = line.split_once("Unsatisfiable schema: ") {
        return format!("no answer can satisfy the schema: {why}");
    }
    if let Some((_, draft)) = line.split_once("Unknown specification: ") {
        return format!("the `$schema` `{draft}` is not known");
    }
    if line.contains("circular references") {
        return "the keyword `$ref` is not supported where it leads back to itself and other keywords stand beside it"
            .into();
    }
    const REFERENCE: [&str; 6] = [
        "Resource '",
        "Pointer '",
        "Anchor '",
        "Definition not",
        "URI",
        "pointer '",
    ];
    if REFERENCE.iter().any(|word| line.contains(word)) {
        return format!("the keyword `$ref` leads to nothing that is here: {line}");
    }
    const PATTERN: [&str; 4] = ["egex", "attern", "lookaround", "look-around"];
    if !line.contains('`') && PATTERN.iter().any(|word| line.contains(word)) {
        return format!("the keyword `pattern` or `patternProperties`: {line}");
    }
    // The compiler puts names between plain quotes.
    let mut parts = line.split('\'');
    let mut out = parts.next().unwrap_or_default().to_owned();
    while let (Some(name), rest) = (parts.next(), parts.next()) {
        match rest {
            Some(rest) => out += &format!("`{name}`{rest}"),
            None => out += &format!("'{name}"),
        }
    }
    out
}

/// The first line, at most 300 bytes of it.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}
