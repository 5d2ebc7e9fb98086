"""`examples/minimal.py`, the loop on one screen, arrives at the trainer's weights bit for bit."""

from pathlib import Path
from runpy import run_path

import pytest
import torch
from small import small_config

from steer_core import Trainer

MINIMAL = Path(__file__).parents[1] / "examples" / "minimal.py"
CASES = {
    "none, on a coin": ("task.reward=coin",),
    "steer": (),
    "steer, several micro-batches": ("intervention.name=steer", "optimizer.micro_batch_sequences=3"),
    "steer, scope rollout": ("intervention.name=steer", "intervention.scope=rollout"),
    "kl-cov": ("intervention.share=0.05",),
    "clip-cov": ("intervention.low=0", "optimizer.micro_batch_sequences=3"),
    "stare": ("intervention.target=9",),
    "entropic": (),
    "entropic, along a line": ("intervention.target=0.5 to 0.1 over 3",),
    "entrocraft": ("intervention.target=0.9 to 0.1 over 3",),
    "ce-gppo": ("algorithm.clip_low=0.01", "algorithm.clip_high=0.01"),
    "adaptive-entropy-loss": ("intervention.target=9",),
    "influence": ("optimizer.micro_batch_sequences=3",),
    "repo-r": ("intervention.zeta=0.3", "intervention.target=9"),
    "differential-smoothing": ("optimizer.micro_batch_sequences=3",),
    "boundary-gate": ("task.train_problems=5",),
    "none, pass@k": ("algorithm.advantage=pass-at-k", "algorithm.pass_k=2"),
    "none, quantile": ("algorithm.advantage=quantile",),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loop_on_one_screen_is_the_trainer(case, tmp_path):
    name = case.split(",")[0]
    overrides = [f"intervention.name={name}", *(x for x in CASES[case] if x != f"intervention.name={name}")]
    config = small_config(*overrides, "train.rollouts=3", "evaluation.every=0", "train.probe_sequences=0")
    torch.set_num_threads(1)
    ours = run_path(str(MINIMAL))["train"](config).model.state_dict()
    trainer = Trainer(config)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    assert trainer.fit()
    theirs = trainer.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not all(torch.equal(before[key], theirs[key]) for key in theirs)


def test_a_run_in_memory_equals_the_run_in_a_folder_and_leaves_nothing_on_disk(tmp_path, monkeypatch):
    from small import small_trainer, without_time

    monkeypatch.chdir(tmp_path)
    inside, outside = Trainer(small_config()), small_trainer(tmp_path / "run")
    assert inside.fit()
    assert outside.fit()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_time(inside.run.read(name)) == without_time(outside.run.read(name))
        assert len(inside.run.read(name)) > 1
    for key, value in inside.model.state_dict().items():
        assert torch.equal(value, outside.model.state_dict()[key])
