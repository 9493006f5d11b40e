//! Each operation gives what the processor's plain kernels give.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::driver::on_driver;
use crate::cpu::Cpu;
use crate::cpu::kernels::Level;
use crate::cuda::Cuda;
use crate::model::Precision;
use crate::ops::{
    Activation, Batch, CacheShape, Device, Executor, HeadShape, Output, PAGE_TOKENS, Reach,
    RopeOrder, Row, Weights, Write,
};
use crate::quant::TensorType;
use crate::testing::random_tensor;

const KINDS: [TensorType; 14] = TensorType::ALL;

fn exact_cpu() -> Cpu {
    Cpu::new(Precision::Exact, Level::Scalar)
}

fn row(token: u32, position: u32, table: u32) -> Row {
    Row {
        token,
        position,
        table,
        output: Output::None,
    }
}

fn heads(heads: usize, kv_heads: usize, head_dim: usize, rope_dim: usize) -> HeadShape {
    HeadShape {
        heads,
        kv_heads,
        head_dim,
        rope_dim,
        rope_order: RopeOrder::Neighbours,
        scale: 1.0 / (head_dim as f32).sqrt(),
    }
}

/// A width that rows of this type may have.
fn width_of(kind: TensorType, spans: usize) -> usize {
    match kind.block_len() {
        // Types without blocks may have any width.
        1 => spans * 32 - 5,
        len => (spans * 32).next_multiple_of(len),
    }
}

/// A device's executor, begun with a step of `rows` rows, and a buffer that holds `values`.
struct Bench<D: Device> {
    device: D,
    run: D::Executor,
}

impl<D: Device> Bench<D> {
    fn new(device: D) -> Self {
        let run = device.executor(1).unwrap();
        Self { device, run }
    }

    fn begin(&mut self, rows: usize) {
        let rows: Vec<Row> = (0..rows).map(|i| row(i as u32, 0, 0)).collect();
        let batch = Batch {
            rows: &rows,
            tables: &[&[0]],
            adapters: &[],
        };
        self.run.begin(batch, heads(1, 1, 8, 8), &[]).unwrap();
    }

    /// A buffer with these rows: they are the embeddings of the tokens 0, 1, 2, ...
    fn filled(&mut self, values: &[f32], width: usize) -> <D::Executor as Executor>::Buffer {
        let rows = values.len() / width;
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let table = self.device.matrix(&[Weights {
            kind: TensorType::F32,
            rows,
            columns: width,
            bytes: &bytes,
        }]);
        let mut buffer = self.run.buffer(rows, width).unwrap();
        let ids: Vec<u32> = (0..rows as u32).collect();
        self.begin(rows);
        let table = table.unwrap();
        self.run
            .embed(&table, &ids, 1.0, &mut buffer, Write::Set)
            .unwrap();
        // Weights outlive the work that reads them.
        self.read(&buffer, rows);
        buffer
    }

    fn read(&mut self, buffer: &<D::Executor as Executor>::Buffer, rows: usize) -> Vec<f32> {
        let mut out = Vec::new();
        self.run.read(buffer, rows, &mut out).unwrap();
        out
    }

    fn matmul(
        &mut self,
        weights: &[Weights<'_>],
        x: &[f32],
        before: &[f32],
        write: Write,
    ) -> Vec<f32> {
        let columns = weights[0].columns;
        let rows = x.len() / columns;
        let matrix = self.device.matrix(weights).unwrap();
        let x = self.filled(x, columns);
        let mut out = self.filled(before, before.len() / rows);
        self.run.matmul(&x, rows, &matrix, &mut out, write).unwrap();
        self.read(&out, rows)
    }
}

/// The largest difference, as a part of the largest number.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|x| x.is_finite()), "not a number");
    let most = b.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
    a.iter()
        .zip(b)
        .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()))
        / most
}

fn random(len: usize, seed: u64) -> Vec<f32> {
    use rand::{Rng as _, SeedableRng as _};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| random.random_range(-2.0..2.0)).collect()
}

