"""The whole loop against TRL's GRPOTrainer: seconds a rollout, and responses learned from per second.

    OMP_NUM_THREADS=1 python benchmarks/loop.py --out benchmarks/results/loop.json

Both train the embedded Countdown model by GRPO on the same problems in the same order: 64 prompts x 8 responses a
rollout, at most 40 tokens each, graded by this package's grader, then 16 optimiser steps of 32 sequences (AdamW at
1e-4, no KL, temperature 1, float32, one thread), without evaluation or checkpoints. TRL generates once for 16 steps,
without gradient checkpointing, which it would otherwise use; the rest of its settings are its own.

TRL runs in its own training loop, all rounds in one call. Between two of its rollouts a callback lets every arm of ours
take one of its own, in another order each round; that time does not count for TRL. The first round warms up and is not
counted. Arms: `ours` at the defaults without the probe, with it, and with each saving switched off. A setting that this
version lacks, or whose default it is, is a row without figures. The profile splits a rollout into sampling, scoring
(grading, and the log-probs of the policy that sampled), update (forward, backward, step) and the rest. About 3 minutes.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import about, interval, show, spread, synchronise

from steer_core import SteerError, Trainer, load_config
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.policy.model import EMBEDDED
from steer_core.training.data_order import rollout_problems

OURS, THEIRS = "ours", "TRL"
SAVINGS = (
    ("rollout.engine", "huggingface"),
    ("optimizer.shared_prompts", "none"),
    ("rollout.old", "score"),
    ("rollout.old", "sampler"),
)
"""Settings that switch a saving off, or to its other way."""
WITH = {"huggingface": ["rollout.draws=batch"]}
"""What goes with a value: `generate` draws its own way."""
DIFFERENTIATED, NONE = f"{OURS}, every response differentiated", f"{OURS}, all of them off"
"""Arms in which responses without an advantage are part of the backward pass too; in the second every saving is off."""
OFF = ("rollout.engine=huggingface", "optimizer.shared_prompts=none", "rollout.old=score")
PARTS = ("sampling", "scoring", "update", "rest")
VERL = (
    "not timed: verl 0.9.1 has no way to train on a CPU. Its trainer puts every worker into a Ray pool of GPUs "
    "(ResourcePoolManager makes each with use_gpu=True, and refuses where there are fewer than asked for), and its "
    "rollouts come from a vLLM, SGLang or TensorRT-LLM server alone"
)


def base(args: argparse.Namespace) -> list[str]:
    """Our settings that every arm has; the rest are the defaults, which are the work described above."""
    return [
        f"model.device={args.device}",
        f"rollout.prompts={args.prompts}",
        "evaluation.every=0",
        "train.threads=1",
    ]


def arms_of(args: argparse.Namespace) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(settings of each of our arms, arm that is left out: why)."""
    plain = [*base(args), "train.probe_sequences=0"]
    arms, left_out = {OURS: plain, f"{OURS}, with the probe": base(args)}, {}
    default = load_config(None, plain)
    for key, value in SAVINGS:
        section, name = key.split(".")
        arm, settings = f"{OURS}, {key}={value}", [*plain, f"{key}={value}", *WITH.get(value, [])]
        if getattr(getattr(default, section), name, None) == value:
            left_out[arm] = "is the default"
            continue
        try:
            load_config(None, settings)
        except SteerError as error:
            left_out[arm] = f"not in this version ({str(error).split(';')[0]})"
        else:
            arms[arm] = settings
    arms[DIFFERENTIATED] = plain
    off = [word for word in OFF if f"{OURS}, {word}" in arms]
    if len(off) > 1:
        arms[NONE] = [*plain, *off, *WITH["huggingface"]]
    return arms, left_out


class Our:
    """One of our arms: a trainer, and what each of its rollouts took."""

    def __init__(self, settings: list[str], everything: bool = False) -> None:
        self.trainer, self.rows = Trainer(load_config(None, settings)), []
        if everything:
            self.trainer.update.active.learnt_rows = lambda part: list(range(len(part.mask_BT)))
        self.trainer.sync_weights(0)

    def rollout(self) -> None:
        """One rollout and its updates, from our own loop."""
        n = len(self.rows) + 1
        synchronise()
        began = time.perf_counter()
        metrics = self.trainer.rollout_and_update(n)
        self.trainer.run.log(n, metrics)
        synchronise()
        seconds = time.perf_counter() - began
        sampling, scoring, update = (metrics[f"time/{part}_seconds"] for part in ("rollout", "score", "update"))
        parts = (sampling, scoring, update, seconds - sampling - scoring - update)
        tokens = metrics["time/sampling_tokens_per_second"] * sampling
        self.rows.append({"seconds": seconds, "tokens": tokens, **dict(zip(PARTS, parts, strict=True))})


