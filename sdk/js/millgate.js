// Write a Millgate plugin in JavaScript: a config and one check.
//
// Spans are indices of the JavaScript string that the check was given; this file turns them into
// the contract's byte offsets (UTF-8, counted from the segment's first byte).

// The component's glue decodes texts with a `TextDecoder` that drops a byte order mark (U+FEFF) at
// their beginning. To a plugin it is a character like any other: without it all offsets would be
// wrong. In Node, where the tests run, nothing needs mending.
if (typeof globalThis.process === "undefined") {
  const { decode } = TextDecoder.prototype;
  TextDecoder.prototype.decode = function (input, options) {
    const text = decode.call(this, input, options);
    const marked = this.encoding === "utf-8" && input?.[0] === 0xef && input[1] === 0xbb && input[2] === 0xbf;
    return marked ? `\ufeff${text}` : text;
  };
}

/** The bytes of a string in UTF-8. @param {string} text */
export function utf8Length(text) {
  let bytes = 0;
  for (let at = 0; at < text.length; at += 1) {
    const unit = text.charCodeAt(at);
    // Each half of a surrogate pair stands for two of the pair's four bytes.
    bytes += unit < 0x80 ? 1 : unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 2 : 3;
  }
  return bytes;
}

/** Whether an index lies inside a surrogate pair. @param {string} text @param {number} at */
function splitsPair(text, at) {
  const unit = text.charCodeAt(at);
  const before = text.charCodeAt(at - 1);
  return unit >= 0xdc00 && unit < 0xe000 && before >= 0xd800 && before < 0xdc00;
}

/**
 * An error of the contract. Throw it; the host shows its message.
 * @param {"invalid-config"|"invalid-input"|"denied"|"unavailable"|"internal"} kind
 * @param {string} code a short stable word in kebab case
 * @param {string} message one sentence: what is wrong and what to do about it
 */
export function stageError(kind, code, message) {
  // The component's glue takes the payload of a thrown error for the `err` case of a result.
  return Object.assign(new Error(message), { payload: { kind, code, message } });
}

/** What a check found in its window. */
export class Checked {
  constructor() {
    /** @type {{start: number, end: number, replacement: string}[]} */
    this.edits = [];
    /** @type {{rule: string, score: number, explanation: string, start?: number, end?: number}[]} */
    this.findings = [];
    /** @type {null | {tag: "block", code: string, message: string} | {tag: "regenerate", keep: number, ban: string[], code: string, message: string}} */
    this.decision = null;
  }

  /** Reports without changing anything. `start` and `end` may be left out. */
  note(rule, explanation, { score = 1, start, end } = {}) {
    this.findings.push({ rule, score, explanation, start, end });
    return this;
  }

  /** Replaces the text from `start` to `end`, and says why. Where two overlap, the first wins. */
  replace(start, end, replacement, rule, explanation, score = 1) {
    this.edits.push({ start, end, replacement });
    return this.note(rule, explanation, { score, start, end });
  }

  /** Refuses the text. The message goes to the client and must not repeat what was refused. */
  block(code, message) {
    this.decision = { tag: "block", code, message };
    return this;
  }

  /** Has the model say it again from `keep` on, without the banned strings. */
  regenerate(keep, ban, code, message) {
    this.decision = { tag: "regenerate", keep, ban, code, message };
    return this;
  }
}

/**
 * The length of the next window, or -1 while its end is not there. It depends on the text alone,
 * never on where its chunks break: that makes the result split invariant, whatever the check does.
 * @param {string} text @param {"whole" | {lines: number}} window
 */
function windowLength(text, window) {
  if (window === "whole") return -1;
  const max = Math.max(window.lines, 2);
  const newline = text.indexOf("\n");
  if (newline >= 0 && newline < max) return newline + 1;
  // One more unit than `max` is waited for, so that a pair is seen as a pair.
  if (text.length <= max) return -1;
  return splitsPair(text, max) ? max - 1 : max;
}

/**
 * Turns a check of one window into a streaming inspection.
 *
 * @template State
 * @param {{
 *   window: "whole" | {lines: number},
 *   check: (state: State, segment: {role: string, direction: string, language: string}, text: string) => Checked,
 * }} rule `whole` holds everything back until the segment is complete; `lines` judges line by
 *   line (a line that is longer than so many UTF-16 units is cut there)
 * @param {() => State} state
 */
