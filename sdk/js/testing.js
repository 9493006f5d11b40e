// Runs a plugin without a sandbox, for `node --test`.

/** A context as the host lends it. */
export function context({ role = "user", direction = "input", language = "", seed = 1n } = {}) {
  return {
    traceId: () => "test",
    tenant: () => "default",
    model: () => "test",
    stage: () => "test",
    direction: () => direction,
    role: () => role,
    language: () => language,
    nowMs: () => 0n,
    seed: () => seed,
  };
}

/** What leaves when the chunks pass an inspection: `{ text, findings, decision }`. */
export function inspect(compliance, chunks, ctx = context()) {
  const inspection = new compliance.Inspection(ctx);
  const verdicts = chunks.map((chunk) => () => inspection.push([chunk]));
  const source = Buffer.from(chunks.join(""));
  const left = [];
  const findings = [];
  let settled = 0;
  for (const next of [...verdicts, () => inspection.finish()]) {
    const verdict = next();
    for (const edit of verdict.edits) {
      left.push(source.subarray(settled, edit.span.start), Buffer.from(edit.replacement));
      settled = edit.span.end;
    }
    left.push(source.subarray(settled, verdict.settled));
    settled = verdict.settled;
    findings.push(...verdict.findings);
    if (verdict.decision.tag !== "pass") {
      return { text: Buffer.concat(left).toString(), findings, decision: verdict.decision };
    }
  }
  return { text: Buffer.concat(left).toString(), findings, decision: { tag: "pass" } };
}