/// Runs a property over some shapes, always the same ones.
fn for_shapes<S: Strategy>(cases: u32, shapes: S, property: impl Fn(S::Value)) {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    };
    let source = proptest::test_runner::TestRng::deterministic_rng(
        proptest::test_runner::RngAlgorithm::ChaCha,
    );
    TestRunner::new_with_rng(config, source)
        .run(&shapes, |shape| {
            property(shape);
            Ok(())
        })
        .unwrap();
}

#[test]
fn embedding_gives_the_files_own_numbers() {
    on_driver(&[], || {
        for (index, kind) in KINDS.into_iter().enumerate() {
            let (rows, columns) = (37, width_of(kind, 3));
            let bytes = random_tensor(kind, rows * columns, index as u64);
            let weights = Weights {
                kind,
                rows,
                columns,
                bytes: &bytes,
            };
            let ids = [0, 36, 7, 15, 16, 8, 31];
            for (precision, most) in [(Precision::Exact, 1e-6), (Precision::Fast, 1e-3)] {
                let mut gpu = Bench::new(Cuda::open(0, precision).unwrap());
                let table = gpu.device.matrix(&[weights]).unwrap();
                let mut out = gpu.filled(&random(ids.len() * columns, 1), columns);
                // The ids are not the step's tokens, and then they are.
                for write in [Write::Set, Write::Add] {
                    gpu.run.embed(&table, &ids, 3.0, &mut out, write).unwrap();
                }
                let seen = gpu.read(&out, ids.len());
                for (id, seen) in ids.iter().zip(seen.chunks_exact(columns)) {
                    let mut wanted = vec![0.0; columns];
                    let at = *id as usize * kind.row_bytes(columns);
                    kind.dequantise(&bytes[at..at + kind.row_bytes(columns)], &mut wanted);
                    wanted.iter_mut().for_each(|x| *x *= 6.0);
                    let difference = difference(seen, &wanted);
                    assert!(difference < most, "{kind}, {precision:?}: {difference}");
                }
            }
        }
    });
}

#[test]
fn products_match_the_processors_for_every_type_and_size() {
    on_driver(&[("SEED", "1"), ("THREADS", "2")], || {
        let shapes = (
            0..KINDS.len(),
            1..70usize,
            1..150usize,
            1..9usize,
            0..2usize,
        );
        let check = |(kind, tokens, rows, blocks, add): (usize, usize, usize, usize, usize)| {
            let kind = KINDS[kind];
            let columns = width_of(kind, blocks);
            let bytes = random_tensor(kind, rows * columns, (tokens * rows) as u64);
            let weights = Weights {
                kind,
                rows,
                columns,
                bytes: &bytes,
            };
            let x = random(tokens * columns, 1);
            let before = random(tokens * rows, 2);
            let write = [Write::Set, Write::Add][add];
            let wanted = Bench::new(exact_cpu()).matmul(&[weights], &x, &before, write);
            for (precision, most) in [(Precision::Exact, 2e-6), (Precision::Fast, 2e-3)] {
                let mut gpu = Bench::new(Cuda::open(0, precision).unwrap());
                let seen = gpu.matmul(&[weights], &x, &before, write);
                let difference = difference(&seen, &wanted);
                assert!(
                    difference < most,
                    "{kind} {rows} x {columns}, {tokens} tokens, {precision:?}: {difference}"
                );
            }
        };
        for_shapes(32, shapes, check);
    });
}

#[test]
fn a_product_of_a_row_is_the_same_alone_and_among_others() {
    on_driver(&[("SEED", "3"), ("THREADS", "2")], || {
        for kind in KINDS {
            let (rows, columns, tokens) = (40, width_of(kind, 10), 70);
            let bytes = random_tensor(kind, rows * columns, 5);
            let weights = Weights {
                kind,
                rows,
                columns,
                bytes: &bytes,
            };
            let x = random(tokens * columns, 6);
            let mut gpu = Bench::new(Cuda::open(0, Precision::Fast).unwrap());
            let mut product = |tokens: usize| {
                let before = vec![0.0; tokens * rows];
                gpu.matmul(&[weights], &x[..tokens * columns], &before, Write::Set)
            };
            // One token, and enough for each of the kernels.
            let all = product(tokens);
            for fewer in [1, 9, 33] {
                assert_eq!(
                    product(fewer),
                    all[..fewer * rows],
                    "{kind}, {fewer} of {tokens}"
                );
            }
        }
    });
}

