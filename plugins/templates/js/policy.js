// A policy of the Forethought proxy.

const KEYS = ["threshold", "hazards"];
let config;

export const policy = {
  // Called once in every new instance, with what the operator writes under `config`. What is thrown is the error.
  init(json) {
    config = { threshold: 0.5, hazards: {}, ...JSON.parse(json) };
    const wrong = Object.keys(config).find((key) => !KEYS.includes(key));
    if (wrong !== undefined) throw `there is no key ${wrong}`;
    // Making an instance takes a millisecond, so one is used for many requests: keep nothing of a request in it.
    return { name: "{{name}}", version: "0.1.0", stateful: true };
  },

  decideRequest(request, evidence, soFar) {
    const threshold = config.hazards[evidence.hazard] ?? config.threshold;
    // A score that is not a number compares false: written this way round, it refuses.
    if (evidence.score < threshold) {
      return { decision: { tag: "pass" }, reason: "", flags: [] };
    }
    return {
      decision: { tag: "refuse", val: "I can't help with that." },
      reason: `score ${evidence.score.toFixed(3)} at or above ${threshold}`,
      flags: [],
    };
  },

  decideResponse(request, evidence, window) {
    return { decision: { tag: "pass" }, reason: "", flags: [] };
  },
};
