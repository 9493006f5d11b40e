#!/usr/bin/env python3
"""Writes golden.json: scores of random answers by the reference implementations.

    python3 -m venv venv && venv/bin/pip install sacrebleu==2.5.1 rouge-score==0.1.2
    venv/bin/python make_golden.py > golden.json

Exact match and token F1 follow SQuAD's evaluate-v2.0.py, which is no package: its four functions
are written out below.
"""

import collections
import json
import random
import re
import string
import sys

import sacrebleu
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

random.seed(20)

ENGLISH = """the a an The A cat cats sat sitting on mat mats quick quickly brown fox foxes jumped jumping
over lazy dog's dogs it's don't running runner relational conditional electricity electrical hopeful
hopefulness generalization happily happy agreed skies dying news geology adjustment replacement
university 1990-1995 3,000.50 $5 50% x=y C++ e.g. i.e. U.S. Mr. end. end, (or) [see] "quoted" 'single'
well-known state-of-the-art a.m. 10:30 & &amp; &quot;so&quot; &lt;b&gt; <skipped> https://example.org/a?b=c#d
user@example.org - -- ... ?! / \\ | ~ ` ^ _ under_score""".split()
OTHER = """naïve café Straße İstanbul \u212aelvin größer éléphant Москва кошка сидела на коврике 猫が マットの上に
座った 北京 大学 قطة جلست על שטיח हिन्दी में ฉันรัก 한국어 문장 🙂 👨‍👩‍👧 🇫🇷 e\u0301 ﬁnd Ω ½ ² — – … “curly” ‘q’ ¿qué? «oui»
۱۲۳ ٣ Ⅷ ǅ ß\u00adsoft the\u2019s a\u00a0b""".split(" ")
SPACES = [" "] * 12 + ["  ", "\t", "\n", " \n", "-\n", "\u00a0", "\u2003", "\x1f", "\u200b", ""]


def sentence(words, most=24):
    return "".join(random.choice(words) + random.choice(SPACES) for _ in range(random.randint(0, most)))


def changed(text, words):
    parts = re.split(r"(\s+)", text)
    for _ in range(random.randint(0, 6)):
        if not parts:
            break
        at = random.randrange(len(parts))
        action = random.randrange(4)
        if action == 0:
            del parts[at]
        elif action == 1:
            parts.insert(at, random.choice(words) + " ")
        elif action == 2:
            parts[at] = random.choice(words)
        else:
            other = random.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
    return "".join(parts)


def cases():
    yield "", [""]
    yield "", ["a reference"]
    yield "an answer", [""]
    yield "the", ["a"]
    yield "...", ["."]
    yield "same", ["same"]
    yield " a b c d ", ["a b c d"]
    yield "猫", ["猫"]
    yield "\u212a\u0130", ["k i"]
    yield "one two three four five", ["six seven eight nine ten"]
    yield "a" * 200, ["a" * 150, "b"]
    yield "running runners ran", ["run runner runs", "", "running"]
    for index in range(200):
        words = [ENGLISH, ENGLISH + OTHER, OTHER][index % 3]
        if index % 5 == 4:
            words = words[:8]
        answer = sentence(words)
        count = random.choice([1, 1, 1, 2, 3])
        yield answer, [changed(answer, words) if random.random() < 0.8 else sentence(words) for _ in range(count)]


def normal(text):
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text, flags=re.UNICODE).split())


def token_f1(answer, reference):
    answer, reference = normal(answer).split(), normal(reference).split()
    common = sum((collections.Counter(answer) & collections.Counter(reference)).values())
    if not answer or not reference:
        return float(answer == reference)
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def columns(lists):
    """sacreBLEU takes references by column; a case with fewer has None."""
    width = max(len(refs) for refs in lists)
    return [[refs[i] if i < len(refs) else None for refs in lists] for i in range(width)]


def main():
    plain = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    stemmed = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = []
    for output, references in cases():
        scores = {
            "exact-match": float(any(normal(output) == normal(ref) for ref in references)),
            "token-f1": max(token_f1(output, ref) for ref in references),
            "chrf": sacrebleu.sentence_chrf(output, references).score,
            "chrf++": sacrebleu.sentence_chrf(output, references, word_order=2).score,
            "bleu": sacrebleu.sentence_bleu(output, references).score,
        }
        for suffix, scorer in (("", plain), ("-stemmed", stemmed)):
            for name, score in scorer.score_multi(references, output).items():
                name = {"rouge1": "rouge-1", "rouge2": "rouge-2", "rougeL": "rouge-l"}[name]
                scores[name + suffix] = float(score.fmeasure)
        rows.append({"output": output, "references": references, "scores": scores})
    # Sets: all answers, and ten of twenty each.
    sets = []
    for low, high in [(0, len(rows))] + [(start, start + 20) for start in range(0, 200, 20)]:
        part = rows[low:high]
        outputs, references = [row["output"] for row in part], columns([row["references"] for row in part])
        bleu = BLEU()
        sets.append({
            "from": low,
            "to": high,
            "corpus-bleu": bleu.corpus_score(outputs, references).score,
            "corpus-chrf": CHRF().corpus_score(outputs, references).score,
            "corpus-chrf++": CHRF(word_order=2).corpus_score(outputs, references).score,
        })
        print(bleu.get_signature(), file=sys.stderr)
    json.dump({"cases": rows, "sets": sets}, sys.stdout, ensure_ascii=True, indent=1)
    print()


if __name__ == "__main__":
    main()