#[test]
fn stacked_parts_of_several_types_lie_beside_each_other() {
    on_driver(&[], || {
        let columns = 64;
        let kinds = [
            TensorType::Q4_0,
            TensorType::Q4_0,
            TensorType::Q8_0,
            TensorType::F32,
        ];
        let parts: Vec<_> = kinds
            .into_iter()
            .zip([24, 9, 16, 3])
            .map(|(kind, rows)| (kind, rows, random_tensor(kind, rows * columns, 1)))
            .collect();
        let weights: Vec<Weights<'_>> = parts
            .iter()
            .map(|(kind, rows, bytes)| Weights {
                kind: *kind,
                rows: *rows,
                columns,
                bytes,
            })
            .collect();
        let (x, before) = (random(3 * columns, 3), vec![0.0; 3 * 52]);
        let wanted = Bench::new(exact_cpu()).matmul(&weights, &x, &before, Write::Set);
        let mut gpu = Bench::new(Cuda::open(0, Precision::Fast).unwrap());
        let seen = gpu.matmul(&weights, &x, &before, Write::Set);
        assert!(difference(&seen, &wanted) < 2e-3);
    });
}

#[test]
fn activations_of_any_size_survive_half_precision() {
    on_driver(&[], || {
        let columns = 64;
        let bytes = random_tensor(TensorType::Q8_0, 16 * columns, 1);
        let weights = Weights {
            kind: TensorType::Q8_0,
            rows: 16,
            columns,
            bytes: &bytes,
        };
        for size in [0.0, 1e-30, 1e-6, 1e6, 1e20] {
            let x: Vec<f32> = random(2 * columns, 4).iter().map(|x| x * size).collect();
            let wanted = Bench::new(exact_cpu()).matmul(&[weights], &x, &[0.0; 32], Write::Set);
            let mut gpu = Bench::new(Cuda::open(0, Precision::Fast).unwrap());
            let seen = gpu.matmul(&[weights], &x, &[0.0; 32], Write::Set);
            let scale = |values: &[f32]| -> Vec<f32> {
                values.iter().map(|x| x / f32::max(size, 1e-35)).collect()
            };
            assert!(difference(&scale(&seen), &scale(&wanted)) < 2e-3, "{size}");
        }
    });
}

/// What the operations on rows give for random input.
fn rows_of<D: Device>(device: D, rows: usize, width: usize) -> Vec<Vec<f32>> {
    let mut bench = Bench::new(device);
    let weight = bench.device.vector(&random(width, 10)).unwrap();
    let bias = bench.device.vector(&random(width, 13)).unwrap();
    let x = bench.filled(&random(rows * width, 11), width);
    let mut out = Vec::new();
    let mut normed = bench.run.buffer(rows, width).unwrap();
    for write in [Write::Set, Write::Add] {
        bench
            .run
            .rms_norm(&x, rows, &weight, 1e-5, &mut normed, write)
            .unwrap();
        out.push(bench.read(&normed, rows));
    }
    bench.run.add_bias(&mut normed, rows, &weight).unwrap();
    out.push(bench.read(&normed, rows));
    bench.run.gelu(&mut normed, rows).unwrap();
    out.push(bench.read(&normed, rows));
    bench
        .run
        .layer_norm(&x, rows, (&weight, &bias), 1e-5, &mut normed)
        .unwrap();
    out.push(bench.read(&normed, rows));
    let chosen: Vec<usize> = (0..rows).rev().step_by(2).collect();
    let mut gathered = bench.run.buffer(chosen.len(), width).unwrap();
    bench.run.gather(&x, &chosen, &mut gathered).unwrap();
    out.push(bench.read(&gathered, chosen.len()));
    let mut sums = bench.filled(&random(rows * (width + 3), 18), width + 3);
    bench
        .run
        .scatter_add(&gathered, &chosen, &mut sums, 2)
        .unwrap();
    out.push(bench.read(&sums, rows));
    let gate_up = bench.filled(&random(rows * 2 * width, 12), 2 * width);
    let mut gated = bench.run.buffer(rows, width).unwrap();
    for activation in [Activation::Silu, Activation::GeluTanh] {
        bench
            .run
            .gated(&gate_up, rows, activation, &mut gated)
            .unwrap();
        out.push(bench.read(&gated, rows));
    }
    out
}

