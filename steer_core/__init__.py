"""Entropy dynamics in RLVR: entropy change, STEER's weights, and the training loop they act in.

The names below are the public API; everything else may change. Importing the package loads none of them: each is
imported at its first use, and torch with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer_core.common.errors import SteerError
    from steer_core.config.config import Config, load_config
    from steer_core.engines import make_engine
    from steer_core.estimation.measure import estimate
    from steer_core.evaluation.held_out import evaluate
    from steer_core.evaluation.respond import respond
    from steer_core.formulas.advantages import ADVANTAGES
    from steer_core.formulas.entropy_change import ENTROPY_CHANGE
    from steer_core.formulas.loss import ClipRange, clipped_surrogate, reduce_loss
    from steer_core.formulas.token_stats import TokenStats, token_stats
    from steer_core.formulas.weights import normaliser, steer_weights
    from steer_core.interventions import INTERVENTIONS
    from steer_core.interventions.base import Intervention
    from steer_core.interventions.steer import Steer
    from steer_core.ladder.attribution import attribute
    from steer_core.policy.model import Policy, load_policy
    from steer_core.policy.score import score
    from steer_core.problems import make_task
    from steer_core.rollout.samplers import make_sampler
    from steer_core.stats.measures import pass_at_k
    from steer_core.training.active import ActiveIntervention
    from steer_core.training.batch import mini_batches, score_rollout
    from steer_core.training.data_order import rollout_problems, rollout_seed
    from steer_core.training.loop import Trainer, train

__version__ = "0.1.0"

_PLACES = {
    # a run
    "load_config": "config.config:load_config",
    "Config": "config.config:Config",
    "Trainer": "training.loop:Trainer",
    "train": "training.loop:train",
    "evaluate": "evaluation.held_out:evaluate",
    "estimate": "estimation.measure:estimate",
    # the parts of a step
    "load_policy": "policy.model:load_policy",
    "score": "policy.score:score",
    "token_stats": "formulas.token_stats:token_stats",
    "TokenStats": "formulas.token_stats:TokenStats",
    "ADVANTAGES": "formulas.advantages:ADVANTAGES",
    "ENTROPY_CHANGE": "formulas.entropy_change:ENTROPY_CHANGE",
    "normaliser": "formulas.weights:normaliser",
    "steer_weights": "formulas.weights:steer_weights",
    "ClipRange": "formulas.loss:ClipRange",
    "clipped_surrogate": "formulas.loss:clipped_surrogate",
    "reduce_loss": "formulas.loss:reduce_loss",
    # the loop's parts, as `examples/minimal.py` puts them together
    "Policy": "policy.model:Policy",
    "make_engine": "engines:make_engine",
    "make_sampler": "rollout.samplers:make_sampler",
    "make_task": "problems:make_task",
    "respond": "evaluation.respond:respond",
    "rollout_problems": "training.data_order:rollout_problems",
    "rollout_seed": "training.data_order:rollout_seed",
    "score_rollout": "training.batch:score_rollout",
    "mini_batches": "training.batch:mini_batches",
    "ActiveIntervention": "training.active:ActiveIntervention",
    # methods, and what they are judged by
    "Intervention": "interventions.base:Intervention",
    "Steer": "interventions.steer:Steer",
    "INTERVENTIONS": "interventions:INTERVENTIONS",
    "attribute": "ladder.attribution:attribute",
    "pass_at_k": "stats.measures:pass_at_k",
    "SteerError": "common.errors:SteerError",
}
"""Public name to `module:name` in this package; type checkers read the imports above instead."""

__all__ = [
    "ADVANTAGES",
    "ENTROPY_CHANGE",
    "INTERVENTIONS",
    "ActiveIntervention",
    "ClipRange",
    "Config",
    "Intervention",
    "Policy",
    "Steer",
    "SteerError",
    "TokenStats",
    "Trainer",
    "__version__",
    "attribute",
    "clipped_surrogate",
    "estimate",
    "evaluate",
    "load_config",
    "load_policy",
    "make_engine",
    "make_sampler",
    "make_task",
    "mini_batches",
    "normaliser",
    "pass_at_k",
    "reduce_loss",
    "respond",
    "rollout_problems",
    "rollout_seed",
    "score",
    "score_rollout",
    "steer_weights",
    "token_stats",
    "train",
]

if not TYPE_CHECKING:  # so that a checker finds a misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _PLACES[name].partition(":")
        return globals().setdefault(name, getattr(import_module(f"{__name__}.{module}"), attribute))


def __dir__() -> list[str]:
    return __all__
