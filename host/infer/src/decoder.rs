//! The graph of the decoders: RMS norm, rotary embedding, grouped-query attention, a gated feed-forward layer; tied
//! or separate output matrix. Llama 1 to 3, SmolLM2, Mistral and their kin; and with the parts that their
//! [`Family`](crate::config::Family) has, Qwen 2 and 3 and Gemma 3.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::adapter::{AdapterFile, Module};
use crate::config::Config;
use crate::low_rank::{Adapter, Spare};
use crate::network::{Network, Outputs, Session, SessionOptions};
use crate::ops::{Batch, CacheShape, Device, Executor, Output, Reach, Write};
use crate::sampling::Distribution;
use crate::weights::{Loader, Source};
use crate::{Error, Result};

struct Layer<D: Device> {
    attention_norm: D::Vector,
    qkv: D::Matrix,
    qkv_bias: Option<D::Vector>,
    /// Of q and of k.
    head_norms: Option<(D::Vector, D::Vector)>,
    attention_out: D::Matrix,
    /// After attention, and after the feed-forward layer.
    post_norms: Option<(D::Vector, D::Vector)>,
    ffn_norm: D::Vector,
    gate_up: D::Matrix,
    down: D::Matrix,
}

/// Adapters, each with the rows of a step that ask for it.
type Adapted<D> = Vec<(Arc<Adapter<D>>, Vec<usize>)>;

/// A loaded decoder.
pub(crate) struct Decoder<D: Device> {
    config: Config,
    device: D,
    embedding: D::Matrix,
    layers: Vec<Layer<D>>,
    norm: D::Vector,
    /// `None` where the embedding is also the output matrix.
    output: Option<D::Matrix>,
    adapters: RwLock<HashMap<u32, Arc<Adapter<D>>>>,
    last_adapter: AtomicU32,
}

