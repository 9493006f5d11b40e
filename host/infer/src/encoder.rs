//! The graph of BERT (arXiv:1810.04805), for embeddings: learned positions, layer norms after each part, attention over
//! the whole text, a feed-forward layer with gelu. All-MiniLM-L6-v2 and its kin, from a Hugging Face folder.

use std::sync::Arc;

use crate::folder::Folder;
use crate::network::{Network, Outputs, Session, SessionOptions};
use crate::ops::{
    Batch, CacheShape, Device, Executor, HeadShape, Output, Reach, RopeOrder, Weights, Write,
};
use crate::quant::TensorType;
use crate::weights::{Loader, Source, tensor, vector};
use crate::{Error, Result};

/// The numbers that fix the graph.
#[derive(Debug, Clone)]
pub(crate) struct EncoderConfig {
    layers: usize,
    width: usize,
    hidden: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context: u32,
    epsilon: f32,
    heads: HeadShape,
}

impl EncoderConfig {
    /// Reads `config.json`, and checks it against the tensors' shapes.
    pub(crate) fn read(folder: &Folder) -> Result<Self> {
        for (key, wanted) in [
            ("hidden_act", "gelu"),
            ("position_embedding_type", "absolute"),
        ] {
            if let Some(other) = folder.text(key).filter(|name| *name != wanted) {
                return Err(Error::Unsupported(format!(
                    "config.json: `{key}` is `{other}`; `{wanted}` is supported"
                )));
            }
        }
        let (width, heads) = (
            folder.count("hidden_size")?,
            folder.count("num_attention_heads")?,
        );
        let (layers, hidden) = (
            folder.count("num_hidden_layers")?,
            folder.count("intermediate_size")?,
        );
        let possible =
            heads > 0 && width.is_multiple_of(heads) && (1..=1024).contains(&(width / heads));
        if !possible
            || layers == 0
            || layers > 1024
            || width > 1 << 17
            || hidden == 0
            || hidden > 1 << 20
        {
            return Err(Error::Folder(format!(
                "config.json: {layers} layers of {width} and {hidden} elements with {heads} heads"
            )));
        }
        let context = tensor(folder, "embeddings.position_embeddings.weight")?
            .0
            .rows;
        let vocabulary = tensor(folder, "embeddings.word_embeddings.weight")?.0.rows;
        let head_dim = width / heads;
        Ok(Self {
            layers,
            width,
            hidden,
            vocabulary,
            context: context.min(1 << 16) as u32,
            epsilon: folder.number("layer_norm_eps")? as f32,
            heads: HeadShape {
                heads,
                kv_heads: heads,
                head_dim,
                rope_dim: 0,
                rope_order: RopeOrder::Halves,
                scale: 1.0 / (head_dim as f32).sqrt(),
            },
        })
    }
}

/// Weight and bias of a layer norm.
type Norm<D> = (<D as Device>::Vector, <D as Device>::Vector);

struct Layer<D: Device> {
    qkv: D::Matrix,
    qkv_bias: Option<D::Vector>,
    attention_out: D::Matrix,
    attention_out_bias: D::Vector,
    attention_norm: Norm<D>,
    up: D::Matrix,
    up_bias: D::Vector,
    down: D::Matrix,
    down_bias: D::Vector,
    norm: Norm<D>,
}

/// A loaded encoder.
pub(crate) struct Encoder<D: Device> {
    config: EncoderConfig,
    device: D,
    words: D::Matrix,
    /// Each with the embedding of the first kind of text, which all texts are here.
    positions: D::Matrix,
    norm: Norm<D>,
    layers: Vec<Layer<D>>,
}

