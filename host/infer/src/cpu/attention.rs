//! Attention on the processor: several queries that see the same keys are computed together, so that each key and
//! value is widened once for all of them.
//!
//! What a query gets does not depend on which others it is computed with: each has sums of its own, over its own
//! positions, in their order.

use std::ops::Range;
use std::sync::PoisonError;

use super::cache::Planes;
use super::kernels::{self, CacheElement};
use super::parts::Parts;
use super::{Buffer, CpuExecutor};
use crate::Result;
use crate::ops::{Batch, HeadShape, Reach, Row};

/// Most queries that are computed together.
pub(crate) const QUERIES: usize = 4;
/// Rows of one sequence whose queries are gathered.
const ROWS: usize = 4;

/// One head of one row.
pub(crate) struct Query<'a> {
    pub(crate) q: &'a [f32],
    /// The positions that it sees.
    pub(crate) span: Range<usize>,
    pub(crate) out: &'a mut [f32],
}

/// Some rows of one sequence, and heads of them that share a kv head.
struct Unit {
    rows: Range<usize>,
    heads: Range<usize>,
    kv_head: usize,
}

impl CpuExecutor {
    /// Attention of all rows of a batch over one layer of the cache.
    #[allow(
        clippy::too_many_arguments,
        reason = "what the operation has, and the planes of one element type"
    )]
    pub(super) fn attend<E: CacheElement>(
        &mut self,
        qkv: &Buffer,
        batch: Batch<'_>,
        shape: HeadShape,
        reach: Reach,
        layer: usize,
        planes: &Planes<E>,
        out: &mut Buffer,
    ) -> Result<()> {
        let Batch { rows, tables, .. } = batch;
        let (dim, width, level) = (shape.head_dim, out.width, self.level);
        let ends = match reach {
            Reach::Whole => ends(rows, tables.len()),
            _ => Vec::new(),
        };
        let span = |row: &Row| {
            let (first, last) = match reach {
                Reach::Causal => (0, row.position),
                Reach::Window(size) => ((row.position + 1).saturating_sub(size), row.position),
                Reach::Whole => (0, ends[row.table as usize]),
            };
            first as usize..last as usize + 1
        };
        let units = units(rows, shape, self.pool.threads());
        let parts = Parts::new(out.data.as_mut_slice());
        let scratch = &self.scratch;
        let tasks = units.len().min(scratch.len()).max(1);
        self.pool.run(tasks, &|task| {
            let mut scores = scratch[task].lock().unwrap_or_else(PoisonError::into_inner);
            // Later rows of a prompt see more positions, so units are dealt out in turns.
            for unit in units.iter().skip(task).step_by(tasks) {
                let table = tables[rows[unit.rows.start].table as usize];
                let cache = planes.head(layer, unit.kv_head, table);
                let mut queries: [Option<Query<'_>>; QUERIES] = [const { None }; QUERIES];
                let mut count = 0;
                for row in unit.rows.clone() {
                    for head in unit.heads.clone() {
                        queries[count] = Some(Query {
                            q: &qkv.row(row)[head * dim..(head + 1) * dim],
                            span: span(&rows[row]),
                            // SAFETY: each head of each row is in one unit, and each unit in one task.
                            out: unsafe { parts.part(row * width + head * dim, dim) },
                        });
                        count += 1;
                        if count == QUERIES {
                            kernels::attend(level, &mut queries, &cache, shape.scale, &mut scores);
                            (queries, count) = ([const { None }; QUERIES], 0);
                        }
                    }
                }
                if count > 0 {
                    kernels::attend(level, &mut queries, &cache, shape.scale, &mut scores);
                }
            }
        })
    }
}

/// Where each sequence ends, for rows that see beyond themselves.
fn ends(rows: &[Row], tables: usize) -> Vec<u32> {
    let mut ends = vec![0; tables];
    for row in rows {
        if let Some(end) = ends.get_mut(row.table as usize) {
            *end = row.position.max(*end);
        }
    }
    ends
}

/// Cuts a batch into units: as large as they can be, but single heads where that would leave threads idle.
fn units(rows: &[Row], shape: HeadShape, threads: usize) -> Vec<Unit> {
    let group = shape.heads / shape.kv_heads;
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        match blocks.last_mut() {
            Some(block) if rows[block.start].table == row.table && block.len() < ROWS => {
                block.end = index + 1;
            }
            _ => blocks.push(index..index + 1),
        }
    }
    let whole = blocks.len() * shape.kv_heads >= 2 * threads && threads > 1 || threads == 1;
    let mut units = Vec::new();
    for block in blocks {
        for kv_head in 0..shape.kv_heads {
            let heads = kv_head * group..(kv_head + 1) * group;
            if whole {
                units.push(Unit {
                    rows: block.clone(),
                    heads,
                    kv_head,
                });
                continue;
            }
            for row in block.clone() {
                units.extend(heads.clone().map(|head| Unit {
                    rows: row..row + 1,
                    heads: head..head + 1,
                    kv_head,
                }));
            }
        }
    }
    units
}
