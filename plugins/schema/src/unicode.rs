//! Characters that do not belong in a text: control characters, invisible ones, direction
//! overrides, and what broken decoding leaves behind. Some can be taken out without a change of
//! meaning.
//!
//! Invisible characters have honest uses, and those pass: joiners inside emoji and in scripts that
//! need them, variation selectors after a character that has variants, tags in the flags of
//! England, Scotland and Wales, marks of direction (U+200E, U+200F).

use alloc::string::String;

use serde::Deserialize;

/// A kind of flaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// C0 and C1 controls but for tab, line feed and carriage return; interlinear annotation marks.
    Control,
    /// A byte-order mark at the beginning.
    ByteOrderMark,
    /// U+FFFD: bytes that were no text when somebody decoded them.
    Replacement,
    /// Embeddings, overrides and isolates of direction: text that reads otherwise than it is.
    Bidi,
    /// Zero-width spaces and joiners where they join nothing, and invisible operators.
    ZeroWidth,
    /// Tag characters outside a flag: ASCII that nobody sees.
    Tag,
    /// Variation selectors after one another, or after a character without variants: bytes that
    /// nobody sees.
    VariationSelector,
    /// Code points that are no characters, such as U+FFFE.
    NonCharacter,
}

impl Flaw {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Control,
        Self::ByteOrderMark,
        Self::Replacement,
        Self::Bidi,
        Self::ZeroWidth,
        Self::Tag,
        Self::VariationSelector,
        Self::NonCharacter,
    ];

    /// As config and findings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control-characters",
            Self::ByteOrderMark => "byte-order-mark",
            Self::Replacement => "replacement-characters",
            Self::Bidi => "bidi-overrides",
            Self::ZeroWidth => "zero-width",
            Self::Tag => "tag-characters",
            Self::VariationSelector => "variation-selectors",
            Self::NonCharacter => "non-characters",
        }
    }
}

/// What to do about a flaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Nothing.
    Allow,
    /// A finding.
    Flag,
    /// Take it out; refuse where repairs are off.
    #[default]
    Repair,
    /// Refuse.
    Reject,
}

/// How often each kind of flaw is in a text, and where first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flaws {
    counts: [(u32, u32); 8],
}

impl Flaws {
    /// How often, and the byte offset of the first.
    pub fn of(&self, flaw: Flaw) -> (u32, u32) {
        self.counts[flaw as usize]
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|&(count, _)| count == 0)
    }
}

/// Finds the flaws of a text.
pub fn flaws(text: &str) -> Flaws {
    let mut flaws = Flaws::default();
    // Nearly every text: printable ASCII and line ends.
    if text
        .bytes()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r'))
    {
        return flaws;
    }
    let mut scan = Scan::default();
    for (offset, character) in text.char_indices() {
        if let Some(flaw) = scan.next(character) {
            let (count, first) = &mut flaws.counts[flaw as usize];
            if *count == 0 {
                *first = u32::try_from(offset).unwrap_or(u32::MAX);
            }
            *count += 1;
        }
    }
    flaws
}

/// The text without the characters whose flaw `removes` names.
fn without(text: &str, removes: &impl Fn(Flaw) -> bool) -> String {
    let mut scan = Scan::default();
    text.chars()
        .filter(|&character| !scan.next(character).is_some_and(removes))
        .collect()
}

/// The text without the flaws that `removes` names. What stood behind a removed character may be a
/// flaw only then, so it is done until none is left.
pub fn repaired(text: &str, removes: impl Fn(Flaw) -> bool) -> String {
    let mut text = without(text, &removes);
    loop {
        let found = flaws(&text);
        if !Flaw::ALL
            .iter()
            .any(|flaw| removes(*flaw) && found.of(*flaw).0 > 0)
        {
            return text;
        }
        text = without(&text, &removes);
    }
}

/// What came before, as far as it decides about what comes.
#[derive(Default)]
struct Scan {
    previous: Option<char>,
    /// Inside the tags of a flag.
    in_flag: bool,
}