impl<D: Device> Encoder<D> {
    /// Loads the weights onto a device.
    pub(crate) fn load(source: &dyn Source, config: EncoderConfig, device: D) -> Result<Self> {
        const TYPES: &str = "embeddings.token_type_embeddings.weight";
        const POSITIONS: &str = "embeddings.position_embeddings.weight";
        // The pooler serves another task than embeddings.
        let known = [TYPES, POSITIONS, "pooler.dense.weight", "pooler.dense.bias"];
        let mut loader = Loader::new(source, &device, &known);
        let (width, hidden) = (config.width, config.hidden);
        let norm = |loader: &mut Loader<'_, D>, name: &str| -> Result<Norm<D>> {
            let mut one = |part| loader.vector(format!("{name}.LayerNorm.{part}"), width, 0.0);
            Ok((one("weight")?, one("bias")?))
        };
        let (of_types, rows) = tensor(source, TYPES)?;
        if of_types.columns != width {
            return Err(source.invalid(format!("tensor {TYPES}: {} columns", of_types.columns)));
        }
        let mut first = vec![0.0; width];
        of_types
            .kind
            .dequantise(&rows[..of_types.kind.row_bytes(width)], &mut first);
        let count = tensor(source, POSITIONS)?.0.rows;
        let mut positions = vector(source, POSITIONS, count * width)?;
        for row in positions.chunks_exact_mut(width) {
            row.iter_mut()
                .zip(&first)
                .for_each(|(x, first)| *x += first);
        }
        let bytes: Vec<u8> = positions.iter().flat_map(|x| x.to_le_bytes()).collect();
        let positions = device.matrix(&[Weights {
            kind: TensorType::F32,
            rows: count,
            columns: width,
            bytes: &bytes,
        }])?;
        let words = "embeddings.word_embeddings.weight".to_owned();
        let words = loader.matrix(&[(words, config.vocabulary)], width)?;
        let embedding_norm = norm(&mut loader, "embeddings")?;
        let mut layers = Vec::new();
        for index in 0..config.layers {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            let of_heads =
                ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
            let all = |part: &str| {
                of_heads
                    .clone()
                    .map(|name| (format!("{name}.{part}"), width))
            };
            layers.push(Layer {
                qkv: loader.matrix(&all("weight"), width)?,
                qkv_bias: loader.biases(&all("bias"))?,
                attention_out: loader
                    .matrix(&[(name("attention.output.dense.weight"), width)], width)?,
                attention_out_bias: loader.vector(
                    name("attention.output.dense.bias"),
                    width,
                    0.0,
                )?,
                attention_norm: norm(&mut loader, &name("attention.output"))?,
                up: loader.matrix(&[(name("intermediate.dense.weight"), hidden)], width)?,
                up_bias: loader.vector(name("intermediate.dense.bias"), hidden, 0.0)?,
                down: loader.matrix(&[(name("output.dense.weight"), width)], hidden)?,
                down_bias: loader.vector(name("output.dense.bias"), width, 0.0)?,
                norm: norm(&mut loader, &name("output"))?,
            });
        }
        loader.finish("encoder's")?;
        Ok(Self {
            config,
            device,
            words,
            positions,
            norm: embedding_norm,
            layers,
        })
    }
}

impl<D: Device> Network for Encoder<D> {
    fn session(self: Arc<Self>, options: SessionOptions) -> Result<Box<dyn Session>> {
        let executor = self.device.executor(options.threads)?;
        let config = &self.config;
        // One layer after another uses the same keys and values: there is no later step that needs them.
        let mut shape = CacheShape {
            layers: 1,
            pages: 1,
            kv_heads: config.heads.kv_heads,
            head_dim: config.heads.head_dim,
        };
        let page_bytes = executor.page_bytes(shape);
        shape.pages = (options.kv_bytes / page_bytes).max(1);
        let rows = options.rows;
        Ok(Box::new(EncoderSession {
            pages: shape.pages,
            page_bytes,
            cache: executor.cache(shape)?,
            sum: executor.buffer(rows, config.width)?,
            stream: executor.buffer(rows, config.width)?,
            qkv: executor.buffer(rows, config.heads.width())?,
            attended: executor.buffer(rows, config.width)?,
            inner: executor.buffer(rows, config.hidden)?,
            chosen: executor.buffer(options.outputs, config.width)?,
            ids: Vec::new(),
            places: Vec::new(),
            host_hidden: Vec::new(),
            options,
            executor,
            model: self,
        }))
    }
}