function inspection(rule, state) {
  return class Inspection {
    /** @param {import('./types/interfaces/millgate-stage-context').Context} ctx */
    constructor(ctx) {
      // The context is lent for the constructor only, so what is needed of it is read here.
      this.segment = {
        role: ctx.role(),
        direction: ctx.direction(),
        language: ctx.language(),
      };
      this.text = "";
      this.settled = 0;
      this.judged = rule.window !== "whole";
      this.refused = null;
    }

    push(chunks) {
      this.text += chunks.join("");
      return this.advance(false);
    }

    finish() {
      return this.advance(true);
    }

    advance(complete) {
      const verdict = { settled: this.settled, edits: [], findings: [], decision: { tag: "pass" } };
      if (this.refused) return { ...verdict, decision: this.refused };
      for (;;) {
        let length = windowLength(this.text, rule.window);
        if (length < 0) {
          if (!complete || (this.text === "" && this.judged)) return verdict;
          length = this.text.length;
        }
        this.judged = true;
        const text = this.text.slice(0, length);
        const decided = this.judge(text, verdict);
        if (decided) return verdict;
        this.text = this.text.slice(length);
        this.settled += utf8Length(text);
        verdict.settled = this.settled;
      }
    }

    /** Judges one window; true where that ends the segment. */
    judge(text, verdict) {
      const checked = rule.check(state(), this.segment, text);
      const span = (start, end) => {
        const sound = Number.isInteger(start) && Number.isInteger(end) && start >= 0 && start <= end && end <= text.length;
        if (!sound || splitsPair(text, start) || splitsPair(text, end)) {
          throw stageError("internal", "span-out-of-range", `the check returned the span ${start}..${end}, which is no range of characters of its window`);
        }
        const from = this.settled + utf8Length(text.slice(0, start));
        return { start: from, end: from + utf8Length(text.slice(start, end)) };
      };
      for (const { rule: name, score, explanation, start, end } of checked.findings) {
        const at = start === undefined ? undefined : span(start, end);
        verdict.findings.push({ rule: name, span: at, score, explanation });
      }
      const decision = checked.decision;
      if (decision?.tag === "block") {
        verdict.decision = { tag: "block", val: { code: decision.code, message: decision.message } };
        this.refused = verdict.decision;
        return true;
      }
      if (decision?.tag === "regenerate") {
        const { start: keep } = span(decision.keep, decision.keep);
        verdict.decision = { tag: "regenerate", val: { keep, ban: decision.ban, reason: { code: decision.code, message: decision.message } } };
        // The model says the rest again.
        this.text = text.slice(0, decision.keep);
        return true;
      }
      let from = 0;
      for (const edit of [...checked.edits].sort((a, b) => a.start - b.start || a.end - b.end)) {
        const at = span(edit.start, edit.end);
        if (edit.start < from) continue;
        from = edit.end;
        verdict.edits.push({ span: at, replacement: edit.replacement });
      }
      return false;
    }
  };
}

/**
 * Makes the exports of a plugin.
 *
 * @template Config, State
 * @param {{
 *   configure: (config: Config) => State,
 *   compliance?: {window: "whole" | {lines: number}, check: (state: State, segment: {role: string, direction: string, language: string}, text: string) => Checked},
 *   validation?: {validate: (state: State, ctx: any, samples: any[]) => any[]},
 *   monitoring?: {observe: Function, tick: Function, save: Function, restore: Function, merge: Function},
 *   deployment?: {route: Function, review: Function, save: Function, restore: Function},
 *   evaluation?: {evaluate: (state: State, ctx: any, answers: any[]) => any},
 * }} parts `configure` makes the state of the config (defaults filled in, checked against the
 *   schema in plugin.toml); each function of an interface gets that state before its arguments
 */
export function plugin(parts) {
  let state;
  const withState = (functions) =>
    functions &&
    Object.fromEntries(
      Object.entries(functions).map(([name, run]) => [name, (...args) => run(state, ...args)]),
    );
  return {
    lifecycle: {
      configure(config) {
        state = parts.configure(JSON.parse(config.trim() || "{}"));
      },
    },
    compliance: parts.compliance && { Inspection: inspection(parts.compliance, () => state) },
    validation: withState(parts.validation),
    monitoring: withState(parts.monitoring),
    deployment: withState(parts.deployment),
    evaluation: withState(parts.evaluation),
  };
}

/** Bytes of a text of ASCII characters, for `save`. @param {string} text */
export function bytesOf(text) {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** The text of such bytes, for `restore`. @param {Uint8Array} bytes */
export function textOf(bytes) {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}