#[test]
fn norms_biases_gates_and_gathers_match_the_processors() {
    on_driver(&[("SEED", "7")], || {
        for (rows, width) in [(1, 576), (5, 33), (3, 1000), (40, 8)] {
            let wanted = rows_of(exact_cpu(), rows, width);
            for precision in [Precision::Exact, Precision::Fast] {
                let seen = rows_of(Cuda::open(0, precision).unwrap(), rows, width);
                for (index, (seen, wanted)) in seen.iter().zip(&wanted).enumerate() {
                    let difference = difference(seen, wanted);
                    assert!(difference < 1e-5, "{index}: {rows} x {width}: {difference}");
                }
            }
        }
    });
}

/// Norms of heads and both orders of rotation.
fn heads_of<D: Device>(device: D, shape: HeadShape, rows: usize) -> Vec<Vec<f32>> {
    let mut bench = Bench::new(device);
    let weights = [14, 15].map(|seed| bench.device.vector(&random(shape.head_dim, seed)).unwrap());
    let angles = random(rows * shape.rope_dim, 16);
    let mut qkv = bench.filled(&random(rows * shape.width(), 17), shape.width());
    let mut out = Vec::new();
    bench
        .run
        .head_norm(&mut qkv, rows, shape, (&weights[0], &weights[1]), 1e-6)
        .unwrap();
    out.push(bench.read(&qkv, rows));
    for rope_order in [RopeOrder::Neighbours, RopeOrder::Halves] {
        let shape = HeadShape {
            rope_order,
            ..shape
        };
        bench.run.rope(&mut qkv, rows, shape, &angles).unwrap();
        out.push(bench.read(&qkv, rows));
    }
    out
}

#[test]
fn head_norms_and_rotations_match_the_processors() {
    on_driver(&[("SEED", "8")], || {
        for (shape, rows) in [
            (heads(9, 3, 64, 64), 3),
            (heads(4, 1, 256, 256), 2),
            (heads(5, 5, 20, 10), 7),
        ] {
            let wanted = heads_of(exact_cpu(), shape, rows);
            let seen = heads_of(Cuda::open(0, Precision::Fast).unwrap(), shape, rows);
            for (index, (seen, wanted)) in seen.iter().zip(&wanted).enumerate() {
                assert!(difference(seen, wanted) < 1e-5, "{index}: {shape:?}");
            }
        }
    });
}

/// Sequences in a step: how many tokens each has before it, and how many new ones.
struct Lengths(Vec<(usize, usize)>);

