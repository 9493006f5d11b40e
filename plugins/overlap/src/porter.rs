//! Porter's stemmer as NLTK extends it, which is what `rouge-score` uses with `use_stemmer=True`.
//!
//! M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980; the extensions are those
//! of NLTK 3 (`nltk.stem.porter`, mode `NLTK_EXTENSIONS`). Words are of `a-z` and `0-9`.

use alloc::borrow::Cow;
use alloc::string::String;

/// When a rule applies, given what stands before its suffix.
type Condition = fn(&str) -> bool;

/// A suffix, what replaces it, and when.
type Rule = (&'static str, &'static str, Condition);

/// The stem of a lower-case ASCII word.
pub fn stem(mut word: String) -> Cow<'static, str> {
    if let Some(irregular) = irregular(&word) {
        return Cow::Borrowed(irregular);
    }
    if word.len() > 2 {
        plural(&mut word);
        past_and_gerund(&mut word);
        apply(
            &mut word,
            &[("y", "i", |stem| {
                stem.len() > 1 && is_consonant(stem.as_bytes(), stem.len() - 1)
            })],
        );
        double_suffixes(&mut word);
        apply(&mut word, STEP_3);
        apply(&mut word, STEP_4);
        final_e(&mut word);
        // -LL -> -L; the measure is taken of the word without its last letter.
        if word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1 {
            word.pop();
        }
    }
    Cow::Owned(word)
}

fn irregular(word: &str) -> Option<&'static str> {
    Some(match word {
        "sky" | "skies" => "sky",
        "dying" => "die",
        "lying" => "lie",
        "tying" => "tie",
        "news" => "news",
        "innings" | "inning" => "inning",
        "outings" | "outing" => "outing",
        "cannings" | "canning" => "canning",
        "howe" => "howe",
        "proceed" => "proceed",
        "exceed" => "exceed",
        "succeed" => "succeed",
        _ => return None,
    })
}

/// Step 1a: plurals.
fn plural(word: &mut String) {
    if word.len() == 4 && word.ends_with("ies") {
        word.pop();
        return;
    }
    let rules: &[Rule] = &[
        ("sses", "ss", always),
        ("ies", "i", always),
        ("ss", "ss", always),
        ("s", "", always),
    ];
    apply(word, rules);
}

/// Step 1b: `-ed` and `-ing`.
fn past_and_gerund(word: &mut String) {
    if word.ends_with("ied") {
        // "died" -> "die", "spied" -> "spi".
        word.truncate(word.len() - if word.len() == 4 { 1 } else { 2 });
        return;
    }
    if let Some(stem) = word.strip_suffix("eed") {
        if measure(stem) > 0 {
            word.pop();
        }
        return;
    }
    let Some(stem) = ["ed", "ing"]
        .iter()
        .filter_map(|suffix| word.strip_suffix(suffix))
        .find(|stem| contains_vowel(stem))
    else {
        return;
    };
    word.truncate(stem.len());
    for (suffix, full) in [("at", "ate"), ("bl", "ble"), ("iz", "ize")] {
        if word.ends_with(suffix) {
            word.truncate(word.len() - suffix.len());
            word.push_str(full);
            return;
        }
    }
    if ends_double_consonant(word) {
        if !word.ends_with(['l', 's', 'z']) {
            word.pop();
        }
    } else if measure(word) == 1 && ends_cvc(word) {
        word.push('e');
    }
}

/// Step 2: double suffixes.
fn double_suffixes(word: &mut String) {
    // NLTK takes -ALLI to -AL and runs the step again.
    while word.strip_suffix("alli").is_some_and(has_measure) {
        word.truncate(word.len() - 2);
    }
    apply(word, STEP_2);
}

/// Step 5a: a final `-e`.
fn final_e(word: &mut String) {
    if let Some(stem) = word.strip_suffix('e') {
        let measure = measure(stem);
        if measure > 1 || measure == 1 && !ends_cvc(stem) {
            word.pop();
        }
    }
}

const STEP_2: &[Rule] = &[
    ("ational", "ate", has_measure),
    ("tional", "tion", has_measure),
    ("enci", "ence", has_measure),
    ("anci", "ance", has_measure),
    ("izer", "ize", has_measure),
    ("bli", "ble", has_measure),
    ("alli", "al", has_measure),
    ("entli", "ent", has_measure),
    ("eli", "e", has_measure),
    ("ousli", "ous", has_measure),
    ("ization", "ize", has_measure),
    ("ation", "ate", has_measure),
    ("ator", "ate", has_measure),
    ("alism", "al", has_measure),
    ("iveness", "ive", has_measure),
    ("fulness", "ful", has_measure),
    ("ousness", "ous", has_measure),
    ("aliti", "al", has_measure),
    ("iviti", "ive", has_measure),
    ("biliti", "ble", has_measure),
    ("fulli", "ful", has_measure),
    // The measure of the stem with the `l` of the suffix.
    ("logi", "log", |stem| {
        let mut longer = String::from(stem);
        longer.push('l');
        measure(&longer) > 0
    }),
];

