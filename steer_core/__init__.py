"""Entropy dynamics in RLVR: entropy change, STEER's weights, and the training loop they act in.

The names below are the public API. Public too are the modules of `formulas`, `ladder`, `stats`, `interventions` and
`integrations`, whose functions carry their source in the docstring; everything else may change. Importing the package
loads none of them: each name is imported at its first use, and torch with it.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer_core.common.errors import SteerError
    from steer_core.common.settings import STRICT
    from steer_core.config.config import Config, load_config
    from steer_core.config.sections import RolloutConfig
    from steer_core.engines import make_engine
    from steer_core.estimation.estimate import estimate
    from steer_core.evaluation.held_out import evaluate
    from steer_core.evaluation.sample_and_grade import sample_and_grade
    from steer_core.formulas.advantages import ADVANTAGES
    from steer_core.formulas.entropy_change import ENTROPY_CHANGE, quadrants
    from steer_core.formulas.linear_stats import linear_token_stats
    from steer_core.formulas.loss import ClipRange, clip_indicator, clipped_surrogate, importance_ratio, reduce_loss
    from steer_core.formulas.token_stats import TokenStats, token_stats
    from steer_core.formulas.weights import normaliser, steer_weights
    from steer_core.interventions import INTERVENTIONS
    from steer_core.interventions.base import Intervention, LossTerms, Responses, Tokens
    from steer_core.interventions.steer import Steer
    from steer_core.ladder.attribution import attribute
    from steer_core.ladder.passes import Lens
    from steer_core.policy.model import Policy, load_policy
    from steer_core.policy.score import score
    from steer_core.problems import make_task
    from steer_core.rollout.samplers import make_sampler
    from steer_core.runs.folder import RunFolder
    from steer_core.stats.agreement import agreement
    from steer_core.stats.improvement import performance_profile, probability_of_improvement
    from steer_core.stats.outcomes import Outcomes, improvement
    from steer_core.stats.pass_at_k import paired, pass_at_k
    from steer_core.training.batch import mini_batches, score_rollout
    from steer_core.training.data_order import rollout_problems, rollout_seed
    from steer_core.training.loop import Trainer, train
    from steer_core.training.loss_terms import ActiveIntervention
    from steer_core.training.scoring import make_scoring

__version__ = "0.1.0"

# transformers imports a DeepSpeed that is installed, which warns on a CPU even where no run asks for it.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())

_PLACES = {
    # a run
    "load_config": "config.config:load_config",
    "Config": "config.config:Config",
    "Trainer": "training.loop:Trainer",
    "train": "training.loop:train",
    "evaluate": "evaluation.held_out:evaluate",
    "estimate": "estimation.estimate:estimate",
    "RolloutConfig": "config.sections:RolloutConfig",
    "RunFolder": "runs.folder:RunFolder",
    # the parts of a step
    "load_policy": "policy.model:load_policy",
    "score": "policy.score:score",
    "token_stats": "formulas.token_stats:token_stats",
    "linear_token_stats": "formulas.linear_stats:linear_token_stats",
    "TokenStats": "formulas.token_stats:TokenStats",
    "ADVANTAGES": "formulas.advantages:ADVANTAGES",
    "ENTROPY_CHANGE": "formulas.entropy_change:ENTROPY_CHANGE",
    "normaliser": "formulas.weights:normaliser",
    "steer_weights": "formulas.weights:steer_weights",
    "ClipRange": "formulas.loss:ClipRange",
    "clipped_surrogate": "formulas.loss:clipped_surrogate",
    "reduce_loss": "formulas.loss:reduce_loss",
    "importance_ratio": "formulas.loss:importance_ratio",
    "clip_indicator": "formulas.loss:clip_indicator",
    "quadrants": "formulas.entropy_change:quadrants",
    # the loop's parts, as `examples/minimal.py` puts them together
    "Policy": "policy.model:Policy",
    "make_engine": "engines:make_engine",
    "make_sampler": "rollout.samplers:make_sampler",
    "make_scoring": "training.scoring:make_scoring",
    "make_task": "problems:make_task",
    "sample_and_grade": "evaluation.sample_and_grade:sample_and_grade",
    "rollout_problems": "training.data_order:rollout_problems",
    "rollout_seed": "training.data_order:rollout_seed",
    "score_rollout": "training.batch:score_rollout",
    "mini_batches": "training.batch:mini_batches",
    "ActiveIntervention": "training.loss_terms:ActiveIntervention",
    # methods, and what they are judged by
    "Intervention": "interventions.base:Intervention",
    "Steer": "interventions.steer:Steer",
    "INTERVENTIONS": "interventions:INTERVENTIONS",
    "Tokens": "interventions.base:Tokens",
    "LossTerms": "interventions.base:LossTerms",
    "Responses": "interventions.base:Responses",
    "STRICT": "common.settings:STRICT",
    "Lens": "ladder.passes:Lens",
    "attribute": "ladder.attribution:attribute",
    "agreement": "stats.agreement:agreement",
    "probability_of_improvement": "stats.improvement:probability_of_improvement",
    "performance_profile": "stats.improvement:performance_profile",
    "pass_at_k": "stats.pass_at_k:pass_at_k",
    "paired": "stats.pass_at_k:paired",
    "Outcomes": "stats.outcomes:Outcomes",
    "improvement": "stats.outcomes:improvement",
    "SteerError": "common.errors:SteerError",
}
"""Public name to `module:name` in this package; type checkers read the imports above instead."""

__all__ = [
    "ADVANTAGES",
    "ENTROPY_CHANGE",
    "INTERVENTIONS",
    "STRICT",
    "ActiveIntervention",
    "ClipRange",
    "Config",
    "Intervention",
    "Lens",
    "LossTerms",
    "Outcomes",
    "Policy",
    "Responses",
    "RolloutConfig",
    "RunFolder",
    "Steer",
    "SteerError",
    "TokenStats",
    "Tokens",
    "Trainer",
    "__version__",
    "agreement",
    "attribute",
    "clip_indicator",
    "clipped_surrogate",
    "estimate",
    "evaluate",
    "importance_ratio",
    "improvement",
    "linear_token_stats",
    "load_config",
    "load_policy",
    "make_engine",
    "make_sampler",
    "make_scoring",
    "make_task",
    "mini_batches",
    "normaliser",
    "paired",
    "pass_at_k",
    "performance_profile",
    "probability_of_improvement",
    "quadrants",
    "reduce_loss",
    "rollout_problems",
    "rollout_seed",
    "sample_and_grade",
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
