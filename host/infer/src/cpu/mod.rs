#![allow(
    unsafe_code,
    reason = "threads write disjoint parts of one buffer; see `Parts`"
)]
//! The operations on a processor: repacked weights, rounded activations, a small pool of threads.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_attention;
#[cfg(target_arch = "x86_64")]
mod avx2_panels;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod check;
pub(crate) mod kernels;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_attention;
#[cfg(target_arch = "aarch64")]
mod neon_products;
mod panels;
mod parts;
mod pool;
mod scalar;
mod tiles;

pub(crate) use pool::physical_cores;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::memory::{HugeArena, HugeSlice};
use crate::model::Precision;
use crate::ops::{
    Activation, Batch, CacheShape, Device, Executor, HeadShape, PAGE_TOKENS, Reach, RopeOrder,
    Weights, Write,
};
use crate::sampling::Distribution;
use crate::{Error, Result};
use cache::{Cache, Planes};
use kernels::Level;
use matrix::Matrix;
use panels::{FEWEST, PANEL, Panels};
use parts::Parts;
use pool::Pool;
use tiles::{BLOCK, LANES, Rounded, RoundedRow};

/// A processor with a precision and an instruction set.
pub(crate) struct Cpu {
    precision: Precision,
    level: Level,
    arena: Mutex<HugeArena>,
}

impl Cpu {
    pub(crate) fn new(precision: Precision, level: Level) -> Self {
        Self {
            precision,
            level,
            arena: Mutex::default(),
        }
    }
}

impl Device for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Executor = CpuExecutor;

    fn matrix(&self, parts: &[Weights<'_>]) -> Result<Matrix> {
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        Matrix::load(parts, self.precision, &mut arena)
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn executor(&self, threads: usize) -> Result<CpuExecutor> {
        let pool = Pool::new(threads)?;
        let scratch = (0..pool.threads() * 4).map(|_| Mutex::default()).collect();
        Ok(CpuExecutor {
            level: self.level,
            precision: self.precision,
            pool,
            rounded: Rounded::default(),
            panels: Panels::default(),
            scratch,
        })
    }
}

/// Rows of f32.
pub(crate) struct Buffer {
    data: HugeSlice<f32>,
    width: usize,
}

impl Buffer {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..(row + 1) * self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let width = self.width;
        &mut self.data.as_mut_slice()[row * width..(row + 1) * width]
    }
}

/// Runs operations on a pool of threads.
pub(crate) struct CpuExecutor {
    level: Level,
    precision: Precision,
    pool: Pool,
    rounded: Rounded,
    panels: Panels,
    /// One for each task that may run at once: attention scores, or a widened row of weights.
    scratch: Vec<Mutex<Vec<f32>>>,
}

/// Ranges of about one size.
#[derive(Clone, Copy)]
struct Split {
    count: usize,
    tasks: usize,
}

impl Split {
    fn range(self, task: usize) -> Range<usize> {
        task * self.count / self.tasks..(task + 1) * self.count / self.tasks
    }
}

impl CpuExecutor {
    /// Cuts `count` things into one range for each of some tasks, a few for each thread, so that a thread that was held up
    /// leaves its share to the others.
    fn split(&self, count: usize) -> Split {
        Split {
            count,
            tasks: count.min(self.scratch.len()).max(1),
        }
    }

