//! The graph of the llama family: RMS norm, rotary embedding, grouped-query attention, SwiGLU; tied or
//! separate output matrix. Llama 1 to 3, SmolLM2, Mistral and their kin.
//!
//! Names of tensors and keys after <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashSet;
use std::sync::Arc;

use crate::config::{Config, tensor, vector};
use crate::gguf::Gguf;
use crate::ops::{Batch, CacheShape, Device, Executor, Output, Weights, Write};
use crate::{Error, Result};

/// Reads tensors and notes which, so that one that the graph does not know is found.
struct Loader<'a, D> {
    gguf: &'a Gguf,
    device: &'a D,
    read: HashSet<String>,
}

impl<D: Device> Loader<'_, D> {
    /// Stacks matrices of `columns` columns.
    fn matrix(&mut self, names_and_rows: &[(String, usize)], columns: usize) -> Result<D::Matrix> {
        let mut parts = Vec::new();
        for (name, rows) in names_and_rows {
            let (info, bytes) = tensor(self.gguf, name)?;
            if (info.rows, info.columns) != (*rows, columns) {
                return Err(Error::Gguf(format!(
                    "tensor {name}: its shape is {} x {}, but the model's keys ask for {rows} x {columns}",
                    info.rows, info.columns
                )));
            }
            parts.push(Weights {
                kind: info.kind,
                rows: *rows,
                columns,
                bytes,
            });
            self.read.insert(name.clone());
        }
        self.device.matrix(&parts)
    }

    fn vector(&mut self, name: String, len: usize) -> Result<D::Vector> {
        let values = vector(self.gguf, &name, len)?;
        self.read.insert(name);
        self.device.vector(&values)
    }

    /// Stacked biases; all or none of them are there.
    fn biases(&mut self, names_and_lens: &[(String, usize)]) -> Result<Option<D::Vector>> {
        if !names_and_lens
            .iter()
            .any(|(name, _)| self.gguf.tensor(name).is_some())
        {
            return Ok(None);
        }
        let mut values = Vec::new();
        for (name, len) in names_and_lens {
            values.extend(vector(self.gguf, name, *len)?);
            self.read.insert(name.clone());
        }
        self.device.vector(&values).map(Some)
    }
}

struct Layer<D: Device> {
    attention_norm: D::Vector,
    qkv: D::Matrix,
    qkv_bias: Option<D::Vector>,
    attention_out: D::Matrix,
    ffn_norm: D::Vector,
    gate_up: D::Matrix,
    down: D::Matrix,
}

/// A loaded model of the family.
pub(crate) struct Llama<D: Device> {
    config: Config,
    device: D,
    embedding: D::Matrix,
    layers: Vec<Layer<D>>,
    norm: D::Vector,
    /// `None` where the embedding is also the output matrix.
    output: Option<D::Matrix>,
}

impl<D: Device> Llama<D> {
    /// Loads the weights of a file onto a device.
    pub(crate) fn load(gguf: &Gguf, config: Config, device: D) -> Result<Self> {
        let mut loader = Loader {
            gguf,
            device: &device,
            read: HashSet::from(["rope_freqs.weight".to_owned()]),
        };
        let (width, q, kv) = (
            config.width,
            config.heads * config.head_dim,
            config.kv_heads * config.head_dim,
        );
        let embedding = loader.matrix(&[("token_embd.weight".into(), config.vocabulary)], width)?;
        let mut layers = Vec::new();
        for index in 0..config.layers {
            let name = |part: &str| format!("blk.{index}.{part}");
            layers.push(Layer {
                attention_norm: loader.vector(name("attn_norm.weight"), width)?,
                qkv: loader.matrix(
                    &[
                        (name("attn_q.weight"), q),
                        (name("attn_k.weight"), kv),
                        (name("attn_v.weight"), kv),
                    ],
                    width,
                )?,
                qkv_bias: loader.biases(&[
                    (name("attn_q.bias"), q),
                    (name("attn_k.bias"), kv),
                    (name("attn_v.bias"), kv),
                ])?,
                attention_out: loader.matrix(&[(name("attn_output.weight"), width)], q)?,
                ffn_norm: loader.vector(name("ffn_norm.weight"), width)?,
                gate_up: loader.matrix(
                    &[
                        (name("ffn_gate.weight"), config.hidden),
                        (name("ffn_up.weight"), config.hidden),
                    ],
                    width,
                )?,
                down: loader.matrix(&[(name("ffn_down.weight"), width)], config.hidden)?,
            });
        }
        let norm = loader.vector("output_norm.weight".into(), width)?;
        let output = match gguf.tensor("output.weight") {
            None => None,
            Some(_) => Some(loader.matrix(&[("output.weight".into(), config.vocabulary)], width)?),
        };
        // A weight that the graph does not use means another graph: better no answer than a wrong one.
        if let Some((name, _)) = gguf
            .tensors()
            .find(|(name, _)| !loader.read.contains(*name))
        {
            return Err(Error::Unsupported(format!(
                "tensor {name} has no place in the llama graph"
            )));
        }
        Ok(Self {
            config,
            device,
            embedding,
            layers,
            norm,
            output,
        })
    }
}

