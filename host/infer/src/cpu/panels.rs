//! Activations of 4 rows side by side, for products with many rows at once.
//!
//! A panel holds 4 rounded rows, block by block: for each four columns the even ones of all 4 rows, two to a word, and the
//! odd ones; then their scales, then their sums, then what their products begin with: for each half of the block, and for
//! both, less the sum of the products of neighbours (see `avx2_panels`). A kernel reads a panel, and the weights that were spread out once for all panels, front to back.
//!
//! Four rows against two groups of weights are eight sums, which stay in registers: a step of 8 products then loads 6
//! vectors. Eight rows against one group have as many sums, but load 9, more than the processor loads in the time that
//! it multiplies.

use super::tiles::{BLOCK, RoundedRow};

/// Rows of a panel.
pub(crate) const PANEL: usize = 4;
/// From so many rows on, spreading the weights out pays.
pub(crate) const FEWEST: usize = 8;
/// Pairs of columns in a block.
pub(crate) const PAIRS: usize = BLOCK / 2;
/// 32-bit words of a block of a panel: pairs of integers, scales (f32), sums (f32), three beginnings.
pub(crate) const PANEL_WORDS: usize = PAIRS * PANEL + 5 * PANEL;

/// Rounded rows in panels.
#[derive(Default)]
pub(crate) struct Panels {
    pub(crate) words: Vec<u32>,
    rows: usize,
    blocks: usize,
}

impl Panels {
    /// Makes room for the whole panels of `rows` rows, and gives their number.
    pub(crate) fn reset(&mut self, rows: usize, columns: usize) -> usize {
        (self.rows, self.blocks) = (rows / PANEL * PANEL, columns / BLOCK);
        self.words
            .resize(self.rows / PANEL * self.blocks * PANEL_WORDS, 0);
        self.rows / PANEL
    }

    /// Words of a panel.
    pub(crate) fn panel_words(&self) -> usize {
        self.blocks * PANEL_WORDS
    }

    /// The panels that there are.
    pub(crate) fn panels(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        let size = self.panel_words().max(1);
        self.words.chunks_exact(size).take(self.rows / PANEL)
    }

    /// Rows in panels; those after them are left to kernels of few rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
}

/// Writes the 4 rows of `x` into a panel.
pub(crate) fn pack(x: &RoundedRow<'_>, panel: &mut [u32]) {
    let (columns, blocks) = (x.word.len() / PANEL, x.scale.len() / PANEL);
    for (block, out) in panel.chunks_exact_mut(PANEL_WORDS).enumerate() {
        let (pairs, numbers) = out.split_at_mut(PAIRS * PANEL);
        for lane in 0..PANEL {
            let words = &x.word[lane * columns + block * BLOCK..][..BLOCK];
            let word = |word: i16| u32::from(word.cast_unsigned());
            let mut beginnings = [0i32; 3];
            for (four, words) in words.as_chunks::<4>().0.iter().enumerate() {
                let [a, b, c, d] = *words;
                pairs[2 * four * PANEL + lane] = word(a) | word(c) << 16;
                pairs[(2 * four + 1) * PANEL + lane] = word(b) | word(d) << 16;
                let products = i32::from(a) * i32::from(b) + i32::from(c) * i32::from(d);
                for at in [four / (PAIRS / 4), 2] {
                    beginnings[at] = beginnings[at].wrapping_sub(products);
                }
            }
            for (index, beginning) in beginnings.into_iter().enumerate() {
                numbers[(2 + index) * PANEL + lane] = beginning.cast_unsigned();
            }
            numbers[lane] = x.scale[lane * blocks + block].to_bits();
            numbers[PANEL + lane] = x.sum[lane * blocks + block].to_bits();
        }
    }
}
