//! Text to measure with.

const WORDS: &str = "The harbour was quiet when the first boats came in, and the women on the quay \
counted the crates as they were lifted out. Each crate held ice and silver fish; each was weighed, \
chalked and sent up the hill on the narrow carts before the sun had reached the roofs. ";

/// Plain English of exactly so many bytes, with nothing personal in it: the usual case.
pub fn english(bytes: usize) -> String {
    WORDS.chars().cycle().take(bytes).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_text_has_the_size_asked_for() {
        assert_eq!(super::english(1024).len(), 1024);
        assert!(super::english(0).is_empty());
    }
}
