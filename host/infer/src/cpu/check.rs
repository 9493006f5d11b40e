//! A check of a level's kernels against the plain ones, before the level is used: a kernel that is wrong on some processor
//! costs that processor its speed, but no answer.
//!
//! The integer kernels must give the very results of the plain ones. Their numbers are chosen so that no f32 operation
//! rounds: scales are powers of two, and a row of activations fills only one of the two planes. The others work in f32
//! throughout, and must come close. All of it takes about a millisecond, once.

use std::ops::Range;

use super::attention::{QUERIES, Query};
use super::kernels::{self, CacheElement, HeadCache, Level};
use super::panels::{PANEL, Panels};
use super::tiles::{BLOCK, LANES, Rounded, RoundedRow, Tiles, round_row};
use super::{panels, scalar};
use crate::memory::HugeArena;
use crate::ops::{PAGE_TOKENS, Weights};
use crate::quant::TensorType;

/// Rows of activations: two panels and one more.
const ROWS: usize = 2 * PANEL + 1;
/// Groups of weights.
const GROUPS: usize = 2;
/// Columns: a block of the K types.
const COLUMNS: usize = 256;
/// Elements of a head: whole vectors.
const HEAD: usize = 24;

/// The kernels that are checked; the tests put wrong ones into their place.
pub(super) trait Kernels: Copy {
    fn level(self) -> Level;

    fn round(self, x: &[f32], out: &mut RoundedRow<'_>) {
        kernels::round(self.level(), x, out);
    }

    fn pack_panel(self, x: &RoundedRow<'_>, panel: &mut [u32]) {
        kernels::pack_panel(self.level(), x, panel);
    }

    fn group_products(
        self,
        tiles: &Tiles,
        groups: Range<usize>,
        x: (&Rounded, &Panels),
        rows: usize,
        write: impl FnMut(usize, usize, [f32; LANES]),
    ) {
        let mut scratch = Vec::new();
        kernels::group_products(self.level(), tiles, groups, x, rows, &mut scratch, write);
    }

    fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        kernels::dot(self.level(), a, b)
    }
}

impl Kernels for Level {
    fn level(self) -> Level {
        self
    }
}

/// The first of the levels whose kernels are right, else the plain one. A level that is passed over is warned of.
pub(super) fn best<K: Kernels>(levels: Vec<Level>, kernels: impl Fn(Level) -> K) -> Level {
    for level in levels {
        let Some(fault) = fault(kernels(level)) else {
            return level;
        };
        tracing::warn!(
            "the {level} kernels compute {fault} wrongly on this processor and are not used: models run slower; please \
             report this with the processor's name"
        );
    }
    Level::Scalar
}

/// What the kernels compute wrongly.
fn fault(kernels: impl Kernels) -> Option<String> {
    let mut random = Random(1);
    if !rounds(kernels, &mut random) {
        return Some("rounded activations".to_owned());
    }
    let x = activations(&mut random);
    let packed = panels_of(&x, kernels.level(), |x, panel| kernels.pack_panel(x, panel));
    if packed.words != panels_of(&x, kernels.level(), panels::pack).words {
        return Some("panels of activations".to_owned());
    }
    let mut arena = HugeArena::default();
    for kind in TensorType::ALL.into_iter().filter(|kind| Tiles::has(*kind)) {
        let rows = GROUPS * LANES;
        let bytes = exact_tensor(kind, rows * COLUMNS, &mut random);
        let weights = Weights {
            kind,
            rows,
            columns: COLUMNS,
            bytes: &bytes,
        };
        // Without memory for a few kilobytes no model will be loaded either.
        let tiles = Tiles::pack(&weights, &mut arena).ok()?;
        if !multiplies(kernels, &tiles, (&x, &packed)) {
            return Some(format!("products with {kind} weights"));
        }
    }
    if !vectors(kernels, &mut random) {
        return Some("operations on vectors".to_owned());
    }
    let attends = attends::<u16>(kernels, &mut random) && attends::<f32>(kernels, &mut random);
    (!attends).then(|| "attention".to_owned())
}

/// Pseudo-random numbers: Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From -`most` to `most`.
    fn float(&mut self, most: f32) -> f32 {
        ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * most
    }

    fn floats(&mut self, count: usize, most: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(most)).collect()
    }
}

