//! Every level of kernels that this processor has, against the plain one.

use super::*;
use crate::memory::HugeArena;
use crate::ops::Weights;
use crate::testing::random_tensor;
use proptest::prelude::*;

fn close(a: f32, b: f32, scale: f32) -> bool {
    (a - b).abs() <= 1e-5 * scale.max(1e-3)
}

fn rounded(level: Level, x: &[f32], rows: usize) -> Rounded {
    let columns = x.len() / rows;
    let mut out = Rounded::default();
    out.reset(rows, columns);
    for row in 0..rows {
        let (c, b) = (
            row * columns..(row + 1) * columns,
            row * columns / 32..(row + 1) * columns / 32,
        );
        let Rounded {
            high,
            low,
            word,
            scale,
            sum,
            ..
        } = &mut out;
        round(
            level,
            &x[c.clone()],
            &mut RoundedRow {
                high: &mut high[c.clone()],
                low: &mut low[c.clone()],
                word: &mut word[c],
                scale: &mut scale[b.clone()],
                sum: &mut sum[b],
            },
        );
    }
    out
}

/// A group's products by the f32 operations that all levels above the plain one have in common.
fn fused_products(tiles: &Tiles, group: usize, x: &Rounded, rows: usize) -> Vec<[f32; LANES]> {
    let (columns, blocks) = (tiles.columns, tiles.columns / 32);
    let mut sums = vec![[0f32; LANES]; rows];
    for (block, tile) in tiles.tiles(group).enumerate() {
        for lane in 0..LANES {
            let (q, scales, minimum) = tile.lane(lane);
            for (row, sums) in sums.iter_mut().enumerate() {
                let words = &x.word[row * columns + block * 32..][..32];
                let (of_row, sum) = (x.scale[row * blocks + block], x.sum[row * blocks + block]);
                let product = |i: usize| i32::from(q[i]) * i32::from(words[i]);
                let (near, far): (i32, i32) =
                    ((0..16).map(product).sum(), (16..32).map(product).sum());
                let sum = minimum.mul_add(sum, sums[lane]);
                sums[lane] = if tiles.kind == TensorType::Q6K {
                    let sum = (near as f32).mul_add(scales[0] * of_row, sum);
                    (far as f32).mul_add(scales[1] * of_row, sum)
                } else {
                    ((near + far) as f32).mul_add(scales[0] * of_row, sum)
                };
            }
        }
    }
    sums
}

