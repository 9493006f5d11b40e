//! Rules of a chat: how many messages, how long, whose turn.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Deserialize;

use crate::body::Message;

/// The rules of sizes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Sizes {
    max_messages: Option<u64>,
    max_message_chars: Option<u64>,
    max_total_chars: Option<u64>,
}

/// The rules of roles.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Roles {
    allowed: Vec<String>,
    system_first: bool,
    alternate: bool,
    last: Vec<String>,
}

impl Default for Roles {
    fn default() -> Self {
        let allowed = [
            "system",
            "developer",
            "user",
            "assistant",
            "tool",
            "function",
        ];
        Self {
            allowed: allowed.map(String::from).to_vec(),
            system_first: false,
            alternate: false,
            last: Vec::new(),
        }
    }
}

/// A rule that was broken: its name, and what to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// In kebab case.
    pub rule: &'static str,
    /// For the client.
    pub message: String,
}

fn broken(rule: &'static str, message: String) -> Option<Broken> {
    Some(Broken { rule, message })
}

impl Sizes {
    /// Checks the number of messages, where there are messages.
    pub fn check_count(&self, count: usize) -> Option<Broken> {
        let most = self.max_messages.filter(|most| count as u64 > *most)?;
        broken(
            "max-messages",
            format!("{count} messages are too many: at most {most} are allowed"),
        )
    }

    /// Checks the texts, given as path and text.
    pub fn check_texts<'a>(
        &self,
        texts: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Option<Broken> {
        if self.max_message_chars.is_none() && self.max_total_chars.is_none() {
            return None;
        }
        let mut total: u64 = 0;
        for (path, text) in texts {
            let length = text.chars().count() as u64;
            total += length;
            if let Some(most) = self.max_message_chars.filter(|most| length > *most) {
                return broken(
                    "max-message-chars",
                    format!(
                        "the text at {path} has {length} characters: at most {most} are allowed"
                    ),
                );
            }
        }
        let most = self.max_total_chars.filter(|most| total > *most)?;
        broken(
            "max-total-chars",
            format!("all texts together have {total} characters: at most {most} are allowed"),
        )
    }
}

impl Roles {
    /// Checks the order of roles.
    pub fn check(&self, messages: &[Message]) -> Option<Broken> {
        let is_system = |role: &str| role == "system" || role == "developer";
        let mut previous = "";
        let mut begun = false;
        for (index, message) in messages.iter().enumerate() {
            let role = message.role.as_str();
            if !self.allowed.iter().any(|allowed| allowed == role) {
                let allowed = self.allowed.join(", ");
                return broken(
                    "role",
                    format!(
                        "the role of message {index} is not allowed: it must be one of {allowed}"
                    ),
                );
            }
            if self.system_first && begun && is_system(role) {
                return broken(
                    "system-first",
                    format!("message {index} is a {role} message: those come before all others"),
                );
            }
            begun |= !is_system(role);
            if self.alternate && role == previous && matches!(role, "user" | "assistant") {
                return broken(
                    "alternate",
                    format!(
                        "message {index} follows another {role} message: user and assistant take turns"
                    ),
                );
            }
            previous = role;
        }
        if self.last.is_empty() || self.last.iter().any(|last| last == previous) {
            return None;
        }
        broken(
            "last-role",
            format!(
                "the last message must be of role {}",
                self.last.join(" or ")
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(roles: &[&str]) -> Vec<Message> {
        let json: Vec<String> = roles
            .iter()
            .map(|role| format!(r#"{{"role":"{role}","content":["x",1]}}"#))
            .collect();
        serde_json::from_str(&format!("[{}]", json.join(","))).unwrap()
    }

    fn rule(config: &str, roles: &[&str]) -> Option<&'static str> {
        let rules: Roles = serde_json::from_str(config).unwrap();
        rules.check(&messages(roles)).map(|broken| broken.rule)
    }

    #[test]
    fn roles_come_in_their_order() {
        assert_eq!(rule("{}", &["system", "user", "user", "system"]), None);
        assert_eq!(rule("{}", &["robot"]), Some("role"));
        assert_eq!(rule(r#"{"allowed": ["user"]}"#, &["system"]), Some("role"));
        let first = r#"{"system-first": true}"#;
        assert_eq!(rule(first, &["system", "developer", "user"]), None);
        assert_eq!(rule(first, &["user", "system"]), Some("system-first"));
        let turns = r#"{"alternate": true}"#;
        assert_eq!(
            rule(
                turns,
                &["system", "user", "assistant", "tool", "assistant", "user"]
            ),
            None
        );
        assert_eq!(rule(turns, &["user", "user"]), Some("alternate"));
        let last = r#"{"last": ["user", "tool"]}"#;
        assert_eq!(rule(last, &["assistant", "user"]), None);
        assert_eq!(rule(last, &["user", "assistant"]), Some("last-role"));
        assert_eq!(rule(last, &[]), Some("last-role"));
    }

    #[test]
    fn sizes_are_in_characters() {
        let sizes: Sizes = serde_json::from_str(
            r#"{"max-messages": 2, "max-message-chars": 3, "max-total-chars": 5}"#,
        )
        .unwrap();
        let check = |texts: &[&str]| {
            sizes
                .check_texts(texts.iter().map(|text| ("/messages/0/content", *text)))
                .map(|broken| broken.rule)
        };
        assert_eq!(check(&["äöü", "ab"]), None);
        assert_eq!(check(&["äöüß"]), Some("max-message-chars"));
        assert_eq!(check(&["abc", "abc"]), Some("max-total-chars"));
        assert_eq!(sizes.check_count(2), None);
        assert_eq!(sizes.check_count(3).unwrap().rule, "max-messages");
    }
}