struct EncoderSession<D: Device> {
    model: Arc<Encoder<D>>,
    executor: D::Executor,
    options: SessionOptions,
    pages: usize,
    page_bytes: usize,
    cache: <D::Executor as Executor>::Cache,
    /// The stream before each norm, and after it.
    sum: <D::Executor as Executor>::Buffer,
    stream: <D::Executor as Executor>::Buffer,
    qkv: <D::Executor as Executor>::Buffer,
    attended: <D::Executor as Executor>::Buffer,
    inner: <D::Executor as Executor>::Buffer,
    chosen: <D::Executor as Executor>::Buffer,
    ids: Vec<u32>,
    places: Vec<u32>,
    host_hidden: Vec<f32>,
}

impl<D: Device> Session for EncoderSession<D> {
    fn pages(&self) -> usize {
        self.pages
    }

    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn step(&mut self, batch: Batch<'_>) -> Result<Outputs<'_>> {
        let model = Arc::clone(&self.model);
        let (rows, config, shape) = (batch.rows, &model.config, model.config.heads);
        let count = rows.len();
        let chosen = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.output == Output::Hidden);
        let chosen: Vec<usize> = chosen.map(|(index, _)| index).collect();
        self.host_hidden.clear();
        if rows.iter().any(|row| row.output == Output::Logits) {
            return Err(Error::Invalid(
                "an encoder embeds texts; it does not generate or score".into(),
            ));
        }
        if count > self.options.rows || chosen.len() > self.options.outputs {
            return Err(Error::Device(
                "a step larger than the session was made for".into(),
            ));
        }
        if rows
            .iter()
            .any(|row| row.token as usize >= config.vocabulary || row.position >= config.context)
        {
            return Err(Error::Invalid(format!(
                "a token id beyond the vocabulary of {}, or a place beyond the context of {}",
                config.vocabulary, config.context
            )));
        }
        self.ids.clear();
        self.ids.extend(rows.iter().map(|row| row.token));
        self.places.clear();
        self.places.extend(rows.iter().map(|row| row.position));
        let (run, epsilon) = (&mut self.executor, config.epsilon);
        // Its steps hardly come again with the same layout; none is replayed.
        run.begin(batch, shape, &[])?;
        run.embed(&model.words, &self.ids, 1.0, &mut self.sum, Write::Set)?;
        run.embed(
            &model.positions,
            &self.places,
            1.0,
            &mut self.sum,
            Write::Add,
        )?;
        let norm = (&model.norm.0, &model.norm.1);
        run.layer_norm(&self.sum, count, norm, epsilon, &mut self.stream)?;
        for layer in &model.layers {
            run.matmul(&self.stream, count, &layer.qkv, &mut self.qkv, Write::Set)?;
            if let Some(bias) = &layer.qkv_bias {
                run.add_bias(&mut self.qkv, count, bias)?;
            }
            run.store_kv(&self.qkv, batch, shape, 0, &mut self.cache)?;
            run.attention(
                &self.qkv,
                batch,
                shape,
                Reach::Whole,
                0,
                &self.cache,
                &mut self.attended,
            )?;
            // x = norm(x + part(x)), twice: the sums are formed in place, and the norms go to the other buffer.
            let out = &layer.attention_out;
            run.matmul(&self.attended, count, out, &mut self.stream, Write::Add)?;
            run.add_bias(&mut self.stream, count, &layer.attention_out_bias)?;
            let norm = (&layer.attention_norm.0, &layer.attention_norm.1);
            run.layer_norm(&self.stream, count, norm, epsilon, &mut self.sum)?;
            run.matmul(&self.sum, count, &layer.up, &mut self.inner, Write::Set)?;
            run.add_bias(&mut self.inner, count, &layer.up_bias)?;
            run.gelu(&mut self.inner, count)?;
            run.matmul(&self.inner, count, &layer.down, &mut self.sum, Write::Add)?;
            run.add_bias(&mut self.sum, count, &layer.down_bias)?;
            let norm = (&layer.norm.0, &layer.norm.1);
            run.layer_norm(&self.sum, count, norm, epsilon, &mut self.stream)?;
        }
        run.gather(&self.stream, &chosen, &mut self.chosen)?;
        run.read(&self.chosen, chosen.len(), &mut self.host_hidden)?;
        Ok(Outputs {
            logits: &mut [],
            distributions: &[],
            hidden: &self.host_hidden,
        })
    }
}
