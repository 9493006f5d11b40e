//! Activations of 4 rows side by side, for products with many rows at once.
//!
//! A panel holds 4 rounded rows, block by block: for each pair of columns the pairs of all 4 rows, then their scales,
//! then their sums. A kernel reads a panel, and the weights that were spread out once for all panels, front to back.
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
/// 32-bit words of a block of a panel: pairs of integers, scales (f32), sums (f32).
pub(crate) const PANEL_WORDS: usize = PAIRS * PANEL + 2 * PANEL;

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
    #[cfg(target_arch = "x86_64")]
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
        let (scales, sums) = numbers.split_at_mut(PANEL);
        for lane in 0..PANEL {
            let words = &x.word[lane * columns + block * BLOCK..][..BLOCK];
            for (pair, words) in words.as_chunks::<2>().0.iter().enumerate() {
                let [a, b] = words.map(|word| u32::from(word.cast_unsigned()));
                pairs[pair * PANEL + lane] = a | b << 16;
            }
            scales[lane] = x.scale[lane * blocks + block].to_bits();
            sums[lane] = x.sum[lane * blocks + block].to_bits();
        }
    }
}