def their_trainer(args: argparse.Namespace, ours: Trainer, folder: str):
    """TRL's trainer, set to the same work as ours; all its rollouts are one call of `train`."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    config = ours.config
    size = config.optimizer.mini_batch_prompts * config.rollout.responses
    steps = args.prompts // config.optimizer.mini_batch_prompts
    problems = [p for n in range(1, args.rounds + 2) for p in rollout_problems(ours.problems, n, config)]

    def reward(prompts: list[str], completions: list[str], **_) -> list[float]:
        return [float(verdict.correct) for verdict in ours.task.grader.grade(prompts, completions)]

    settings = GRPOConfig(
        folder,
        max_steps=(args.rounds + 1) * steps,
        num_generations=config.rollout.responses,
        per_device_train_batch_size=size,
        steps_per_generation=steps,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_completion_length=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        learning_rate=config.optimizer.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=config.optimizer.max_grad_norm,
        epsilon=config.algorithm.clip_low,
        epsilon_high=config.algorithm.clip_high,
        delta=config.algorithm.dual_clip,
        loss_type="dapo",  # the token mean
        beta=0.0,
        bf16=False,
        use_cpu=args.device == "cpu",
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        save_strategy="no",
        logging_steps=steps,  # once a rollout, as ours
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    data = Dataset.from_dict({"prompt": [problem.prompt for problem in problems]})
    trainer = GRPOTrainer(str(EMBEDDED), reward, settings, data)
    trainer.remove_callback(PrinterCallback)
    return trainer


class Their:
    """TRL's arm: what each of its rollouts took, from time stamps around its own methods and steps."""

    def __init__(self, args: argparse.Namespace, ours: Trainer, folder: str, between: Callable[[], None]) -> None:
        """between: is called after each of its rollouts, in time that is not TRL's."""
        from transformers import TrainerCallback

        self.trainer, self.rows, self.spent, their = their_trainer(args, ours, folder), [], {}, self
        self.began = self.step_began = 0.0
        for name in ("_generate", "_generate_and_score_completions"):
            self.clock(name)

        class Turns(TrainerCallback):
            def on_train_begin(self, *_, **__) -> None:
                their.start()

            def on_step_begin(self, *_, **__) -> None:
                their.step_began = time.perf_counter()

            def on_step_end(self, _, state, *__, **___) -> None:
                synchronise()
                their.count("steps", time.perf_counter() - their.step_began)
                if state.global_step % their.trainer.args.steps_per_generation == 0:
                    their.end_rollout()
                    between()
                    their.start()

        self.trainer.add_callback(Turns())

    def clock(self, name: str) -> None:
        """Count the seconds of one of its methods."""
        method = getattr(self.trainer, name)

        def clocked(*words, **named):
            began = time.perf_counter()
            result = method(*words, **named)
            synchronise()
            self.count(name, time.perf_counter() - began)
            if name == "_generate_and_score_completions":
                self.count("tokens", int(result["completion_mask"].sum()))
            return result

        setattr(self.trainer, name, clocked)

    def count(self, name: str, amount: float) -> None:
        """Add to what the rollout in hand has taken."""
        self.spent[name] = self.spent.get(name, 0.0) + amount

    def start(self) -> None:
        """A rollout begins now."""
        self.spent.clear()
        self.began = time.perf_counter()

    def end_rollout(self) -> None:
        """A rollout's last optimiser step has been taken now."""
        seconds, spent = time.perf_counter() - self.began, self.spent
        sampling, generation = spent["_generate"], spent["_generate_and_score_completions"]
        parts = (sampling, generation - sampling, spent["steps"] - generation, seconds - spent["steps"])
        self.rows.append({"seconds": seconds, "tokens": spent["tokens"], **dict(zip(PARTS, parts, strict=True))})


def figures(rows: list[dict[str, float]], theirs: list[dict[str, float]] | None, responses: int) -> dict:
    """An arm's figures over its counted rollouts, and how many times as fast as TRL's it is."""
    column = {name: np.array([row[name] for row in rows[1:]]) for name in rows[0]}
    seconds = column["seconds"]
    against = {}
    if theirs is not None:
        against["times_as_fast_as_trl"] = interval(np.array([row["seconds"] for row in theirs[1:]]) / seconds)
    return {
        "seconds_a_rollout": spread(seconds),
        "responses_a_second": interval(responses / seconds),
        **against,
        "tokens_a_response": float(column["tokens"].mean() / responses),
        "share_of_time": {part: float(np.median(column[part] / seconds)) for part in PARTS},
        "seconds": [round(value, 4) for value in seconds],
    }


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=8, help="counted rollouts of each arm (%(default)s)")
    parser.add_argument(
        "--prompts", type=at_least(4), default=64, help="prompts a rollout, a multiple of 4 (%(default)s)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs (%(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    args = parser.parse_args()
    settings, left_out = arms_of(args)
    arms = {arm: Our(words, arm in (DIFFERENTIATED, NONE)) for arm, words in settings.items()}
    config, order = arms[OURS].trainer.config, random.Random(0)

    def between() -> None:
        for arm in order.sample(list(arms), len(arms)):
            arms[arm].rollout()

    try:
        with tempfile.TemporaryDirectory() as folder:
            theirs = Their(args, arms[OURS].trainer, folder, between)
            theirs.trainer.train()
    except ImportError as error:
        left_out[THEIRS] = f"not installed ({error}); pip install -c constraints.txt -e '.[parity]'"
        theirs = None
        for _ in range(args.rounds + 1):
            between()
    responses, rows = args.prompts * config.rollout.responses, theirs.rows if theirs else None
    found = {arm: figures(our.rows, rows, responses) for arm, our in arms.items()}
    if rows:
        found[THEIRS] = figures(rows, None, responses)
    result = {
        "arms": found,
        "left_out": left_out | {"verl": VERL},
        "settings": settings,
        "responses_a_rollout": responses,
        "optimiser_steps_a_rollout": args.prompts // config.optimizer.mini_batch_prompts,
        "repeats": args.rounds,
        "environment": about(),
    }
    show(result, args.out)


if __name__ == "__main__":
    end(main)
