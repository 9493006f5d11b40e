//! Adapters on a device: what they add to a decoder's matrices, for the rows of a step that ask for it.

use std::collections::HashMap;

use crate::adapter::{AdapterFile, Change, Module};
use crate::config::Config;
use crate::ops::{Device, Executor, RopeOrder, Weights, Write};
use crate::quant::TensorType;
use crate::{Error, Result};

/// One change, on a device.
struct LowRank<D: Device> {
    a: D::Matrix,
    b: D::Matrix,
    rank: usize,
    inputs: usize,
    outputs: usize,
}

/// A loaded adapter.
pub(crate) struct Adapter<D: Device> {
    changes: HashMap<(usize, Module), LowRank<D>>,
}

/// Buffers that only steps with adapters need, by their width.
pub(crate) struct Spare<E: Executor> {
    rows: usize,
    buffers: HashMap<(u8, usize), E::Buffer>,
}

impl<E: Executor> Spare<E> {
    /// For steps of up to `rows` rows.
    pub(crate) fn new(rows: usize) -> Self {
        Self {
            rows,
            buffers: HashMap::new(),
        }
    }

    /// A buffer of a width; `place` keeps those apart that are in use at once.
    fn take(&mut self, run: &E, place: u8, width: usize) -> Result<E::Buffer> {
        match self.buffers.remove(&(place, width)) {
            Some(buffer) => Ok(buffer),
            None => run.buffer(self.rows, width),
        }
    }

    fn give_back(&mut self, place: u8, width: usize, buffer: E::Buffer) {
        self.buffers.insert((place, width), buffer);
    }
}

impl<D: Device> Adapter<D> {
    /// Loads an adapter for a decoder.
    ///
    /// # Errors
    /// [`Error::Adapter`]: it is for another base, with other sizes.
    pub(crate) fn load(file: AdapterFile, config: &Config, device: &D) -> Result<Self> {
        let mut changes = HashMap::new();
        for change in file.changes {
            let (inputs, outputs) = sizes(config, change.module);
            let (layer, module) = (change.layer, change.module);
            if layer >= config.reach.len() || (change.inputs, change.outputs) != (inputs, outputs) {
                return Err(Error::Adapter(format!(
                    "layer {layer}, {}: it changes a matrix of {} x {}, but the base has {} layers, and there {outputs} x {inputs}: \
                     the adapter is for another base",
                    module.name(),
                    change.outputs,
                    change.inputs,
                    config.reach.len(),
                )));
            }
            let b = in_order(&change, config);
            let matrix = |values: &[f32], rows: usize, columns: usize| {
                let bytes: Vec<u8> = values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                device.matrix(&[Weights {
                    kind: TensorType::F32,
                    rows,
                    columns,
                    bytes: &bytes,
                }])
            };
            changes.insert(
                (layer, module),
                LowRank {
                    a: matrix(&change.a, change.rank, inputs)?,
                    b: matrix(&b, outputs, change.rank)?,
                    rank: change.rank,
                    inputs,
                    outputs,
                },
            );
        }
        Ok(Self { changes })
    }

    /// Adds this adapter's changes of some modules of a layer, which share their input `x`, to the rows `rows` of
    /// `out`; each module's output begins at its column.
    pub(crate) fn apply<E>(
        &self,
        run: &mut E,
        spare: &mut Spare<E>,
        (layer, modules): (usize, &[(Module, usize)]),
        rows: &[usize],
        x: &E::Buffer,
        out: &mut E::Buffer,
    ) -> Result<()>
    where
        E: Executor<Matrix = D::Matrix, Vector = D::Vector>,
    {
        let changes = modules
            .iter()
            .filter_map(|(module, at)| Some((self.changes.get(&(layer, *module))?, *at)));
        let mut picked: Option<(usize, E::Buffer)> = None;
        for (change, at) in changes {
            let (inputs, input) = match picked.take() {
                Some(picked) => picked,
                None => {
                    let mut input = spare.take(run, 0, change.inputs)?;
                    run.gather(x, rows, &mut input)?;
                    (change.inputs, input)
                }
            };
            let mut narrow = spare.take(run, 1, change.rank)?;
            run.matmul(&input, rows.len(), &change.a, &mut narrow, Write::Set)?;
            let mut delta = spare.take(run, 2, change.outputs)?;
            run.matmul(&narrow, rows.len(), &change.b, &mut delta, Write::Set)?;
            run.scatter_add(&delta, rows, out, at)?;
            spare.give_back(1, change.rank, narrow);
            spare.give_back(2, change.outputs, delta);
            picked = Some((inputs, input));
        }
        if let Some((inputs, input)) = picked {
            spare.give_back(0, inputs, input);
        }
        Ok(())
    }
}

/// Elements of a matrix's input and output.
fn sizes(config: &Config, module: Module) -> (usize, usize) {
    let head = config.heads.head_dim;
    let (q, kv) = (config.heads.heads * head, config.heads.kv_heads * head);
    match module {
        Module::Q => (config.width, q),
        Module::K | Module::V => (config.width, kv),
        Module::AttentionOut => (q, config.width),
        Module::Gate | Module::Up => (config.width, config.hidden),
        Module::Down => (config.hidden, config.width),
    }
}

/// The rows of B in the order of the base's rows: GGUF files of the llama architecture keep those elements of q and k
/// next to each other that are rotated together, Hugging Face half a head apart.
fn in_order(change: &Change, config: &Config) -> Vec<f32> {
    let heads = &config.heads;
    if heads.rope_order != RopeOrder::Neighbours || !matches!(change.module, Module::Q | Module::K)
    {
        return change.b.clone();
    }
    let half = heads.rope_dim / 2;
    let mut out = Vec::with_capacity(change.b.len());
    for head in change.b.chunks_exact(heads.head_dim * change.rank) {
        let row = |index: usize| &head[index * change.rank..(index + 1) * change.rank];
        for pair in 0..half {
            out.extend_from_slice(row(pair));
            out.extend_from_slice(row(pair + half));
        }
        out.extend_from_slice(&head[heads.rope_dim * change.rank..]);
    }
    out
}
