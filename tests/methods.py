"""What each method touches, what it must see at once, and where it leaves GRPO as it is."""

TOUCHES = {
    "none": (),
    "steer": ("weights",),
    "clip-higher": ("clip_range",),
    "entropy-loss": ("extra_loss",),
    "adaptive-entropy-loss": ("extra_loss",),
    "fork-tokens": ("mask",),
    "w-reinforce": ("weights",),
    "entropy-advantage": ("advantages",),
    "clip-cov": ("mask",),
    "kl-cov": ("clip_range", "extra_loss"),
    "quadrants": ("weights",),
    "influence": ("weights",),
    "stare": ("weights",),
    "entropic": ("extra_loss",),
    "entrocraft": ("mask",),
    "erc": ("mask",),
    "ce-gppo": ("extra_loss",),
    "steer-control": ("weights",),
    "repo-r": ("advantages",),
    "differential-smoothing": ("credit",),
    "boundary-gate": ("credit",),
}
OF_A_STEP = {"steer", "fork-tokens", "clip-cov", "kl-cov", "influence", "stare", "entropic", "steer-control"}
OF_A_ROLLOUT = {"entrocraft", "repo-r"}
NEUTRAL = {
    "steer": [{"lambda_min": 1}],
    "clip-higher": [{"high": 0.28}],
    "entropy-loss": [{"coefficient": 0}],
    "adaptive-entropy-loss": [{"target": 0}, {"target": 9, "maximum": 0}],
    "fork-tokens": [{"share": 1}],
    "w-reinforce": [{"positive": 1}],
    "entropy-advantage": [{"alpha": 0}],
    "clip-cov": [{"share": 0}],
    "quadrants": [{}],
    "influence": [{"strength": 0}],
    "stare": [{"target": 9, "positive": 1, "negative": 1}, {"target": 0, "positive": 3}],
    "entropic": [{"kp": 0, "ki": 0}],
    "entrocraft": [{"margin": 9}],
    "erc": [{"low": 0, "high": 1e30}],
    "ce-gppo": [{"low": 0, "high": 0}],
    "steer-control": [{"lambda_min": 1}, {"lambda_min": 1, "control": "uniform"}],
    "repo-r": [{"zeta": 0, "adapts": False}],
    "differential-smoothing": [{"right": 0, "wrong": 0}],
    "boundary-gate": [{}, {"rule": "saturated", "threshold": 0}],
}
"""Settings under which a method leaves GRPO's step as it is."""