const STEP_3: &[Rule] = &[
    ("icate", "ic", has_measure),
    ("ative", "", has_measure),
    ("alize", "al", has_measure),
    ("iciti", "ic", has_measure),
    ("ical", "ic", has_measure),
    ("ful", "", has_measure),
    ("ness", "", has_measure),
];

const STEP_4: &[Rule] = &[
    ("al", "", is_long),
    ("ance", "", is_long),
    ("ence", "", is_long),
    ("er", "", is_long),
    ("ic", "", is_long),
    ("able", "", is_long),
    ("ible", "", is_long),
    ("ant", "", is_long),
    ("ement", "", is_long),
    ("ment", "", is_long),
    ("ent", "", is_long),
    ("ion", "", |stem| {
        is_long(stem) && stem.ends_with(['s', 't'])
    }),
    ("ou", "", is_long),
    ("ism", "", is_long),
    ("ate", "", is_long),
    ("iti", "", is_long),
    ("ous", "", is_long),
    ("ive", "", is_long),
    ("ize", "", is_long),
];

/// Applies the first rule whose suffix the word has, if its condition holds; no other is tried.
fn apply(word: &mut String, rules: &[Rule]) {
    for (suffix, replacement, condition) in rules {
        if let Some(stem) = word.strip_suffix(suffix) {
            if condition(stem) {
                word.truncate(stem.len());
                word.push_str(replacement);
            }
            return;
        }
    }
}

fn always(_: &str) -> bool {
    true
}

fn has_measure(stem: &str) -> bool {
    measure(stem) > 0
}

fn is_long(stem: &str) -> bool {
    measure(stem) > 1
}

/// Whether each letter is a consonant; a `y` is one where it begins the word or follows a vowel.
fn consonants(word: &[u8]) -> impl Iterator<Item = bool> + '_ {
    word.iter().scan(false, |previous, letter| {
        *previous = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !*previous,
            _ => true,
        };
        Some(*previous)
    })
}

fn is_consonant(word: &[u8], index: usize) -> bool {
    consonants(word).nth(index).unwrap_or(false)
}

/// Porter's measure: how often a vowel is followed by a consonant.
fn measure(stem: &str) -> usize {
    let mut count = 0;
    let mut vowel = false;
    for consonant in consonants(stem.as_bytes()) {
        count += usize::from(vowel && consonant);
        vowel = !consonant;
    }
    count
}

fn contains_vowel(stem: &str) -> bool {
    consonants(stem.as_bytes()).any(|consonant| !consonant)
}

fn ends_double_consonant(word: &str) -> bool {
    let bytes = word.as_bytes();
    match bytes {
        [.., a, b] => a == b && is_consonant(bytes, bytes.len() - 1),
        _ => false,
    }
}

/// Ends in consonant, vowel, consonant other than `w`, `x`, `y`; or is a vowel and a consonant.
fn ends_cvc(word: &str) -> bool {
    let bytes = word.as_bytes();
    let from_end = |back: usize| is_consonant(bytes, bytes.len() - back);
    match bytes {
        [_, _] => !from_end(2) && from_end(1),
        [.., _, _, last] => {
            from_end(3) && !from_end(2) && from_end(1) && !matches!(last, b'w' | b'x' | b'y')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_paper_and_of_nltk() {
        for (word, expected) in [
            ("caresses", "caress"),
            ("ponies", "poni"),
            ("ties", "tie"),
            ("agreed", "agre"),
            ("feed", "feed"),
            ("plastered", "plaster"),
            ("motoring", "motor"),
            ("sing", "sing"),
            ("conflated", "conflat"),
            ("hopping", "hop"),
            ("falling", "fall"),
            ("filing", "file"),
            ("happy", "happi"),
            ("enjoy", "enjoy"),
            ("relational", "relat"),
            ("vietnamization", "vietnam"),
            ("hopefulness", "hope"),
            ("electriciti", "electr"),
            ("replacement", "replac"),
            ("adoption", "adopt"),
            ("probate", "probat"),
            ("controll", "control"),
            ("geology", "geolog"),
            ("skies", "sky"),
            ("yyyy", "yyyi"),
        ] {
            assert_eq!(stem(word.into()), expected, "{word}");
        }
    }
}
