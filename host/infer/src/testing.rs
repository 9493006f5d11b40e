//! A writer of small GGUF files, for tests.

use crate::quant::TensorType;

/// Collects keys and tensors, and writes them as a version 3 file. It writes what it is told, lies included.
#[derive(Default)]
pub(crate) struct GgufBuilder {
    keys: Vec<Vec<u8>>,
    tensors: Vec<(String, TensorType, usize, usize, Vec<u8>)>,
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
        let mut out = Vec::new();
        put_string(&mut out, name);
        out.extend(kind.to_le_bytes());
        out.extend(value);
        self.keys.push(out);
        self
    }

    pub(crate) fn string(self, name: &str, value: &str) -> Self {
        let mut out = Vec::new();
        put_string(&mut out, value);
        self.key(name, 8, &out)
    }

    pub(crate) fn u32(self, name: &str, value: u32) -> Self {
        self.key(name, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, name: &str, value: f32) -> Self {
        self.key(name, 6, &value.to_le_bytes())
    }

    pub(crate) fn strings<S: AsRef<str>>(self, name: &str, values: &[S]) -> Self {
        let mut out = 8u32.to_le_bytes().to_vec();
        out.extend((values.len() as u64).to_le_bytes());
        for value in values {
            put_string(&mut out, value.as_ref());
        }
        self.key(name, 9, &out)
    }

    #[cfg(test)]
    pub(crate) fn f32s(self, name: &str, values: &[f32]) -> Self {
        let mut out = 6u32.to_le_bytes().to_vec();
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.key(name, 9, &out)
    }

    pub(crate) fn i32s(self, name: &str, values: &[i32]) -> Self {
        let mut out = 5u32.to_le_bytes().to_vec();
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.key(name, 9, &out)
    }

    /// A tensor of `rows` rows of `columns` elements, with these bytes.
    pub(crate) fn tensor(
        mut self,
        name: &str,
        kind: TensorType,
        columns: usize,
        rows: usize,
        bytes: &[u8],
    ) -> Self {
        self.tensors
            .push((name.into(), kind, columns, rows, bytes.to_vec()));
        self
    }

    pub(crate) fn build(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        let mut data = Vec::new();
        for (name, kind, columns, rows, bytes) in &self.tensors {
            put_string(&mut out, name);
            out.extend(2u32.to_le_bytes());
            out.extend((*columns as u64).to_le_bytes());
            out.extend((*rows as u64).to_le_bytes());
            out.extend(kind.code().to_le_bytes());
            data.resize(data.len().next_multiple_of(32), 0);
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

/// Opens a file of these bytes.
#[cfg(test)]
pub(crate) fn open(bytes: &[u8]) -> crate::Result<crate::gguf::Gguf> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    crate::gguf::Gguf::open(file.path())
}

/// Random bytes of a tensor, with scales that keep a model's numbers tame.
pub(crate) fn random_tensor(kind: TensorType, elements: usize, seed: u64) -> Vec<u8> {
    use rand::{Rng as _, SeedableRng as _};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut out = Vec::new();
    for _ in 0..elements / kind.block_len() {
        let value: f32 = random.random_range(-0.2..0.2);
        // The steps of the quantised types: together they span about -0.2 to 0.2.
        let (step, least) = (random.random_range(0.8..1.2) * 0.4, -0.2);
        let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
        let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| random.random()).collect();
        // Where the scales lie, and what they are.
        let scales: &[(usize, f32)] = match kind {
            TensorType::F32 => {
                block.copy_from_slice(&value.to_le_bytes());
                &[]
            }
            TensorType::F16 => &[(0, value)],
            TensorType::Bf16 => {
                block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
                &[]
            }
            TensorType::Q4_0 => &[(0, step / 15.0)],
            TensorType::Q4_1 => &[(0, step / 15.0), (2, least)],
            TensorType::Q5_0 => &[(0, step / 31.0)],
            TensorType::Q5_1 => &[(0, step / 31.0), (2, least)],
            TensorType::Q8_0 | TensorType::Iq4Nl => &[(0, step / 255.0)],
            TensorType::Q2K => &[(80, step / 24.0), (82, -least / 8.0)],
            TensorType::Q3K => &[(108, step / 128.0)],
            TensorType::Q4K => &[(0, step / 480.0), (2, -least / 32.0)],
            TensorType::Q5K => &[(0, step / 992.0), (2, -least / 32.0)],
            TensorType::Q6K => &[(208, step / 4096.0)],
        };
        for (at, value) in scales {
            block[*at..at + 2].copy_from_slice(&half(*value));
        }
        out.extend(block);
    }
    out
}

/// A llama of two layers with random weights of one type: all bytes and two control tokens as vocabulary,
/// grouped-query attention, a context of `context` tokens.
pub(crate) fn tiny_llama(kind: TensorType, context: u32) -> Vec<u8> {
    // Every row holds whole blocks.
    let (width, hidden, head_dim) = match kind.block_len() {
        256 => (256, 256, 64),
        _ => (64, 96, 16),
    };
    let (heads, kv_heads, vocabulary) = (4, 2, 258);
    let mut tokens: Vec<String> = crate::tokenizer::byte_alphabet()
        .iter()
        .map(char::to_string)
        .collect();
    tokens.extend(["<|im_start|>", "<|im_end|>"].map(String::from));
    let mut kinds = vec![1; 256];
    kinds.extend([3, 3]);
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let mut file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .string("general.name", "tiny")
        .u32("llama.block_count", 2)
        .u32("llama.embedding_length", width)
        .u32("llama.feed_forward_length", hidden)
        .u32("llama.attention.head_count", heads)
        .u32("llama.attention.head_count_kv", kv_heads)
        .u32("llama.attention.key_length", head_dim)
        .u32("llama.context_length", context)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10_000.0)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "gpt-2")
        .strings("tokenizer.ggml.tokens", &tokens)
        .strings::<&str>("tokenizer.ggml.merges", &[])
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.eos_token_id", 257)
        .string("tokenizer.chat_template", template);
    let mut seed = 0;
    let mut add = |file: GgufBuilder, name: String, kind: TensorType, columns: u32, rows: u32| {
        seed += 1;
        let (columns, rows) = (columns as usize, rows as usize);
        file.tensor(
            &name,
            kind,
            columns,
            rows,
            &random_tensor(kind, columns * rows, seed),
        )
    };
    let norm = |file: GgufBuilder, name: &str| {
        file.tensor(
            name,
            TensorType::F32,
            width as usize,
            1,
            &1f32.to_le_bytes().repeat(width as usize),
        )
    };
    file = add(file, "token_embd.weight".into(), kind, width, vocabulary);
    for layer in 0..2 {
        file = norm(file, &format!("blk.{layer}.attn_norm.weight"));
        file = norm(file, &format!("blk.{layer}.ffn_norm.weight"));
        for (name, columns, rows) in [
            ("attn_q", width, heads * head_dim),
            ("attn_k", width, kv_heads * head_dim),
            ("attn_v", width, kv_heads * head_dim),
            ("attn_output", heads * head_dim, width),
            ("ffn_gate", width, hidden),
            ("ffn_up", width, hidden),
            ("ffn_down", hidden, width),
        ] {
            file = add(
                file,
                format!("blk.{layer}.{name}.weight"),
                kind,
                columns,
                rows,
            );
        }
    }
    norm(file, "output_norm.weight").build()
}

/// What is said here is of the processor, also on a machine with a GPU.
#[cfg(test)]
pub(crate) fn cpu() -> crate::ModelOptions {
    crate::ModelOptions {
        device: crate::DeviceChoice::Cpu,
        ..crate::ModelOptions::default()
    }
}

/// Opens a model of these bytes.
#[cfg(test)]
pub(crate) fn model(
    bytes: &[u8],
    options: &crate::ModelOptions,
) -> crate::Result<std::sync::Arc<crate::Model>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    crate::Model::open(file.path(), options)
}
