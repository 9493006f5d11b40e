//! What a request tells the model of tools and of the answer's form: `tools`, `tool_choice`,
//! `parallel_tool_calls` and `response_format`, as a grammar that the answer is held to.

use millgate_infer::{Grammar, Tool};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{error::ApiError, outlet::Form, request::Request};

/// The most tools of a request.
const MOST_TOOLS: usize = 128;

/// What a request tells the model of tools and of the answer's form.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The tools that it is told of.
    pub tools: Vec<Tool>,
    pub grammar: Option<Grammar>,
}

#[derive(Deserialize)]
struct RawTool {
    #[serde(rename = "type")]
    kind: String,
    function: Option<RawFunction>,
}

#[derive(Deserialize)]
struct RawFunction {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawChoice {
    Mode(String),
    Named(RawNamed),
}

#[derive(Deserialize)]
struct RawNamed {
    #[serde(rename = "type")]
    kind: String,
    function: Option<RawName>,
}

#[derive(Deserialize)]
struct RawName {
    name: String,
}

#[derive(Deserialize)]
struct RawFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<RawSchema>,
}

#[derive(Deserialize)]
struct RawSchema {
    name: String,
    schema: Option<Value>,
}

fn wrong(message: impl Into<String>, param: &str) -> ApiError {
    ApiError::invalid(message, Some(param))
}

impl Told {
    /// Reads it.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn read(request: &Request) -> Result<Self, ApiError> {
        let tools = tools(request)?;
        let parallel = request
            .value::<bool>("parallel_tool_calls")?
            .unwrap_or(true);
        let answer = format(request)?;
        let choice = match request.value::<RawChoice>("tool_choice")? {
            None => "auto".to_owned(),
            Some(RawChoice::Mode(mode)) => mode,
            Some(RawChoice::Named(named)) => {
                let name = named.function.filter(|_| named.kind == "function");
                let Some(name) = name else {
                    let kind = named.kind;
                    return Err(wrong(
                        format!(
                            "`tool_choice` of the type `{kind}` is not supported; name a function"
                        ),
                        "tool_choice",
                    ));
                };
                let Some(tool) = tools.iter().find(|tool| tool.name == name.name) else {
                    let name = name.name;
                    return Err(wrong(
                        format!("`tool_choice` names `{name}`, which is not in `tools`"),
                        "tool_choice",
                    ));
                };
                let grammar = Grammar::Tools {
                    tools: vec![tool.clone()],
                    answer: None,
                    required: true,
                    parallel: false,
                };
                return Ok(Self {
                    tools,
                    grammar: Some(grammar),
                });
            }
        };
        let required = match choice.as_str() {
            "auto" | "none" if tools.is_empty() => false,
            "auto" => false,
            "none" => {
                return Ok(Self {
                    tools: Vec::new(),
                    grammar: answer.map(Grammar::JsonSchema),
                });
            }
            "required" if tools.is_empty() => {
                return Err(wrong("`tool_choice` needs `tools`", "tool_choice"));
            }
            "required" => true,
            other => {
                return Err(wrong(
                    format!(
                        "`tool_choice` is `{other}`; it may be `auto`, `none`, `required` or a function"
                    ),
                    "tool_choice",
                ));
            }
        };
        if tools.is_empty() {
            return Ok(Self {
                tools,
                grammar: answer.map(Grammar::JsonSchema),
            });
        }
        let grammar = Grammar::Tools {
            tools: tools.clone(),
            answer,
            required,
            parallel,
        };
        Ok(Self {
            tools,
            grammar: Some(grammar),
        })
    }

    /// What the answer's text is.
    pub(crate) fn form(&self) -> Form {
        match &self.grammar {
            None | Some(Grammar::Regex(_)) => Form::default(),
            Some(Grammar::JsonObject | Grammar::JsonSchema(_)) => Form {
                json: true,
                calls: false,
            },
            Some(Grammar::Tools { answer, .. }) => Form {
                json: answer.is_some(),
                calls: true,
            },
        }
    }
}

fn tools(request: &Request) -> Result<Vec<Tool>, ApiError> {
    let raw: Vec<RawTool> = request.value("tools")?.unwrap_or_default();
    if raw.len() > MOST_TOOLS {
        return Err(wrong(
            format!("at most {MOST_TOOLS} tools can be told of"),
            "tools",
        ));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let place = format!("tools[{index}]");
        let Some(function) = raw.function.filter(|_| raw.kind == "function") else {
            let kind = raw.kind;
            return Err(wrong(
                format!(
                    "`{place}` has the type `{kind}`; local models take the type `function`, with its `function`"
                ),
                &place,
            ));
        };
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if !(1..=64).contains(&function.name.len()) || !function.name.chars().all(good) {
            return Err(wrong(
                format!("`{place}.function.name` must be 1 to 64 letters, digits, `_` and `-`"),
                &format!("{place}.function.name"),
            ));
        }
        if tools.iter().any(|known| known.name == function.name) {
            return Err(wrong(
                format!(
                    "`{place}.function.name` is `{}`, which is taken",
                    function.name
                ),
                &format!("{place}.function.name"),
            ));
        }
        let mut parameters = function.parameters.unwrap_or(Value::Null);
        match &mut parameters {
            Value::Null => {}
            Value::Object(schema) => {
                if !schema.is_empty() {
                    let kind = schema.entry("type").or_insert_with(|| json!("object"));
                    if kind != "object" {
                        return Err(wrong(
                            format!("`{place}.function.parameters` must be of the type `object`"),
                            &format!("{place}.function.parameters"),
                        ));
                    }
                }
            }
            _ => {
                return Err(wrong(
                    format!("`{place}.function.parameters` must be a JSON Schema, an object"),
                    &format!("{place}.function.parameters"),
                ));
            }
        }
        tools.push(Tool {
            name: function.name,
            description: function.description.unwrap_or_default(),
            parameters,
            strict: function.strict.unwrap_or(false),
        });
    }
    Ok(tools)
}

/// The schema that the answer's text must follow.
fn format(request: &Request) -> Result<Option<Value>, ApiError> {
    const FIELD: &str = "response_format";
    let Some(format) = request.value::<RawFormat>(FIELD)? else {
        return Ok(None);
    };
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(json!({"type": "object"}))),
        "json_schema" => {
            let Some(schema) = format.json_schema else {
                return Err(wrong(
                    "`response_format.json_schema` is missing",
                    "response_format.json_schema",
                ));
            };
            if schema.name.is_empty() {
                return Err(wrong(
                    "`response_format.json_schema.name` is empty",
                    "response_format.json_schema.name",
                ));
            }
            Ok(Some(
                schema.schema.unwrap_or_else(|| json!({"type": "object"})),
            ))
        }
        other => Err(wrong(
            format!(
                "`response_format.type` is `{other}`; it may be `text`, `json_object` or `json_schema`"
            ),
            "response_format.type",
        )),
    }
}