/// A model that can run, whatever device it is on.
pub(crate) trait Network: Send + Sync {
    /// What one step at a time runs on: its own threads, buffers and KV pages.
    fn session(self: Arc<Self>, options: SessionOptions) -> Result<Box<dyn Session>>;
}

/// The limits of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionOptions {
    /// 0: one for each core.
    pub(crate) threads: usize,
    /// Most rows of a step.
    pub(crate) rows: usize,
    /// Most rows of a step that have an output.
    pub(crate) outputs: usize,
    /// Memory for keys and values; at least one page is made.
    pub(crate) kv_bytes: usize,
}

/// Runs steps.
pub(crate) trait Session: Send {
    /// KV pages that there are.
    fn pages(&self) -> usize;
    /// Bytes of a KV page.
    fn page_bytes(&self) -> usize;
    /// Computes the rows, and gives their outputs in their order: logits, and hidden states.
    fn step(&mut self, batch: Batch<'_>) -> Result<(&mut [f32], &[f32])>;
}

impl<D: Device> Network for Llama<D> {
    fn session(self: Arc<Self>, options: SessionOptions) -> Result<Box<dyn Session>> {
        let executor = self.device.executor(options.threads)?;
        let config = &self.config;
        let mut shape = CacheShape {
            layers: config.layers,
            pages: 1,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let page_bytes = executor.page_bytes(shape);
        shape.pages = (options.kv_bytes / page_bytes).max(1);
        let (rows, outputs, q) = (
            options.rows,
            options.outputs,
            config.heads * config.head_dim,
        );
        Ok(Box::new(LlamaSession {
            pages: shape.pages,
            page_bytes,
            cache: executor.cache(shape)?,
            stream: executor.buffer(rows, config.width)?,
            normed: executor.buffer(rows, config.width)?,
            qkv: executor.buffer(rows, config.head_shape().width())?,
            attended: executor.buffer(rows, q)?,
            gate_up: executor.buffer(rows, 2 * config.hidden)?,
            gated: executor.buffer(rows, config.hidden)?,
            chosen: executor.buffer(outputs, config.width)?,
            chosen_normed: executor.buffer(outputs, config.width)?,
            logits: executor.buffer(outputs, config.vocabulary)?,
            angles: Vec::new(),
            host_logits: Vec::new(),
            host_hidden: Vec::new(),
            options,
            executor,
            model: self,
        }))
    }
}

struct LlamaSession<D: Device> {
    model: Arc<Llama<D>>,
    executor: D::Executor,
    options: SessionOptions,
    pages: usize,
    page_bytes: usize,
    cache: <D::Executor as Executor>::Cache,
    /// The residual stream.
    stream: <D::Executor as Executor>::Buffer,
    normed: <D::Executor as Executor>::Buffer,
    qkv: <D::Executor as Executor>::Buffer,
    attended: <D::Executor as Executor>::Buffer,
    gate_up: <D::Executor as Executor>::Buffer,
    gated: <D::Executor as Executor>::Buffer,
    chosen: <D::Executor as Executor>::Buffer,
    chosen_normed: <D::Executor as Executor>::Buffer,
    logits: <D::Executor as Executor>::Buffer,
    angles: Vec<f32>,
    host_logits: Vec<f32>,
    host_hidden: Vec<f32>,
}

impl<D: Device> Session for LlamaSession<D> {
    fn pages(&self) -> usize {
        self.pages
    }

    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn step(&mut self, batch: Batch<'_>) -> Result<(&mut [f32], &[f32])> {
        let model = Arc::clone(&self.model);
        let rows = batch.rows;
        let (config, shape, count) = (&model.config, model.config.head_shape(), rows.len());
        let outputs = |wanted| {
            rows.iter()
                .enumerate()
                .filter(move |(_, row)| row.output == wanted)
                .map(|(i, _)| i)
        };
        let (logits, hidden): (Vec<_>, Vec<_>) = (
            outputs(Output::Logits).collect(),
            outputs(Output::Hidden).collect(),
        );
        self.host_logits.clear();
        self.host_hidden.clear();
        if count > self.options.rows || logits.len().max(hidden.len()) > self.options.outputs {
            return Err(Error::Device(
                "a step larger than the session was made for".into(),
            ));
        }
        if rows
            .iter()
            .any(|row| row.token as usize >= config.vocabulary)
        {
            return Err(Error::Invalid(format!(
                "a token id beyond the vocabulary of {}",
                config.vocabulary
            )));
        }
        let run = &mut self.executor;
        config.angles(rows, &mut self.angles);
        run.embed(&model.embedding, rows, &mut self.stream)?;
        for (index, layer) in model.layers.iter().enumerate() {
            run.rms_norm(
                &self.stream,
                count,
                &layer.attention_norm,
                config.epsilon,
                &mut self.normed,
            )?;
            run.matmul(&self.normed, count, &layer.qkv, &mut self.qkv, Write::Set)?;
            if let Some(bias) = &layer.qkv_bias {
                run.add_bias(&mut self.qkv, count, bias)?;
            }
            run.rope(&mut self.qkv, count, shape, &self.angles)?;
            run.store_kv(&self.qkv, batch, shape, index, &mut self.cache)?;
            run.attention(
                &self.qkv,
                batch,
                shape,
                index,
                &self.cache,
                &mut self.attended,
            )?;
            run.matmul(
                &self.attended,
                count,
                &layer.attention_out,
                &mut self.stream,
                Write::Add,
            )?;
            run.rms_norm(
                &self.stream,
                count,
                &layer.ffn_norm,
                config.epsilon,
                &mut self.normed,
            )?;
            run.matmul(
                &self.normed,
                count,
                &layer.gate_up,
                &mut self.gate_up,
                Write::Set,
            )?;
            run.gated_silu(&self.gate_up, count, &mut self.gated)?;
            run.matmul(
                &self.gated,
                count,
                &layer.down,
                &mut self.stream,
                Write::Add,
            )?;
        }
        for (wanted, chosen) in [(Output::Logits, logits), (Output::Hidden, hidden)] {
            if chosen.is_empty() {
                continue;
            }
            run.gather(&self.stream, &chosen, &mut self.chosen)?;
            run.rms_norm(
                &self.chosen,
                chosen.len(),
                &model.norm,
                config.epsilon,
                &mut self.chosen_normed,
            )?;
            if wanted == Output::Hidden {
                run.read(&self.chosen_normed, chosen.len(), &mut self.host_hidden)?;
                continue;
            }
            let matrix = model.output.as_ref().unwrap_or(&model.embedding);
            run.matmul(
                &self.chosen_normed,
                chosen.len(),
                matrix,
                &mut self.logits,
                Write::Set,
            )?;
            run.read(&self.logits, chosen.len(), &mut self.host_logits)?;
        }
        Ok((&mut self.host_logits, &self.host_hidden))
    }
}
