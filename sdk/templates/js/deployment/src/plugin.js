// Splits users by a hash, and rolls back a candidate that fails more often.
// @ts-check
import { plugin } from "../vendor/millgate/millgate.js";

export const { lifecycle, deployment } = plugin({
  configure: (/** @type {{margin: number, "at-least": number}} */ config) => config,

  deployment: {
    route(_config, _ctx, features, arms) {
      const user = features.find((feature) => feature.name === "user")?.value ?? "";
      const bucket = hash(user) / 2 ** 32;
      let below = 0;
      for (const arm of arms) {
        below += arm.weight;
        if (bucket < below || arm === arms[arms.length - 1]) {
          const reason = `sticky by user, bucket ${bucket.toFixed(2)}`;
          return { arm: arm.name, propensity: arm.weight || 1, reason };
        }
      }
    },
    review(config, rollout) {
      const [stable, candidate] = ["stable", "candidate"].map((role) => errors(rollout, role));
      const evidence = [{ name: "effect", value: candidate.rate - stable.rate }];
      if (Math.min(stable.requests, candidate.requests) < config["at-least"]) {
        return { action: { tag: "hold" }, reason: "too few requests", evidence };
      }
      const reason = `the candidate's error rate is ${candidate.rate.toFixed(3)}, the stable arm's ${stable.rate.toFixed(3)}`;
      const worse = candidate.rate > stable.rate + config.margin;
      return { action: { tag: worse ? "roll-back" : "hold" }, reason, evidence };
    },
    // Nothing is remembered.
    save: () => new Uint8Array(),
    restore: () => {},
  },
});

function errors(rollout, role) {
  const arm = rollout.arms.find((summary) => summary.arm.role === role);
  const metric = arm?.metrics.find((summary) => summary.name === "error");
  return { requests: Number(arm?.requests ?? 0), rate: metric?.mean ?? 0 };
}

/** FNV-1a over UTF-16 units, then a mix of its bits (MurmurHash3's finalizer). */
function hash(text) {
  let h = 0x811c9dc5;
  for (let at = 0; at < text.length; at += 1) h = Math.imul(h ^ text.charCodeAt(at), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
