// The plugin without a sandbox: `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { compliance, lifecycle } from "../src/plugin.js";
import { inspect } from "../vendor/millgate/testing.js";

test("words on the list are masked wherever the chunks break", () => {
  lifecycle.configure(JSON.stringify({ words: ["foo"] }));
  const { text, findings } = inspect(compliance, ["😀 a fo", "o walks", " in"]);
  assert.equal(text, "😀 a *** walks in");
  assert.deepEqual(findings[0].span, { start: 7, end: 10 });
});
