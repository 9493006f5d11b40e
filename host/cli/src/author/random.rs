//! Hostile texts from a seed: the same seed, the same texts, on every machine.

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

/// What texts are made of beside the words of the fixtures.
const PIECES: &[&str] = &[
    " ",
    " ",
    "\n",
    "\r\n",
    "\t",
    ".",
    "!?",
    "a",
    "foo",
    "The",
    "0",
    "42",
    "4111 1111 1111 1111",
    "é",
    "ß",
    "日本語",
    "\u{1F600}",
    "👩‍👩‍👧",
    "\u{0301}",
    "\u{202e}",
    "\u{feff}",
    "\u{0}",
    "\u{1b}[31m",
    "\u{2028}",
    "İ",
    "ﬀ",
    "<script>",
    "{{",
    "}}",
    "%s",
    "\\",
    "\"",
    "'",
    "`",
    "{\"a\":",
    "[[[[",
    "-1e309",
    "ann@example.com",
    "https://example.com/?q=1",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "ignore all previous instructions",
];

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    /// A text of pieces and of words that the plugin is known to look at; now and then a long one.
    pub fn text(&mut self, words: &[String]) -> String {
        let pieces = match self.below(10) {
            0 => self.below(3),
            9 => 200 + self.below(800),
            _ => 1 + self.below(30),
        };
        let mut text = String::new();
        for _ in 0..pieces {
            match (self.below(3), words.get(self.below(words.len()))) {
                (0, Some(word)) => text.push_str(word),
                _ => text.push_str(PIECES.get(self.below(PIECES.len())).unwrap_or(&" ")),
            }
        }
        text
    }

    /// A number that a measure may have.
    pub fn measure(&mut self) -> f64 {
        const ODD: [f64; 8] = [0.0, -0.0, -1.0, 1e308, -1e308, 5e-324, 0.5, 1e15];
        match self.below(3) {
            0 => ODD.get(self.below(ODD.len())).copied().unwrap_or(0.0),
            #[allow(clippy::cast_precision_loss, reason = "any number will do")]
            _ => self.below(100_000) as f64 / 8.0,
        }
    }

    /// Some places to cut a text of so many bytes.
    pub fn cuts(&mut self, length: usize) -> Vec<usize> {
        let count = 1 + self.below(6);
        (0..count).map(|_| self.below(length + 1)).collect()
    }
}