impl Scan {
    /// The flaw of the next character, if it has one.
    fn next(&mut self, character: char) -> Option<Flaw> {
        let previous = self.previous.replace(character);
        // A black flag begins the tags of a subdivision's flag.
        let in_flag = core::mem::replace(&mut self.in_flag, character == '\u{1f3f4}');
        match character {
            ' '..='~' | '\t' | '\n' | '\r' => None,
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fff9}'..='\u{fffb}' => Some(Flaw::Control),
            '\u{feff}' if previous.is_none() => Some(Flaw::ByteOrderMark),
            '\u{fffd}' => Some(Flaw::Replacement),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => Some(Flaw::Bidi),
            // Between letters of ASCII these join and part nothing; elsewhere a script may need them.
            '\u{200b}'..='\u{200d}' => previous
                .is_none_or(|before| before.is_ascii())
                .then_some(Flaw::ZeroWidth),
            '\u{180e}' | '\u{2060}'..='\u{2064}' | '\u{feff}' => Some(Flaw::ZeroWidth),
            '\u{e0000}'..='\u{e007f}' => {
                self.in_flag = in_flag && character != '\u{e007f}';
                (!in_flag).then_some(Flaw::Tag)
            }
            '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}' => {
                let varies = previous.is_some_and(|before| {
                    let selects =
                        matches!(before, '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}');
                    // Digits, # and * become key caps.
                    !selects && (!before.is_ascii() || matches!(before, '0'..='9' | '#' | '*'))
                });
                (!varies).then_some(Flaw::VariationSelector)
            }
            '\u{fdd0}'..='\u{fdef}' => Some(Flaw::NonCharacter),
            other if u32::from(other) & 0xfffe == 0xfffe => Some(Flaw::NonCharacter),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds(text: &str) -> Vec<Flaw> {
        let flaws = flaws(text);
        Flaw::ALL
            .into_iter()
            .filter(|flaw| flaws.of(*flaw).0 > 0)
            .collect()
    }

    #[test]
    fn honest_texts_have_no_flaw() {
        for text in [
            "plain\ttext\r\nwith lines",
            "naïve café — “quoted” … ½",
            "👨‍👩‍👧‍👦 and 1️⃣ and ❤️ and 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
            "می‌خواهم क्‍ष",
            "עברית \u{200f}ו-English",
            "葛󠄀城",
            "",
        ] {
            assert_eq!(kinds(text), [], "{text}");
        }
    }

    #[test]
    fn each_flaw_is_found() {
        for (text, flaw) in [
            ("a\0b", Flaw::Control),
            ("\u{1b}[31mred", Flaw::Control),
            ("\u{feff}text", Flaw::ByteOrderMark),
            ("caf\u{fffd}", Flaw::Replacement),
            ("a\u{202e}b", Flaw::Bidi),
            ("ig\u{200b}nore", Flaw::ZeroWidth),
            ("te\u{feff}xt", Flaw::ZeroWidth),
            ("hi\u{e0041}\u{e0042}", Flaw::Tag),
            ("🏴\u{e0067}\u{e007f}\u{e0041}", Flaw::Tag),
            ("😀\u{fe0f}\u{fe01}", Flaw::VariationSelector),
            ("a\u{e0100}", Flaw::VariationSelector),
            ("\u{fdd0}", Flaw::NonCharacter),
            ("\u{10ffff}", Flaw::NonCharacter),
        ] {
            assert_eq!(kinds(text), [flaw], "{text:?}");
        }
        let found = flaws("é\u{1}\u{2}");
        assert_eq!(found.of(Flaw::Control), (2, 2));
    }

    proptest! {
        #[test]
        fn a_repaired_text_has_no_flaw_left_and_nothing_else_is_lost(text in "[ -~\u{200b}-\u{200f}\u{feff}\u{1f3f4}\u{e0041}-\u{e0043}\u{e007f}\u{fe00}-\u{fe0f}é😀\u{0}-\u{20}\u{202a}-\u{202e}]{0,40}") {
            let repaired = repaired(&text, |_| true);
            prop_assert!(flaws(&repaired).is_empty(), "{:?}", repaired);
            if flaws(&text).is_empty() {
                prop_assert_eq!(&repaired, &text);
            }
        }
    }
}
