// Refuses texts that are too long.
// @ts-check
import { plugin } from "../vendor/millgate/millgate.js";

export const { lifecycle, validation } = plugin({
  configure: (/** @type {{"max-characters": number}} */ config) => config["max-characters"],

  validation: {
    // As many judgements as samples, in the same order.
    validate: (max, _ctx, samples) => samples.map((sample) => judge(max, sample)),
  },
});

function judge(max, sample) {
  for (const segment of sample.segments) {
    const characters = [...segment.text].length;
    if (characters > max) {
      const message = `${segment.path} has ${characters} characters, at most ${max} are allowed`;
      const finding = { rule: "length", span: undefined, score: 1, explanation: message };
      return { outcome: { tag: "reject", val: message }, findings: [finding] };
    }
  }
  return { outcome: { tag: "accept" }, findings: [] };
}
