#![allow(
    unsafe_code,
    reason = "addresses that are compared, never followed, move between threads"
)]
//! What a step sends to the device at its beginning, in one copy: tokens, positions, page tables, angles.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::{Gpu, describe};
use crate::ops::{Batch, HeadShape, Output, PAGE_TOKENS};
use crate::{Error, Result};

/// Queries that a warp attends for at once: the rows of a tensor-core product.
pub(super) const QUERIES: usize = 16;
/// Tokens of a unit of attention, the same in `kernels/attention.cu`.
pub(super) const UNIT_TOKENS: usize = 64;

/// Where the parts of a step lie, in words. Two steps of equal layout differ only in the words themselves, so one can be
/// replayed with the other's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Layout {
    pub(super) rows: usize,
    pub(super) tables: usize,
    /// Words of a page table.
    pub(super) stride: usize,
    /// Rows whose logits, and whose hidden states, are wanted.
    pub(super) logits: usize,
    pub(super) hidden: usize,
    /// Runs of rows that one tile of queries holds, as those that decode; their rows; and the tiles of longer runs.
    pub(super) short_tiles: usize,
    pub(super) short_rows: usize,
    pub(super) long_tiles: usize,
    /// Units of attention of the longest sequence among the short runs, as a power of two.
    pub(super) units: usize,
    pub(super) tokens_at: usize,
    pub(super) positions_at: usize,
    pub(super) table_of_at: usize,
    pub(super) slots_at: usize,
    /// For each row, the last position of its sequence in this step.
    pub(super) ends_at: usize,
    pub(super) logits_at: usize,
    pub(super) hidden_at: usize,
    pub(super) short_tiles_at: usize,
    pub(super) short_rows_at: usize,
    pub(super) long_tiles_at: usize,
    pub(super) tables_at: usize,
    /// Where each set of angles begins.
    pub(super) angles_at: Vec<usize>,
}

/// A step on the device.
pub(super) struct Step {
    pub(super) layout: Layout,
    words: Vec<u32>,
    device: CudaSlice<u32>,
    /// The sets of angles, by where the caller keeps them.
    angles: Vec<(*const f32, usize)>,
    pub(super) logits: Vec<usize>,
    pub(super) hidden: Vec<usize>,
    pub(super) last_page: usize,
}

// SAFETY: the pointers are compared, never followed.
unsafe impl Send for Step {}

/// Appends a section, aligned for 16-byte reads, and tells where.
fn section(words: &mut Vec<u32>, values: impl IntoIterator<Item = u32>) -> usize {
    words.resize(words.len().next_multiple_of(4), 0);
    let at = words.len();
    words.extend(values);
    at
}