impl<D: Device> Decoder<D> {
    /// Loads the weights onto a device.
    pub(crate) fn load(source: &dyn Source, config: Config, device: D) -> Result<Self> {
        let mut loader = Loader::new(source, &device, &["rope_freqs.weight"]);
        let (width, offset, head) = (config.width, config.norm_offset, config.heads.head_dim);
        let (q, kv) = (config.heads.heads * head, config.heads.kv_heads * head);
        let embedding = loader.matrix(&[("token_embd.weight".into(), config.vocabulary)], width)?;
        let mut layers = Vec::new();
        for index in 0..config.reach.len() {
            let name = |part: &str| format!("blk.{index}.{part}");
            let mut pair = |wanted: bool, names: [&str; 2], len: usize| -> Result<_> {
                if !wanted {
                    return Ok(None);
                }
                let [first, second] = names.map(|part| loader.vector(name(part), len, offset));
                Ok(Some((first?, second?)))
            };
            let head_norms = pair(
                config.family.head_norms(),
                ["attn_q_norm.weight", "attn_k_norm.weight"],
                head,
            )?;
            let post_norms = pair(
                config.family.post_norms(),
                ["post_attention_norm.weight", "post_ffw_norm.weight"],
                width,
            )?;
            layers.push(Layer {
                head_norms,
                post_norms,
                attention_norm: loader.vector(name("attn_norm.weight"), width, offset)?,
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
                ffn_norm: loader.vector(name("ffn_norm.weight"), width, offset)?,
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
        let norm = loader.vector("output_norm.weight".into(), width, offset)?;
        let output = if loader.has("output.weight") {
            Some(loader.matrix(&[("output.weight".into(), config.vocabulary)], width)?)
        } else {
            None
        };
        loader.finish("decoder's")?;
        Ok(Self {
            config,
            device,
            embedding,
            layers,
            norm,
            output,
            adapters: RwLock::default(),
            last_adapter: AtomicU32::new(0),
        })
    }

    fn adapters(&self) -> RwLockReadGuard<'_, HashMap<u32, Arc<Adapter<D>>>> {
        self.adapters.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapters of a step, each with the rows that ask for it.
    fn adapted(&self, batch: Batch<'_>) -> Result<Adapted<D>> {
        let mut out: Vec<(u32, Arc<Adapter<D>>, Vec<usize>)> = Vec::new();
        for (index, row) in batch.rows.iter().enumerate() {
            let id = match batch.adapters.get(row.table as usize) {
                None | Some(0) => continue,
                Some(id) => *id,
            };
            if let Some((_, _, rows)) = out.iter_mut().find(|(known, _, _)| *known == id) {
                rows.push(index);
                continue;
            }
            let adapter = self.adapters().get(&id).cloned();
            let adapter = adapter
                .ok_or_else(|| Error::Adapter(format!("adapter {id} is not loaded any more")))?;
            out.push((id, adapter, vec![index]));
        }
        Ok(out
            .into_iter()
            .map(|(_, adapter, rows)| (adapter, rows))
            .collect())
    }
}

impl<D: Device> Network for Decoder<D> {
    fn session(self: Arc<Self>, options: SessionOptions) -> Result<Box<dyn Session>> {
        let executor = self.device.executor(options.threads)?;
        let config = &self.config;
        let mut shape = CacheShape {
            layers: config.reach.len(),
            pages: 1,
            kv_heads: config.heads.kv_heads,
            head_dim: config.heads.head_dim,
        };
        let page_bytes = executor.page_bytes(shape);
        shape.pages = (options.kv_bytes / page_bytes).max(1);
        let (rows, outputs, q) = (
            options.rows,
            options.outputs,
            config.heads.heads * config.heads.head_dim,
        );
        Ok(Box::new(DecoderSession {
            pages: shape.pages,
            page_bytes,
            cache: executor.cache(shape)?,
            stream: executor.buffer(rows, config.width)?,
            normed: executor.buffer(rows, config.width)?,
            part: executor.buffer(
                if config.family.post_norms() { rows } else { 0 },
                config.width,
            )?,
            qkv: executor.buffer(rows, config.heads.width())?,
            attended: executor.buffer(rows, q)?,
            gate_up: executor.buffer(rows, 2 * config.hidden)?,
            gated: executor.buffer(rows, config.hidden)?,
            chosen: executor.buffer(outputs, config.width)?,
            chosen_normed: executor.buffer(outputs, config.width)?,
            logits: executor.buffer(outputs, config.vocabulary)?,
            ids: Vec::new(),
            angles: Default::default(),
            host_logits: Vec::new(),
            distributions: Vec::new(),
            host_hidden: Vec::new(),
            spare: Spare::new(rows),
            options,
            executor,
            model: self,
        }))
    }

    fn load_adapter(&self, file: AdapterFile) -> Result<u32> {
        let adapter = Arc::new(Adapter::load(file, &self.config, &self.device)?);
        let id = 1 + self.last_adapter.fetch_add(1, Ordering::Relaxed);
        let mut adapters = self
            .adapters
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        adapters.insert(id, adapter);
        Ok(id)
    }

    fn unload_adapter(&self, adapter: u32) -> bool {
        let mut adapters = self
            .adapters
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        adapters.remove(&adapter).is_some()
    }

    fn has_adapter(&self, adapter: u32) -> bool {
        self.adapters().contains_key(&adapter)
    }
}

struct DecoderSession<D: Device> {
    model: Arc<Decoder<D>>,
    executor: D::Executor,
    options: SessionOptions,
    pages: usize,
    page_bytes: usize,
    cache: <D::Executor as Executor>::Cache,
    /// The residual stream.
    stream: <D::Executor as Executor>::Buffer,
    normed: <D::Executor as Executor>::Buffer,
    /// What a part gives, where it is normed before it joins the stream.
    part: <D::Executor as Executor>::Buffer,
    qkv: <D::Executor as Executor>::Buffer,
    attended: <D::Executor as Executor>::Buffer,
    gate_up: <D::Executor as Executor>::Buffer,
    gated: <D::Executor as Executor>::Buffer,
    chosen: <D::Executor as Executor>::Buffer,
    chosen_normed: <D::Executor as Executor>::Buffer,
    logits: <D::Executor as Executor>::Buffer,
    ids: Vec<u32>,
    /// In layers of full attention, and in those with a window.
    angles: [Vec<f32>; 2],
    /// The logits, where they are not on the host.
    host_logits: Vec<f32>,
    distributions: Vec<Option<Distribution>>,
    host_hidden: Vec<f32>,
    spare: Spare<D::Executor>,
}

impl<D: Device> Session for DecoderSession<D> {
    fn pages(&self) -> usize {
        self.pages
    }

    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn step(&mut self, batch: Batch<'_>) -> Result<Outputs<'_>> {
        let model = Arc::clone(&self.model);
        let rows = batch.rows;
        let (config, shape, count) = (&model.config, model.config.heads, rows.len());
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
        self.host_hidden.clear();
        self.distributions.clear();
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
        let adapted = model.adapted(batch)?;
        let (q, kv) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        let run = &mut self.executor;
        let epsilon = config.epsilon;
        config.angles(rows, &mut self.angles);
        if run.begin(batch, shape, &[&self.angles[0], &self.angles[1]])? {
            // Only steps whose rows all have logits are replayed.
            let values = run.host(&mut self.logits, logits.len(), &mut self.host_logits)?;
            run.distributions(values, logits.len(), &mut self.distributions)?;
            return Ok(Outputs {
                logits: values,
                distributions: &self.distributions,
                hidden: &self.host_hidden,
            });
        }
        self.ids.clear();
        self.ids.extend(rows.iter().map(|row| row.token));
        run.embed(
            &model.embedding,
            &self.ids,
            config.embedding_scale,
            &mut self.stream,
            Write::Set,
        )?;
        for (index, (layer, reach)) in model.layers.iter().zip(&config.reach).enumerate() {
            let norm = &layer.attention_norm;
            run.rms_norm(
                &self.stream,
                count,
                norm,
                epsilon,
                &mut self.normed,
                Write::Set,
            )?;
            run.matmul(&self.normed, count, &layer.qkv, &mut self.qkv, Write::Set)?;
            for (adapter, rows) in &adapted {
                let modules = [(Module::Q, 0), (Module::K, q), (Module::V, q + kv)];
                let (spare, x) = (&mut self.spare, &self.normed);
                adapter.apply(run, spare, (index, &modules), rows, x, &mut self.qkv)?;
            }
            if let Some(bias) = &layer.qkv_bias {
                run.add_bias(&mut self.qkv, count, bias)?;
            }
            if let Some((q, k)) = &layer.head_norms {
                run.head_norm(&mut self.qkv, count, shape, (q, k), epsilon)?;
            }
            let angles = &self.angles[usize::from(*reach != Reach::Causal)];
            run.rope(&mut self.qkv, count, shape, angles)?;
            run.store_kv(&self.qkv, batch, shape, index, &mut self.cache)?;
            run.attention(
                &self.qkv,
                batch,
                shape,
                *reach,
                index,
                &self.cache,
                &mut self.attended,
            )?;
            let (attended, out) = (&self.attended, &layer.attention_out);
            let modules = [(Module::AttentionOut, 0)];
            match &layer.post_norms {
                None => {
                    run.matmul(attended, count, out, &mut self.stream, Write::Add)?;
                    for (adapter, rows) in &adapted {
                        let (spare, out) = (&mut self.spare, &mut self.stream);
                        adapter.apply(run, spare, (index, &modules), rows, attended, out)?;
                    }
                }
                Some((norm, _)) => {
                    run.matmul(attended, count, out, &mut self.part, Write::Set)?;
                    for (adapter, rows) in &adapted {
                        let (spare, out) = (&mut self.spare, &mut self.part);
                        adapter.apply(run, spare, (index, &modules), rows, attended, out)?;
                    }
                    run.rms_norm(
                        &self.part,
                        count,
                        norm,
                        epsilon,
                        &mut self.stream,
                        Write::Add,
                    )?;
                }
            }
            let norm = &layer.ffn_norm;
            run.rms_norm(
                &self.stream,
                count,
                norm,
                epsilon,
                &mut self.normed,
                Write::Set,
            )?;
            let gate_up = &layer.gate_up;
            run.matmul(&self.normed, count, gate_up, &mut self.gate_up, Write::Set)?;
            for (adapter, rows) in &adapted {
                let modules = [(Module::Gate, 0), (Module::Up, config.hidden)];
                let (spare, x) = (&mut self.spare, &self.normed);
                adapter.apply(run, spare, (index, &modules), rows, x, &mut self.gate_up)?;
            }
            run.gated(&self.gate_up, count, config.activation, &mut self.gated)?;
            let (gated, modules) = (&self.gated, [(Module::Down, 0)]);
            match &layer.post_norms {
                None => {
                    run.matmul(gated, count, &layer.down, &mut self.stream, Write::Add)?;
                    for (adapter, rows) in &adapted {
                        let (spare, out) = (&mut self.spare, &mut self.stream);
                        adapter.apply(run, spare, (index, &modules), rows, gated, out)?;
                    }
                }
                Some((_, norm)) => {
                    run.matmul(gated, count, &layer.down, &mut self.part, Write::Set)?;
                    for (adapter, rows) in &adapted {
                        let (spare, out) = (&mut self.spare, &mut self.part);
                        adapter.apply(run, spare, (index, &modules), rows, gated, out)?;
                    }
                    run.rms_norm(
                        &self.part,
                        count,
                        norm,
                        epsilon,
                        &mut self.stream,
                        Write::Add,
                    )?;
                }
            }
        }
        let count = logits.len();
        for (wanted, chosen) in [(Output::Logits, logits), (Output::Hidden, hidden)] {
            if chosen.is_empty() {
                continue;
            }
            run.gather(&self.stream, &chosen, &mut self.chosen)?;
            run.rms_norm(
                &self.chosen,
                chosen.len(),
                &model.norm,
                epsilon,
                &mut self.chosen_normed,
                Write::Set,
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
        }
        let mut values: &mut [f32] = &mut [];
        if count > 0 {
            values = run.host(&mut self.logits, count, &mut self.host_logits)?;
            run.distributions(values, count, &mut self.distributions)?;
        }
        Ok(Outputs {
            logits: values,
            distributions: &self.distributions,
            hidden: &self.host_hidden,
        })
    }
}
