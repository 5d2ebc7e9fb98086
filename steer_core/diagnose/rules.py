"""Every threshold of a diagnosis, with its reason. All are this project's own; `findings.py` applies them."""

from __future__ import annotations

# ---- which entropy
TELLING_NATS = 0.01
"""Entropies and surprisals below this are left out of token-by-token comparisons: near p = 1 all of them are near 0."""
EQUAL_WITHIN = 0.01
"""Two numbers are one where they differ by this share: bfloat16 keeps 8 bits, so it rounds by up to 0.4%."""
EQUAL_SHARE = 0.99
"""A token-by-token identity holds where this share of tokens agrees; the others are room for rounding near 0."""
FEWEST_TOKENS = 50
"""Fewer tokens decide nothing: a mean of 50 numbers that spread as widely as their mean is off by 14%."""
FEWEST_SURPRISES = 30
"""Fewer tokens with -ln p above SURPRISE do not speak against a Shannon entropy: where a policy is next to certain,
E[-ln p] comes from rare tokens, and a sample without them has a small mean and a small error at once."""
SURPRISE = 1.0
"""Nats."""
FEWEST_RESPONSES = 4
"""Fewer responses of several tokens do not show that a number belongs to the response."""
ENTROPY_ROUNDING = 1e-3
"""An entropy may lie this far below 0 by half-precision rounding, nats."""
SLOPE_ERROR = 0.08
"""The regression decides where its standard error is below this share of the slope: then ln 2 (0.69) and 1 are more
than 3 standard errors apart."""
NEAR_POLICY = 0.05
"""Steps whose mean |ln ratio| is above this say nothing of the means of -ln p and H: weights p / p_sampled bring back
what the policy does now only where the one that sampled still drew it often enough."""
SLOPE_WITHIN, ERRORS = 0.03, 3.0
"""A slope is 1 within three standard errors, and 3% for what sampling with top-p near 1 takes away."""
BELOW_NATS, BELOW_WITHIN = 0.02, 0.02
"""How far below h(p) an entropy may lie by rounding: of ln p in bfloat16, and of the entropy itself."""
BELOW_SHARE = 0.02
"""A Shannon entropy lies below h(p) nowhere; this share of tokens is left for rounding."""
LARGE_SLOPE = 2.0
"""Above this a slope is told as a divisor: no usual temperature or top-p halves an entropy on average."""
LOGGED_EXACT, LOGGED_WITHIN = 2e-4, 0.005
"""A logged mean is one of the dump's where it agrees to this at every step: to float32, or where none does, to bfloat16
(it rounds by up to 0.4%)."""

# ---- what happened
FEWEST_STEPS = 3
"""Fewer steps show no course."""
COLLAPSED = 0.5
"""Entropy has collapsed where its last third is below this share of its first. GRPO's runs here lose three quarters on
their way to the plateau (docs/when.md); a run in balance stays well above half."""
NOTHING_LEFT = 0.02
"""Below this, nats a token, a policy samples the same token some 997 times in 1000: little is left to explore with."""
EXPLODED = 1.5
"""Entropy has exploded where its last third is above this times its first: a convention, for some rise is wanted where
a policy has to find something new."""
RISEN = 0.1
"""A rise of less, nats a token, is no explosion: below it a policy is next to certain of its tokens."""
CLIPPED = 0.05
"""Share of tokens that the clip stops from which it shapes the update: at a range of 0.2 and the learning rates of this
package's runs it stops fewer than 1 in 100 (docs/when.md)."""
FAR = 0.5
"""99% quantile of |ln ratio| above which the policy has left the one that sampled: a ratio of 1.65, twice a clip of
0.28."""
OUTLIER = 20.0
"""Largest estimated change over the 90% quantile from which one token sets STEER's normaliser: the others' weights are
then above 0.7^(1/20) = 0.98."""
TRUNCATED = 0.1
"""Share of responses cut off from which it is told: their reward says how long they were, not whether they
were right."""
SILENT = 0.5
"""Share of groups without signal from which it is told: half of what was sampled teaches nothing."""
RARE = 0.1
"""Tokens below this probability under the sampler; ratios are least reliable there."""
GAP = 0.02
"""Mean |ln p of the trainer - ln p of the sampler| from which it is told, nats. bfloat16 rounds by up to 0.4%, which is
0.01 of ln p = -2.5; above twice that it is more than rounding: temperature, top-p, weights or kernels differ."""
GAP_PAST = 0.01
"""Share of tokens that start outside the clip range, by the gap alone, from which it is told: as many as the clip
usually stops."""
DOMINANT = 0.5
"""A quadrant moves entropy where it carries this share of the sum of sizes: more than the other three together."""