    /// Rounds `rows` rows of `x` into `self.rounded`, and where they are many also into `self.panels`.
    fn round(&mut self, x: &Buffer, rows: usize) -> Result<()> {
        let (width, blocks, level) = (x.width, x.width / BLOCK, self.level);
        let panels = match kernels::has_panels(level) && rows >= FEWEST {
            true => self.panels.reset(rows, width),
            false => self.panels.reset(0, width),
        };
        let mut split = self.split(rows.div_ceil(PANEL));
        if rows < FEWEST {
            split.tasks = 1;
        }
        let size = self.panels.panel_words();
        let rounded = &mut self.rounded;
        rounded.reset(rows, width);
        let (high, low, word) = (
            Parts::new(&mut rounded.high),
            Parts::new(&mut rounded.low),
            Parts::new(&mut rounded.word),
        );
        let (scale, sum) = (Parts::new(&mut rounded.scale), Parts::new(&mut rounded.sum));
        let panel_words = Parts::new(&mut self.panels.words);
        self.pool.run(split.tasks, &|task| {
            for unit in split.range(task) {
                let first = unit * PANEL;
                let count = (rows - first).min(PANEL);
                // SAFETY: each unit of rows is in one task's range, and its parts are its own.
                let mut out = unsafe {
                    RoundedRow {
                        high: high.part(first * width, count * width),
                        low: low.part(first * width, count * width),
                        word: word.part(first * width, count * width),
                        scale: scale.part(first * blocks, count * blocks),
                        sum: sum.part(first * blocks, count * blocks),
                    }
                };
                // A row is whole blocks, so rows that lie one after the other are rounded as one.
                let x = &x.data[first * width..(first + count) * width];
                kernels::round(level, x, &mut out);
                if unit < panels {
                    // SAFETY: each panel is that of one unit.
                    let panel = unsafe { panel_words.part(unit * size, size) };
                    kernels::pack_panel(level, &out, panel);
                }
            }
        })
    }

