// Warns when too many answers are empty.
// @ts-check
import { bytesOf, plugin, textOf } from "../vendor/millgate/millgate.js";

export const { lifecycle, monitoring } = plugin({
  configure: (/** @type {{share: number, "at-least": number}} */ config) => ({
    config,
    answers: 0,
    empty: 0,
  }),

  monitoring: {
    observe(state, events) {
      for (const event of events) {
        const tokens = event.measures.find((measure) => measure.name === "completion-tokens");
        if (!tokens) continue;
        state.answers += 1;
        if (tokens.value === 0) state.empty += 1;
      }
      return report(state);
    },
    tick: (state, _nowMs) => report(state),
    // What survives a restart.
    save: (state) => bytesOf(JSON.stringify([state.answers, state.empty])),
    restore(state, bytes) {
      [state.answers, state.empty] = JSON.parse(textOf(bytes));
    },
    merge(state, bytes) {
      const [answers, empty] = JSON.parse(textOf(bytes));
      state.answers += answers;
      state.empty += empty;
    },
  },
});

function report({ config, answers, empty }) {
  const value = answers > 0 ? empty / answers : 0;
  const enough = answers >= config["at-least"];
  const severity = !enough ? "no-data" : value >= config.share ? "critical" : "ok";
  const message = `${empty} of ${answers} answers were empty`;
  return {
    alerts: [{ rule: "empty-answers", severity, value, threshold: config.share, message }],
    metrics: [{ name: "empty-share", value }],
  };
}
