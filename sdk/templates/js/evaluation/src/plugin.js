// Scores 1 where the answer contains a reference.
// @ts-check
import { plugin } from "../vendor/millgate/millgate.js";

export const { lifecycle, evaluation } = plugin({
  configure: (/** @type {{"ignore-case": boolean}} */ config) => config["ignore-case"],

  evaluation: {
    evaluate(ignoreCase, _ctx, answers) {
      const fold = (text) => (ignoreCase ? text.replace(/[A-Z]/g, (c) => c.toLowerCase()) : text);
      const cases = answers.map(({ id, output, references }) => {
        const value = references.some((reference) => fold(output).includes(fold(reference))) ? 1 : 0;
        const scores = references.length > 0 ? [{ name: "contains", value, explanation: "" }] : [];
        return { id, scores };
      });
      return { cases, aggregate: [] };
    },
  },
});
