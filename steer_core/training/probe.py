"""How good the estimates are while a run goes on: one optimiser step a rollout, predicted and measured.

The probe is a few sequences of the mini-batch in hand. Their entropies are read before and after the
optimiser's real step (nothing is undone: the run goes on from there), and the first-order change is
taken along that very step, from where it began. Cost: two forward passes and one forward-mode pass
over the probe, and two copies of the parameters; `time/probe_seconds` logs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from steer_core.ladder.passes import Lens, derivative, length, lens_stats
from steer_core.stats.agreement import agreement


@dataclass
class Watch:
    """What a watched step did to the entropy of each probe token, (N,), in nats; set when the step is over.

    update_norm: Euclidean length of the step in all parameters.
    """

    measured: Tensor | None = None
    first_order: Tensor | None = None
    update_norm: float = 0.0
    seconds: float = 0.0

    def metrics(self, predicted: dict[str, Tensor]) -> dict[str, float]:
        """The mean change, predicted and measured, and per-token agreement of every estimate with the measured one.

        predicted: by form, the change of each token of the mini-batch, of which the probe's are the first.
        Agreements that are undefined (a constant estimate, as in groups without signal) are left out.
        Raises ValueError before the step is over.
        """
        measured, first_order = self.measured, self.first_order
        if measured is None or first_order is None:
            raise ValueError("metrics: the watched step is not over; ask after the `with` block")
        result = {"probe/change/measured": float(measured.mean()), "probe/update_norm": self.update_norm}
        result["time/probe_seconds"] = self.seconds
        own = {name: values[: len(measured)] for name, values in predicted.items()}
        for name, values in {**own, "first_order": first_order}.items():
            result[f"probe/change/{name}"] = float(values.mean())
            scores = agreement(values.double().cpu().numpy(), measured.double().cpu().numpy())
            for score in ("pearson", "sign"):
                if scores[score] == scores[score]:
                    result[f"probe/{score}/{name}"] = scores[score]
        return result


@contextmanager
def watched_step(lens: Lens) -> Iterator[Watch]:
    """Watch what the optimiser step taken inside does to the entropy of the lens's tokens."""
    began = time.perf_counter()
    watch = Watch()
    before = lens_stats(lens).entropy
    old = {name: p.detach().clone() for name, p in lens.parameters().items()}
    watch.seconds += time.perf_counter() - began
    yield watch
    began = time.perf_counter()
    watch.measured = lens_stats(lens).entropy - before
    with torch.no_grad():
        update = {name: p - old[name] for name, p in lens.parameters().items()}
    watch.update_norm = length(update)
    watch.first_order = derivative(lens, update, at=old)[1]
    watch.seconds += time.perf_counter() - began