impl Step {
    pub(super) fn new(gpu: &Gpu, stream: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            layout: Layout::default(),
            words: Vec::new(),
            device: gpu.zeroed(stream, "a step", 1 << 12)?,
            angles: Vec::new(),
            logits: Vec::new(),
            hidden: Vec::new(),
            last_page: 0,
        })
    }

    /// Sends a batch. True where the words moved to another place on the device.
    pub(super) fn send(
        &mut self,
        batch: Batch<'_>,
        shape: HeadShape,
        angles: &[&[f32]],
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
    ) -> Result<bool> {
        self.fill(batch, shape, angles)?;
        let moved = self.words.len() > self.device.len();
        if moved {
            let len = self.words.len().next_power_of_two();
            // The old words may still be read by what is queued; its memory is freed in the stream's order.
            self.device = gpu.zeroed(stream, "a step", len)?;
        }
        stream
            .memcpy_htod(&self.words, &mut self.device)
            .map_err(|error| Error::Device(format!("sending a step: {}", describe(error))))?;
        Ok(moved)
    }

    fn fill(&mut self, batch: Batch<'_>, shape: HeadShape, angles: &[&[f32]]) -> Result<()> {
        let Batch { rows, tables, .. } = batch;
        let wanted = |output| {
            let matching = rows
                .iter()
                .enumerate()
                .filter(move |(_, row)| row.output == output);
            matching.map(|(index, _)| index)
        };
        self.logits = wanted(Output::Logits).collect();
        self.hidden = wanted(Output::Hidden).collect();
        self.last_page = 0;
        let mut slots = Vec::with_capacity(rows.len());
        for row in rows {
            let position = row.position as usize;
            let pages = tables.get(row.table as usize).and_then(|table| {
                // Every page up to the row's own is read.
                table.get(..=position / PAGE_TOKENS)
            });
            let Some(pages) = pages else {
                return Err(Error::Device(format!("position {position} has no KV page")));
            };
            let most = pages.iter().copied().max().unwrap_or(0) as usize;
            self.last_page = self.last_page.max(most);
            let page = pages.last().copied().unwrap_or(0) as usize;
            slots.push((page * PAGE_TOKENS + position % PAGE_TOKENS) as u32);
        }
        let mut last = vec![0; tables.len()];
        for row in rows {
            if let Some(last) = last.get_mut(row.table as usize) {
                *last = row.position.max(*last);
            }
        }
        let ends: Vec<u32> = rows
            .iter()
            .map(|row| last.get(row.table as usize).copied().unwrap_or(0))
            .collect();
        let (mut short, mut short_rows, mut long) = (Vec::new(), Vec::new(), Vec::new());
        let mut units = 1;
        let group = shape.heads / shape.kv_heads.max(1);
        let mut first = 0;
        let same = |a: &crate::ops::Row, b: &crate::ops::Row| {
            a.table == b.table && b.position == a.position + 1
        };
        for run in rows.chunk_by(same) {
            let queries = run.len() * group;
            let table = run.first().map_or(0, |row| row.table);
            let tile = |place: usize| [first as u32, run.len() as u32, place as u32, table];
            if queries <= QUERIES {
                short.extend(tile(short_rows.len()));
                short_rows.extend(first as u32..(first + run.len()) as u32);
                let table = table as usize;
                let last = last.get(table).copied().unwrap_or(0) as usize;
                units = units.max(last / UNIT_TOKENS + 1);
            } else {
                long.extend((0..queries).step_by(QUERIES).flat_map(tile));
            }
            first += run.len();
        }
        let longest = rows
            .iter()
            .map(|row| row.position as usize / PAGE_TOKENS + 1)
            .max();
        let stride = longest.unwrap_or(1).next_power_of_two().max(8);
        let words = &mut self.words;
        words.clear();
        let index = |indices: &[usize]| indices.iter().map(|i| *i as u32).collect::<Vec<_>>();
        self.layout = Layout {
            rows: rows.len(),
            tables: tables.len(),
            stride,
            logits: self.logits.len(),
            hidden: self.hidden.len(),
            short_tiles: short.len() / 4,
            short_rows: short_rows.len(),
            long_tiles: long.len() / 4,
            units: units.next_power_of_two(),
            tokens_at: section(words, rows.iter().map(|row| row.token)),
            positions_at: section(words, rows.iter().map(|row| row.position)),
            table_of_at: section(words, rows.iter().map(|row| row.table)),
            slots_at: section(words, slots),
            ends_at: section(words, ends),
            logits_at: section(words, index(&self.logits)),
            hidden_at: section(words, index(&self.hidden)),
            short_tiles_at: section(words, short),
            short_rows_at: section(words, short_rows),
            long_tiles_at: section(words, long),
            tables_at: section(
                words,
                tables.iter().flat_map(|table| {
                    let pages = table.iter().copied().chain(std::iter::repeat(0));
                    pages.take(stride).collect::<Vec<_>>()
                }),
            ),
            angles_at: angles
                .iter()
                .map(|set| section(words, set.iter().map(|angle| angle.to_bits())))
                .collect(),
        };
        self.angles = angles.iter().map(|set| (set.as_ptr(), set.len())).collect();
        Ok(())
    }

    /// The tokens that the step began with.
    pub(super) fn tokens(&self) -> &[u32] {
        let at = self.layout.tokens_at;
        self.words.get(at..at + self.layout.rows).unwrap_or(&[])
    }

    /// The device address of a place.
    pub(super) fn pointer(&self, at: usize, stream: &CudaStream) -> u64 {
        self.device.device_ptr(stream).0 + 4 * at as u64
    }

    /// Where a set of angles lies: one of those that the step began with.
    pub(super) fn angles(&self, angles: &[f32]) -> Option<usize> {
        let known = self
            .angles
            .iter()
            .position(|set| *set == (angles.as_ptr(), angles.len()))?;
        self.layout.angles_at.get(known).copied()
    }
}