/// `rows` rows of `x`, to be written or read.
fn rows_of(x: &mut Rounded, rows: Range<usize>) -> RoundedRow<'_> {
    let (c, b) = (
        rows.start * COLUMNS..rows.end * COLUMNS,
        rows.start * COLUMNS / BLOCK..rows.end * COLUMNS / BLOCK,
    );
    RoundedRow {
        high: &mut x.high[c.clone()],
        low: &mut x.low[c.clone()],
        word: &mut x.word[c],
        scale: &mut x.scale[b.clone()],
        sum: &mut x.sum[b],
    }
}

fn rounds(kernels: impl Kernels, random: &mut Random) -> bool {
    let mut x = random.floats(COLUMNS, 3.0);
    x[..BLOCK].fill(0.0);
    x[BLOCK..2 * BLOCK].iter_mut().for_each(|x| *x *= 1e-33);
    x[2 * BLOCK] = -1e6;
    let [mut wanted, mut found] = [(); 2].map(|()| {
        let mut rounded = Rounded::default();
        rounded.reset(1, COLUMNS);
        rounded
    });
    round_row(&x, &mut rows_of(&mut wanted, 0..1));
    kernels.round(&x, &mut rows_of(&mut found, 0..1));
    let bytes = (&wanted.high, &wanted.low, &wanted.word) == (&found.high, &found.low, &found.word);
    bytes && wanted.scale == found.scale && wanted.sum == found.sum
}

/// Rows whose integers fill the upper plane or the lower one, the first as far as they can.
fn activations(random: &mut Random) -> Rounded {
    let mut x = Rounded::default();
    x.reset(ROWS, COLUMNS);
    for row in 0..ROWS {
        for block in 0..COLUMNS / BLOCK {
            let at = (row * COLUMNS / BLOCK) + block;
            let mut sum = 0;
            for column in at * BLOCK..(at + 1) * BLOCK {
                let (high, low) = match (row, random.next() >> 32) {
                    // Every second block, so that the sums of several are exact too.
                    (0, _) => (if block % 2 == 0 { 127 } else { 0 }, 0),
                    (1, _) => (if block % 2 == 1 { -127 } else { 0 }, 0),
                    (_, bits) if row % 2 == 0 => ((bits % 255) as i16 - 127, 0),
                    (_, bits) => (0, (bits % 128) as i16 - 64),
                };
                (x.high[column], x.low[column]) = (high as i8, low as i8);
                x.word[column] = 128 * high + low;
                sum += i32::from(x.word[column]);
            }
            x.scale[at] = 1.0 / 32.0;
            x.sum[at] = sum as f32 / 32.0;
        }
    }
    x
}