/// Computes keys and values of whole sequences, `chunk` positions of each at a step, and gives the last step's attention.
fn attention_of<D: Device>(
    device: D,
    shape: HeadShape,
    reach: Reach,
    lengths: &Lengths,
) -> Vec<f32> {
    let mut bench = Bench::new(device);
    let pages: Vec<usize> = lengths
        .0
        .iter()
        .map(|(before, new)| (before + new).div_ceil(PAGE_TOKENS))
        .collect();
    let count: usize = pages.iter().sum();
    // Tables whose pages are scattered.
    let mut free: Vec<u32> = (0..count as u32)
        .map(|i| (i * 7 + 3) % count as u32)
        .collect();
    free.sort_by_key(|page| (page.wrapping_mul(2_654_435_761), *page));
    free.dedup();
    let mut free: Vec<u32> = if free.len() == count {
        free
    } else {
        (0..count as u32).rev().collect()
    };
    let tables: Vec<Vec<u32>> = pages
        .iter()
        .map(|pages| free.drain(..*pages).collect())
        .collect();
    let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
    let cache_shape = CacheShape {
        layers: 2,
        pages: count,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
    };
    let mut cache = bench.run.cache(cache_shape).unwrap();
    let width = shape.width();
    let mut result = Vec::new();
    for last in [false, true] {
        let mut rows = Vec::new();
        for (table, (before, new)) in lengths.0.iter().enumerate() {
            let range = if last {
                *before..before + new
            } else {
                0..*before
            };
            rows.extend(range.map(|position| row(0, position as u32, table as u32)));
        }
        if rows.is_empty() {
            continue;
        }
        let values: Vec<f32> = rows
            .iter()
            .flat_map(|row| random(width, u64::from(row.table) << 32 | u64::from(row.position)))
            .collect();
        let mut qkv = bench.filled(&values, width);
        let angles = random(rows.len() * shape.rope_dim, 9);
        let batch = Batch {
            rows: &rows,
            tables: &tables,
            adapters: &[],
        };
        bench.run.begin(batch, shape, &[&angles]).unwrap();
        bench
            .run
            .rope(&mut qkv, rows.len(), shape, &angles)
            .unwrap();
        let out_width = shape.heads * shape.head_dim;
        let mut out = bench.run.buffer(rows.len(), out_width).unwrap();
        for layer in 0..2 {
            bench
                .run
                .store_kv(&qkv, batch, shape, layer, &mut cache)
                .unwrap();
        }
        if last {
            bench
                .run
                .attention(&qkv, batch, shape, reach, 1, &cache, &mut out)
                .unwrap();
            result = bench.read(&out, rows.len());
        }
    }
    result
}

#[test]
fn attention_matches_the_processors_over_shapes_and_batches() {
    on_driver(&[("SEED", "5"), ("THREADS", "2")], || {
        let shapes = (
            prop::sample::select(vec![(1, 1), (4, 2), (6, 2), (9, 3), (5, 1), (20, 1)]),
            prop::sample::select(vec![8usize, 16, 20, 64, 72, 128, 256]),
            prop::sample::select(vec![
                Reach::Causal,
                Reach::Causal,
                Reach::Window(1),
                Reach::Window(50),
                Reach::Whole,
            ]),
            prop::collection::vec((0..150usize, 1..40usize), 1..4),
        );
        let check = |((q, kv), head_dim, reach, mut lengths): ((usize, usize), _, _, Vec<_>)| {
            let shape = heads(q, kv, head_dim, head_dim / 2);
            if reach == Reach::Whole {
                // Such a step holds whole sequences.
                lengths
                    .iter_mut()
                    .for_each(|(before, new)| (*before, *new) = (0, *before + *new));
            }
            let lengths = Lengths(lengths);
            let wanted = attention_of(exact_cpu(), shape, reach, &lengths);
            for (precision, most) in [(Precision::Exact, 1e-5), (Precision::Fast, 3e-3)] {
                let gpu = Cuda::open(0, precision).unwrap();
                let seen = attention_of(gpu, shape, reach, &lengths);
                let difference = difference(&seen, &wanted);
                assert!(
                    difference < most,
                    "{shape:?} {reach:?} {:?} {precision:?}: {difference}",
                    lengths.0
                );
            }
        };
        for_shapes(14, shapes, check);
    });
}

#[test]
fn attention_of_a_row_is_the_same_in_a_prompt_and_alone() {
    on_driver(&[("SEED", "6"), ("THREADS", "2")], || {
        for (q, kv, head_dim) in [(4, 2, 64), (6, 1, 128), (2, 2, 256)] {
            for reach in [Reach::Causal, Reach::Window(100)] {
                let shape = heads(q, kv, head_dim, 0);
                let attention = |before, new| {
                    let gpu = Cuda::open(0, Precision::Fast).unwrap();
                    attention_of(gpu, shape, reach, &Lengths(vec![(before, new)]))
                };
                // The last of 40 rows goes through one warp; alone, its units are shared out.
                let width = q * head_dim;
                assert_eq!(attention(150, 40)[39 * width..], attention(189, 1)[..]);
            }
        }
    });
}
