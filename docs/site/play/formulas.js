"use strict";
// The formulas of steer_core/formulas, for one state and one token. tests/test_play.py holds the two against each other.
const formulas = {
  /* p = softmax(z). */
  softmax(logits) {
    const top = Math.max(...logits);
    const raised = logits.map((z) => Math.exp(z - top));
    const total = raised.reduce((a, b) => a + b, 0);
    return raised.map((x) => x / total);
  },

  /* ln p, without the detour over p. */
  logProbs(logits) {
    const top = Math.max(...logits);
    const total = Math.log(logits.reduce((sum, z) => sum + Math.exp(z - top), 0)) + top;
    return logits.map((z) => z - total);
  },

  /* H = -sum p ln p, nats. */
  entropy(logits) {
    return -formulas.logProbs(logits).reduce((sum, lnp) => sum + (lnp > -745 ? Math.exp(lnp) * lnp : 0), 0);
  },

  /* u = ln p_a + H: above 0 for a likely token. */
  excess(logits, token) {
    return formulas.logProbs(logits)[token] + formulas.entropy(logits);
  },

  /* I: 0 where the clip removes the gradient, else 1. clip: {low, high, dual}. */
  clipIndicator(ratio, advantage, clip) {
    if (advantage > 0) return ratio > 1 + clip.high ? 0 : 1;
    if (advantage < 0) return ratio < 1 - clip.low || ratio > clip.dual ? 0 : 1;
    return 1;
  },

  /* w = I r A: how hard, and which way, the loss moves the token's log-prob. */
  slope(ratio, advantage, clip) {
    return formulas.clipIndicator(ratio, advantage, clip) * ratio * advantage;
  },

  /* Omega = w p_a (1 - p_a)(ln p_a + H): STEER, arXiv 2510.10150, Theorem 1. Entropy change at unit step: -Omega. */
  omega(logits, token, slope) {
    const p = formulas.softmax(logits)[token];
    return slope * p * (1 - p) * formulas.excess(logits, token);
  },

  /* -w [p_a u_a - sum p^2 u]: the change at unit step, to first order, where every logit of the state moves. */
  firstOrder(logits, token, slope) {
    const p = formulas.softmax(logits);
    const u = formulas.logProbs(logits).map((lnp) => lnp + formulas.entropy(logits));
    const shared = p.reduce((sum, x, j) => sum + x * x * u[j], 0);
    return -slope * (p[token] * u[token] - shared);
  },

  /* The logits after a step along w (e_a - p). */
  stepped(logits, token, slope, step) {
    const p = formulas.softmax(logits);
    return logits.map((z, j) => z + step * slope * ((j === token ? 1 : 0) - p[j]));
  },

  /* The change of H that this step makes, nats. */
  measured(logits, token, slope, step) {
    return formulas.entropy(formulas.stepped(logits, token, slope, step)) - formulas.entropy(logits);
  },

  /* The quadrant's name as QUADRANTS has it; empty where A is 0. */
  quadrant(logits, token, advantage) {
    if (advantage === 0) return "";
    const side = formulas.excess(logits, token) > 0 ? "likely" : "unlikely";
    return `${advantage > 0 ? "positive" : "negative"}_${side}`;
  },

  /* A curve given by points (x rising) at a place, by straight lines; its ends hold beyond them. */
  at(xs, ys, x) {
    if (x <= xs[0]) return ys[0];
    for (let i = 1; i < xs.length; i++) {
      if (x <= xs[i]) return ys[i - 1] + ((ys[i] - ys[i - 1]) * (x - xs[i - 1])) / (xs[i] - xs[i - 1]);
    }
    return ys[ys.length - 1];
  },

  /* Root mean square distance, nats, of a run's entropies from a drawn curve, over its evaluations up to a rollout. */
  distance(run, xs, ys, until) {
    const kept = run.steps.map((step, i) => [step, run.entropy[i]]).filter(([step]) => step <= until);
    const squares = kept.map(([step, entropy]) => (entropy - formulas.at(xs, ys, step)) ** 2);
    return Math.sqrt(squares.reduce((a, b) => a + b, 0) / squares.length);
  },

  /* The runs nearest to a drawn curve, [{run, distance}], nearest first; only runs that reach that rollout. */
  nearest(runs, xs, ys, until, count) {
    return runs
      .filter((run) => run.steps[run.steps.length - 1] >= until)
      .map((run) => ({ run, distance: formulas.distance(run, xs, ys, until) }))
      .sort((a, b) => a.distance - b.distance)
      .slice(0, count);
  },
};
if (typeof module !== "undefined") module.exports = formulas;