/// The panels of as many rows as fill them, or none where no kernel reads them.
fn panels_of(x: &Rounded, level: Level, pack: impl Fn(&RoundedRow<'_>, &mut [u32])) -> Panels {
    let (mut x, mut panels) = (x.clone(), Panels::default());
    let rows = if kernels::has_panels(level) { ROWS } else { 0 };
    panels.reset(rows, COLUMNS);
    let size = panels.panel_words().max(1);
    for (index, panel) in panels.words.chunks_exact_mut(size).enumerate() {
        pack(&rows_of(&mut x, index * PANEL..(index + 1) * PANEL), panel);
    }
    panels
}

/// Random weights whose scales are powers of two.
fn exact_tensor(kind: TensorType, elements: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..elements / kind.block_len() {
        let mut block: Vec<u8> = (0..kind.block_bytes())
            .map(|_| (random.next() >> 32) as u8)
            .collect();
        let at: &[usize] = match kind {
            TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
            TensorType::Q3K => &[108],
            TensorType::Q6K => &[208],
            _ => &[0],
        };
        for at in at {
            let scale = half::f16::from_f32(0.25);
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

/// Whether all rows' products are right: from panels, and of each number of rows that a kernel may take at once.
fn multiplies(kernels: impl Kernels, tiles: &Tiles, (x, packed): (&Rounded, &Panels)) -> bool {
    let mut wanted = [[[0f32; LANES]; ROWS]; GROUPS];
    for (group, wanted) in wanted.iter_mut().enumerate() {
        scalar::group_products(tiles, group, x, 0..ROWS, |row, products| {
            wanted[row] = products;
        });
    }
    let none = Panels::default();
    let right = |groups: Range<usize>, rows: usize| {
        let packed = if rows == ROWS { packed } else { &none };
        let mut found = [[[f32::NAN; LANES]; ROWS]; GROUPS];
        kernels.group_products(
            tiles,
            groups.clone(),
            (x, packed),
            rows,
            |row, group, products| {
                found[group][row] = products;
            },
        );
        groups
            .into_iter()
            .all(|group| found[group][..rows] == wanted[group][..rows])
    };
    (1..=ROWS).all(|rows| right(0..GROUPS, rows) && right(GROUPS - 1..GROUPS, rows))
}

/// Whether numbers are within a few roundings of each other, where `scale` is that of what was added up.
fn close(a: f32, b: f32, scale: f32) -> bool {
    (a - b).abs() <= 1e-5 * scale
}

fn all_close(a: &[f32], b: &[f32], scale: f32) -> bool {
    a.iter().zip(b).all(|(a, b)| close(*a, *b, scale))
}

fn vectors(kernels: impl Kernels, random: &mut Random) -> bool {
    let level = kernels.level();
    // Whole steps of a kernel, a smaller one, and some more.
    let count = 2 * 32 + 8 + 5;
    let (a, b) = (random.floats(count, 20.0), random.floats(count, 2.0));
    let mut right = close(kernels.dot(&a, &b), scalar::dot(&a, &b), 1e3);
    let mut same = |fast: &dyn Fn(&mut [f32]), plain: &dyn Fn(&mut [f32])| {
        let (mut found, mut wanted) = (vec![f32::NAN; count], vec![0.0; count]);
        fast(&mut found);
        plain(&mut wanted);
        right &= all_close(&found, &wanted, 40.0);
    };
    same(&|out| kernels::rms_norm(level, &a, &b, 1e-5, out), &|out| {
        scalar::rms_norm(&a, &b, 1e-5, out)
    });
    same(&|out| kernels::gated_silu(level, &a, &b, out), &|out| {
        scalar::gated_silu(&a, &b, out)
    });
    same(&|out| kernels::gated_gelu(level, &a, &b, out), &|out| {
        scalar::gated_gelu(&a, &b, out)
    });
    let most = a.iter().copied().fold(f32::MIN, f32::max);
    let (found, wanted) = (
        kernels::exp_sums(level, &a, most),
        scalar::exp_sums(&a, most),
    );
    right &= (found.0 - wanted.0).abs() <= 1e-5 * wanted.0;
    right &= (found.1 - wanted.1).abs() <= 1e-5 * wanted.1.abs();
    let (mut found, mut wanted) = (b.clone(), b);
    kernels::exp_all(level, &mut found);
    scalar::exp_all(&mut wanted);
    right &= all_close(&found, &wanted, 8.0);
    let halves: Vec<u8> = a
        .iter()
        .flat_map(|x| u16::narrow(*x).to_le_bytes())
        .collect();
    let (mut found, mut wanted) = (vec![f32::NAN; count], vec![0.0; count]);
    kernels::dequantise(level, TensorType::F16, &halves, &mut found);
    TensorType::F16.dequantise(&halves, &mut wanted);
    right && found == wanted
}

/// Whether attention is right for each number of queries, over more than a page.
fn attends<E: CacheElement>(kernels: impl Kernels, random: &mut Random) -> bool {
    let mut elements =
        |count: usize| -> Vec<E> { (0..count).map(|_| E::narrow(random.float(2.0))).collect() };
    let page = PAGE_TOKENS * HEAD;
    let (keys, values) = (elements(2 * page), elements(2 * page));
    let q: Vec<f32> = elements(QUERIES * HEAD).into_iter().map(E::widen).collect();
    let cache = HeadCache {
        keys: &keys,
        values: &values,
        table: &[1, 0],
        stride: page,
        offset: 0,
        head_dim: HEAD,
    };
    let spans = [0..35, 3..36, 0..37, 30..38];
    let run = |level: Level, count: usize| {
        let mut out = vec![f32::NAN; count * HEAD];
        let mut queries = [const { None }; QUERIES];
        let heads = q
            .chunks_exact(HEAD)
            .zip(out.chunks_exact_mut(HEAD))
            .zip(spans.clone());
        for (query, ((q, out), span)) in queries.iter_mut().zip(heads) {
            *query = Some(Query { q, span, out });
        }
        kernels::attend(level, &mut queries, &cache, 0.2, &mut Vec::new());
        out
    };
    let wanted = run(Level::Scalar, QUERIES);
    (1..=QUERIES).all(|count| all_close(&run(kernels.level(), count), &wanted, 2.0))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level as Severity, Metadata, Subscriber};

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum What {
        Nothing,
        Rounding,
        Packing,
        Products(TensorType),
        Dot,
    }

    /// A level's kernels, one of which is wrong in the least way.
    #[derive(Clone, Copy)]
    struct Wrong(Level, What);

    impl Kernels for Wrong {
        fn level(self) -> Level {
            self.0
        }

        fn round(self, x: &[f32], out: &mut RoundedRow<'_>) {
            kernels::round(self.0, x, out);
            if self.1 == What::Rounding {
                out.low[70] ^= 1;
            }
        }

        fn pack_panel(self, x: &RoundedRow<'_>, panel: &mut [u32]) {
            kernels::pack_panel(self.0, x, panel);
            if self.1 == What::Packing {
                panel[3] ^= 1;
            }
        }

        fn group_products(
            self,
            tiles: &Tiles,
            groups: Range<usize>,
            x: (&Rounded, &Panels),
            rows: usize,
            mut write: impl FnMut(usize, usize, [f32; LANES]),
        ) {
            let write = |row, group, mut products: [f32; LANES]| {
                if self.1 == What::Products(tiles.kind) && rows == 5 && row == 4 && group == 1 {
                    products[7] = products[7].next_up();
                }
                write(row, group, products);
            };
            kernels::group_products(self.0, tiles, groups, x, rows, &mut Vec::new(), write);
        }

        fn dot(self, a: &[f32], b: &[f32]) -> f32 {
            kernels::dot(self.0, a, b) + if self.1 == What::Dot { 0.1 } else { 0.0 }
        }
    }

    /// Counts warnings.
    struct Warnings(&'static AtomicUsize);

    impl Subscriber for Warnings {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Severity::WARN
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn the_kernels_of_every_level_of_this_processor_are_right() {
        for level in Level::available().into_iter().chain([Level::Scalar]) {
            assert_eq!(fault(Wrong(level, What::Nothing)), None, "{level}");
            // On a line of its own, for `emulated/run`.
            println!("\n{level} kernels: right");
        }
        assert_eq!(
            Level::available().first().copied().unwrap_or(Level::Scalar),
            Level::detect()
        );
    }

    #[test]
    fn a_kernel_that_is_wrong_in_the_last_bit_is_found() {
        let kinds = [
            TensorType::Q4_1,
            TensorType::Q5K,
            TensorType::Q6K,
            TensorType::Q8_0,
        ];
        let mut wrong = kinds.map(What::Products).to_vec();
        wrong.extend([What::Rounding, What::Packing, What::Dot]);
        for level in Level::available().into_iter().chain([Level::Scalar]) {
            for what in &wrong {
                // Where no kernel reads panels, none are packed.
                let found = *what != What::Packing || kernels::has_panels(level);
                assert_eq!(
                    fault(Wrong(level, *what)).is_some(),
                    found,
                    "{level} {what:?}"
                );
            }
        }
    }

    #[test]
    fn the_next_level_takes_the_place_of_a_wrong_one_with_one_warning() {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let first = std::cell::Cell::new(true);
        // The better of two levels is wrong; any level may stand for both.
        let level = Level::available().last().copied().unwrap_or(Level::Scalar);
        tracing::subscriber::with_default(Warnings(&COUNT), || {
            let chosen = best(vec![level, level], |level| {
                let what = if first.take() {
                    What::Products(TensorType::Q4_0)
                } else {
                    What::Nothing
                };
                Wrong(level, what)
            });
            assert_eq!((chosen, COUNT.load(Ordering::Relaxed)), (level, 1));
            let chosen = best(vec![level], |level| Wrong(level, What::Rounding));
            assert_eq!((chosen, COUNT.load(Ordering::Relaxed)), (Level::Scalar, 2));
        });
    }
}