    /// Calls `body(row, out[row])` for each row, on several threads where there are many rows.
    fn each_row(
        &mut self,
        rows: usize,
        out: &mut Buffer,
        body: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<()> {
        let width = out.width;
        let mut split = self.split(rows);
        if rows < 4 {
            split.tasks = 1;
        }
        let parts = Parts::new(out.data.as_mut_slice());
        self.pool.run(split.tasks, &|task| {
            for row in split.range(task) {
                // SAFETY: each row is in one task's range.
                body(row, unsafe { parts.part(row * width, width) });
            }
        })
    }

    /// As [`Self::each_row`], where `body` makes a new row, which is set or added.
    fn each_new_row(
        &mut self,
        rows: usize,
        out: &mut Buffer,
        write: Write,
        body: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<()> {
        if write == Write::Set {
            return self.each_row(rows, out, body);
        }
        self.each_row(rows, out, &|row, out| {
            let mut new = vec![0.0; out.len()];
            body(row, &mut new);
            out.iter_mut().zip(new).for_each(|(out, new)| *out += new);
        })
    }
}

impl Executor for CpuExecutor {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Buffer = Buffer;
    type Cache = Cache;

    fn buffer(&self, rows: usize, width: usize) -> Result<Buffer> {
        let data = HugeSlice::zeroed(rows * width).map_err(|error| {
            Error::Device(format!("no memory for {rows} rows of {width}: {error}"))
        })?;
        Ok(Buffer { data, width })
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache> {
        Ok(match self.precision {
            Precision::Fast => Cache::Half(Planes::new(shape)?),
            Precision::Exact => Cache::Single(Planes::new(shape)?),
        })
    }

    fn page_bytes(&self, shape: CacheShape) -> usize {
        let element = if self.precision == Precision::Fast {
            2
        } else {
            4
        };
        2 * shape.layers * shape.kv_heads * PAGE_TOKENS * shape.head_dim * element
    }

    fn embed(
        &mut self,
        table: &Matrix,
        ids: &[u32],
        scale: f32,
        out: &mut Buffer,
        write: Write,
    ) -> Result<()> {
        self.each_new_row(ids.len(), out, write, &|row, out| {
            table.row(ids[row] as usize, out);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        })
    }

    fn rms_norm(
        &mut self,
        x: &Buffer,
        rows: usize,
        weight: &Vec<f32>,
        epsilon: f32,
        out: &mut Buffer,
        write: Write,
    ) -> Result<()> {
        let level = self.level;
        self.each_new_row(rows, out, write, &|row, out| {
            kernels::rms_norm(level, x.row(row), weight, epsilon, out)
        })
    }

    fn head_norm(
        &mut self,
        qkv: &mut Buffer,
        rows: usize,
        shape: HeadShape,
        weights: (&Vec<f32>, &Vec<f32>),
        epsilon: f32,
    ) -> Result<()> {
        let level = self.level;
        self.each_row(rows, qkv, &|_, x| {
            let heads = x.chunks_exact_mut(shape.head_dim);
            for (index, head) in heads.enumerate().take(shape.heads + shape.kv_heads) {
                let weight = if index < shape.heads {
                    weights.0
                } else {
                    weights.1
                };
                kernels::rms_norm_in_place(level, head, weight, epsilon);
            }
        })
    }

    fn layer_norm(
        &mut self,
        x: &Buffer,
        rows: usize,
        (weight, bias): (&Vec<f32>, &Vec<f32>),
        epsilon: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        self.each_row(rows, out, &|row, out| {
            scalar::layer_norm(x.row(row), weight, bias, epsilon, out)
        })
    }

    fn matmul(
        &mut self,
        x: &Buffer,
        rows: usize,
        weights: &Matrix,
        out: &mut Buffer,
        write: Write,
    ) -> Result<()> {
        if weights.needs_rounding() {
            self.round(x, rows)?;
        }
        // Panels are multiplied with two groups at a time; fewer rows leave more units to share among threads.
        let groups = if weights.needs_rounding() && self.panels.rows() > 0 {
            2
        } else {
            1
        };
        let split = self.split(weights.units(groups));
        let (level, scratch, width) = (self.level, &self.scratch, out.width);
        let rounded = (&self.rounded, &self.panels);
        let parts = Parts::new(out.data.as_mut_slice());
        self.pool.run(split.tasks, &|task| {
            let mut scratch = scratch[task].lock().unwrap_or_else(PoisonError::into_inner);
            for unit in split.range(task) {
                weights.multiply(
                    level,
                    (unit, groups),
                    x.data.chunks_exact(x.width).take(rows),
                    rounded,
                    &mut scratch,
                    |row, at, products, count| {
                        // SAFETY: the columns of a group are its own, and each group is in one task.
                        let out = unsafe { parts.part(row * width + at, count) };
                        match (<&mut [f32; LANES]>::try_from(&mut *out), write) {
                            // A whole group: of a known size, so no call.
                            (Ok(out), Write::Set) => *out = *products,
                            (Ok(out), Write::Add) => {
                                out.iter_mut().zip(products).for_each(|(out, x)| *out += x);
                            }
                            (Err(_), Write::Set) => out.copy_from_slice(&products[..count]),
                            (Err(_), Write::Add) => {
                                out.iter_mut().zip(products).for_each(|(out, x)| *out += x);
                            }
                        }
                    },
                );
            }
        })
    }

    fn add_bias(&mut self, x: &mut Buffer, rows: usize, bias: &Vec<f32>) -> Result<()> {
        for row in 0..rows {
            x.row_mut(row)
                .iter_mut()
                .zip(bias)
                .for_each(|(x, bias)| *x += bias);
        }
        Ok(())
    }

    fn rope(
        &mut self,
        qkv: &mut Buffer,
        rows: usize,
        shape: HeadShape,
        angles: &[f32],
    ) -> Result<()> {
        let pairs = shape.rope_dim / 2;
        self.each_row(rows, qkv, &|row, x| {
            let (cosines, sines) =
                angles[row * shape.rope_dim..(row + 1) * shape.rope_dim].split_at(pairs);
            for head in x
                .chunks_exact_mut(shape.head_dim)
                .take(shape.heads + shape.kv_heads)
            {
                let head = &mut head[..shape.rope_dim];
                match shape.rope_order {
                    RopeOrder::Neighbours => {
                        let elements = head.as_chunks_mut::<2>().0.iter_mut();
                        for ((pair, cos), sin) in elements.zip(cosines).zip(sines) {
                            let [a, b] = *pair;
                            *pair = [a * cos - b * sin, a * sin + b * cos];
                        }
                    }
                    RopeOrder::Halves => {
                        let (first, second) = head.split_at_mut(pairs);
                        let elements = first.iter_mut().zip(second);
                        for (((first, second), cos), sin) in elements.zip(cosines).zip(sines) {
                            let (a, b) = (*first, *second);
                            (*first, *second) = (a * cos - b * sin, a * sin + b * cos);
                        }
                    }
                }
            }
        })
    }

    fn store_kv(
        &mut self,
        qkv: &Buffer,
        batch: Batch<'_>,
        shape: HeadShape,
        layer: usize,
        cache: &mut Cache,
    ) -> Result<()> {
        let (q, kv) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        for (index, row) in batch.rows.iter().enumerate() {
            let (page, slot) = (
                row.position as usize / PAGE_TOKENS,
                row.position as usize % PAGE_TOKENS,
            );
            let page = batch
                .tables
                .get(row.table as usize)
                .and_then(|table| table.get(page))
                .copied();
            let Some(page) = page.map(|page| page as usize) else {
                return Err(Error::Device(format!(
                    "position {} has no KV page",
                    row.position
                )));
            };
            let (k, v) = qkv.row(index)[q..q + 2 * kv].split_at(kv);
            match cache {
                Cache::Half(planes) => planes.store(layer, page, slot, k, v),
                Cache::Single(planes) => planes.store(layer, page, slot, k, v),
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &Buffer,
        batch: Batch<'_>,
        shape: HeadShape,
        reach: Reach,
        layer: usize,
        cache: &Cache,
        out: &mut Buffer,
    ) -> Result<()> {
        match cache {
            Cache::Half(planes) => self.attend(qkv, batch, shape, reach, layer, planes, out),
            Cache::Single(planes) => self.attend(qkv, batch, shape, reach, layer, planes, out),
        }
    }

    fn gated(
        &mut self,
        x: &Buffer,
        rows: usize,
        activation: Activation,
        out: &mut Buffer,
    ) -> Result<()> {
        let level = self.level;
        self.each_row(rows, out, &|row, out| {
            let (gate, up) = x.row(row).split_at(out.len());
            match activation {
                Activation::Silu => kernels::gated_silu(level, gate, up, out),
                Activation::GeluTanh => kernels::gated_gelu(level, gate, up, out),
            }
        })
    }

    fn gelu(&mut self, x: &mut Buffer, rows: usize) -> Result<()> {
        self.each_row(rows, x, &|_, x| scalar::gelu(x))
    }

    fn gather(&mut self, x: &Buffer, rows: &[usize], out: &mut Buffer) -> Result<()> {
        self.each_row(rows.len(), out, &|row, out| {
            out.copy_from_slice(x.row(rows[row]))
        })
    }

    fn scatter_add(
        &mut self,
        x: &Buffer,
        rows: &[usize],
        out: &mut Buffer,
        at: usize,
    ) -> Result<()> {
        for (index, row) in rows.iter().enumerate() {
            let out = &mut out.row_mut(*row)[at..at + x.width];
            out.iter_mut()
                .zip(x.row(index))
                .for_each(|(out, x)| *out += x);
        }
        Ok(())
    }

    fn read(&mut self, x: &Buffer, rows: usize, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        out.extend_from_slice(&x.data[..rows * x.width]);
        Ok(())
    }

    fn host<'a>(
        &mut self,
        x: &'a mut Buffer,
        rows: usize,
        _spare: &'a mut Vec<f32>,
    ) -> Result<&'a mut [f32]> {
        let len = rows * x.width;
        Ok(&mut x.data.as_mut_slice()[..len])
    }

    fn distributions(
        &mut self,
        logits: &[f32],
        rows: usize,
        out: &mut Vec<Option<Distribution>>,
    ) -> Result<()> {
        out.clear();
        out.resize(rows, None);
        let width = logits.len() / rows.max(1);
        let parts = Parts::new(out);
        self.pool.run(rows, &|row| {
            // SAFETY: each row is one task's.
            let out = unsafe { parts.part(row, 1) };
            out[0] = Distribution::of(&logits[row * width..(row + 1) * width]).ok();
        })
    }
}