/// Few cases, or as many as the environment asks for: an emulated processor is slow.
fn cases() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(30),
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn products_equal_the_plain_ones_at_every_level_and_a_row_never_depends_on_its_neighbours(
        seed in any::<u64>(), x in prop::collection::vec(-4f32..4.0, 512 * 19),
    ) {
        for (level, kind) in Level::available().into_iter().flat_map(|level| TensorType::ALL.map(|kind| (level, kind))) {
            if !Tiles::has(kind) {
                continue;
            }
            let (rows, columns) = (13, 512);
            let bytes = random_tensor(kind, rows * columns, seed);
            let tiles = Tiles::pack(&Weights { kind, rows, columns, bytes: &bytes }, &mut HugeArena::default()).unwrap();
            let act = rounded(level, &x, 19);
            let plain = rounded(Level::Scalar, &x, 19);
            let mut panels = Panels::default();
            panels.reset(if has_panels(level) { 19 } else { 0 }, columns);
            let size = panels.panel_words();
            for (index, panel) in panels.words.chunks_exact_mut(size).enumerate() {
                let (c, b) = (index * 4 * columns..(index + 1) * 4 * columns, index * 4 * 16..(index + 1) * 4 * 16);
                let mut four = act.clone();
                let four = RoundedRow {
                    high: &mut four.high[c.clone()], low: &mut four.low[c.clone()], word: &mut four.word[c],
                    scale: &mut four.scale[b.clone()], sum: &mut four.sum[b],
                };
                pack_panel(level, &four, panel);
                let mut plain = vec![0; size];
                pack_panel(Level::Scalar, &four, &mut plain);
                prop_assert_eq!(&*panel, &*plain);
            }
            let (none, mut scratch) = (Panels::default(), Vec::new());
            prop_assert_eq!((&act.high, &act.low, &act.word), (&plain.high, &plain.low, &plain.word));
            prop_assert_eq!((&act.scale, &act.sum), (&plain.scale, &plain.sum));
            let mut both = vec![[[0f32; 8]; 2]; 19];
            group_products(level, &tiles, 0..2, (&act, &panels), 19, &mut scratch, |row, group, products| both[row][group] = products);
            for group in [0, 1] {
                let mut all = vec![[0f32; 8]; 19];
                group_products(level, &tiles, group..group + 1, (&act, &panels), 19, &mut scratch, |row, _, products| all[row] = products);
                let mut plainly = vec![[0f32; 8]; 19];
                scalar::group_products(&tiles, group, &plain, 0..19, |row, products| plainly[row] = products);
                let fused = fused_products(&tiles, group, &plain, 19);
                for row in 0..19 {
                    prop_assert_eq!(both[row][group], all[row]);
                    let one = rounded(level, &x[row * 512..(row + 1) * 512], 1);
                    group_products(level, &tiles, group..group + 1, (&one, &none), 1, &mut scratch, |_, _, products| assert_eq!(products, all[row]));
                    prop_assert_eq!(all[row], fused[row], "{} {}", level, kind);
                    for (a, b) in all[row].iter().zip(plainly[row]) {
                        prop_assert!(close(*a, b, 50.0), "{level} {kind}: {a} {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn vector_operations_equal_the_plain_ones_at_every_level(
        a in prop::collection::vec(-30f32..30.0, 1..200), b in prop::collection::vec(-3f32..3.0, 200),
    ) {
        let b = &b[..a.len()];
        for level in Level::available() {
            let (mut fast, mut plain) = (vec![0.0; a.len()], vec![0.0; a.len()]);
            prop_assert!(close(dot(level, &a, b), scalar::dot(&a, b), 1e4));
            rms_norm(level, &a, b, 1e-5, &mut fast);
            scalar::rms_norm(&a, b, 1e-5, &mut plain);
            prop_assert!(fast.iter().zip(&plain).all(|(x, y)| close(*x, *y, 50.0)));
            gated_gelu(level, &a, b, &mut fast);
            scalar::gated_gelu(&a, b, &mut plain);
            prop_assert!(fast.iter().zip(&plain).all(|(x, y)| close(*x, *y, 90.0)), "{fast:?} {plain:?}");
            gated_silu(level, &a, b, &mut fast);
            scalar::gated_silu(&a, b, &mut plain);
            prop_assert!(fast.iter().zip(&plain).all(|(x, y)| close(*x, *y, 90.0)), "{fast:?} {plain:?}");
            let most = a.iter().copied().fold(f32::MIN, f32::max);
            let (sums, wanted) = (exp_sums(level, &a, most), scalar::exp_sums(&a, most));
            prop_assert!((sums.0 - wanted.0).abs() < 1e-5 * wanted.0 && (sums.1 - wanted.1).abs() < 1e-5 * wanted.1.abs().max(wanted.0));
        }
    }

    #[test]
    fn attention_equals_the_plain_one_at_every_level_whatever_queries_are_computed_together(
        q in prop::collection::vec(-2f32..2.0, 4 * 72), kv in prop::collection::vec(-2f32..2.0, 4 * 32 * 72),
        counts in prop::array::uniform4(1usize..96), windows in prop::array::uniform4(1usize..120),
    ) {
        let halves: Vec<u16> = kv.iter().map(|x| u16::narrow(*x)).collect();
        let values: Vec<u16> = halves.iter().rev().copied().collect();
        let table = [2, 0, 3];
        let cache = HeadCache { keys: &halves, values: &values, table: &table, stride: 32 * 72, offset: 0, head_dim: 72 };
        let span = |i: usize| counts[i].saturating_sub(windows[i])..counts[i];
        let mut scratch = Vec::new();
        let mut run = |level: Level, which: Range<usize>| {
            let mut outs = vec![vec![0.0; 72]; 4];
            let mut queries = [const { None }; QUERIES];
            for ((i, out), query) in outs.iter_mut().enumerate().take(which.end).skip(which.start).zip(&mut queries) {
                *query = Some(Query { q: &q[i * 72..][..72], span: span(i), out });
            }
            attend(level, &mut queries, &cache, 0.1, &mut scratch);
            outs
        };
        let plain = run(Level::Scalar, 0..4);
        for (level, together) in Level::available().into_iter().flat_map(|level| (1..=4).map(move |count| (level, count))) {
            let fast = run(level, 0..together);
            for i in 0..together {
                let alone = run(level, i..i + 1);
                prop_assert_eq!(&fast[i], &alone[i]);
                prop_assert!(fast[i].iter().zip(&plain[i]).all(|(x, y)| close(*x, *y, 5.0)), "{:?} {:?}", fast[i], plain[i]);
            }
        }
    }
}

/// Every level above the plain one performs the same f32 operations in the same order, on a server as on an ARM board.
#[test]
fn every_level_gives_the_same_bits_on_every_processor() {
    let mut seed = 9u64;
    let mut floats = |count: usize| -> Vec<f32> {
        (0..count)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 40) as f32 / (1 << 22) as f32 - 2.0
            })
            .collect()
    };
    let (a, b) = (floats(168), floats(168));
    let [keys, values] = [(); 2].map(|()| {
        let mut halves = vec![0u16; 2 * 32 * 24];
        u16::narrow_all(&floats(halves.len()), &mut halves);
        halves
    });
    let cache = HeadCache {
        keys: &keys,
        values: &values,
        table: &[1, 0],
        stride: 32 * 24,
        offset: 0,
        head_dim: 24,
    };
    for level in Level::available() {
        let mut results = vec![dot(level, &a, &b)];
        let mut add = |fill: &dyn Fn(&mut [f32])| {
            let mut out = vec![0.0; 168];
            fill(&mut out);
            results.extend(out);
        };
        add(&|out| rms_norm(level, &a, &b, 1e-5, out));
        add(&|out| gated_silu(level, &a, &b, out));
        add(&|out| gated_gelu(level, &a, &b, out));
        add(&|out| {
            out.copy_from_slice(&a);
            exp_all(level, out);
        });
        add(&|out| {
            let mut heads = a.chunks_exact(24).zip(out.chunks_exact_mut(24));
            let mut queries = [0..40, 8..48, 0..56, 16..24].map(|span| {
                let (q, out) = heads.next().unwrap();
                Some(Query { q, span, out })
            });
            attend(level, &mut queries, &cache, 0.2, &mut Vec::new());
        });
        let (sum, weighted) = exp_sums(level, &a, 2.0);
        results.extend([sum as f32, weighted as f32]);
        // FNV-1a of the bits.
        let digest = results.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, x| {
            (hash ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3)
        });
        assert_eq!(digest, 15_170_877_356_693_039_708, "{level}");
    }
}

#[test]
fn a_banned_logit_does_not_spoil_the_sums() {
    for level in [Level::Scalar, Level::detect()] {
        let mut powers = [
            0.0,
            f32::NEG_INFINITY,
            1.0,
            -86.0,
            -88.0,
            0.5,
            -3.0,
            2.0,
            f32::NEG_INFINITY,
            -1.0,
        ];
        let wanted = powers.map(|x: f32| if x > -87.0 { x.exp() } else { 0.0 });
        exp_all(level, &mut powers);
        assert!(
            powers
                .iter()
                .zip(wanted)
                .all(|(a, b)| (a - b).abs() <= 1e-6 * b),
            "{powers:?} {wanted:?}"
        );
        assert_eq!(powers[0], 1.0);
        let (sum, weighted) = exp_sums(level, &[1.0, f32::NEG_INFINITY, 1.0], 1.0);
        assert_eq!((sum, weighted), (2.0, 0.0));
    }
}
