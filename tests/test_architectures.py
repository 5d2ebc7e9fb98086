"""Tiny random models of many architectures: trained, saved, gone on with, estimated; or refused before anything.

The functions are those of `reproduce/architectures.py`; its table is `reproduce/results/architectures.md`.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import architectures
from architectures import CHECKS, KINDS, Examination, config_of, examine, make_folder, page, trainer_of, weights_of

from steer_core.common.errors import SteerError
from steer_core.config.config import load_config
from steer_core.policy.folder import without_randomness
from steer_core.policy.model import load_policy
from steer_core.policy.preflight import check_scores, ragged_pair

MADE = json.loads((architectures.RESULTS / "architectures.json").read_text())
RECORD = MADE["results"]
SAVED = ("loads", "trains", "checkpoint", "resumes")
QUICK = (
    "gemma4_text", "apertus", "opt", "bloom", "starcoder2", "mixtral", "qwen3_moe", "deepseek_v3", "glm4_moe", "lfm2",
    "qwen3_next", "gemma3",
)  # fmt: skip


@pytest.mark.parametrize("kind", QUICK)
def test_a_checkpoint_is_the_trained_model_in_plain_transformers_and_the_run_goes_on_bit_for_bit(kind, tmp_path):
    found = examine(kind, tmp_path, SAVED)
    assert {name: found[name] for name in SAVED} == dict.fromkeys(SAVED, "yes")


@pytest.mark.parametrize("kind", ["mixtral", "phimoe", "starcoder2"])
def test_models_with_dropout_and_jitter_recompute_as_they_train(kind, tmp_path):
    found = examine(kind, tmp_path, ("loads", "trains", "recompute"))
    assert found["recompute"] == "yes", found


@pytest.mark.parametrize("kind", ["llama4_text", "gemma3", "qwen3_moe", "opt"])
def test_the_ladder_reads_models_whose_body_stands_elsewhere(kind, tmp_path):
    found = examine(kind, tmp_path, ("loads", "estimates"))
    assert found["estimates"] == "yes", found


def test_every_outcome_of_the_table_is_a_yes_or_a_refusal_and_forty_architectures_stand_in_it():
    everyone = {kind for kinds in KINDS.values() for kind in kinds}
    assert RECORD.keys() == everyone
    assert len(RECORD) >= 40
    for kind, row in RECORD.items():
        for name in row.keys() & set(CHECKS):
            assert row[name] == "yes" or row[name].startswith("refused: "), (kind, name)
            assert "FOLDER" not in row[name] or row[name].startswith("refused: model.path: FOLDER")


def test_the_table_is_made_from_the_record():
    made = page(RECORD, MADE["environment"])
    assert made == (architectures.RESULTS / "architectures.md").read_text()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("llava", "has no causal language model"),
        ("t5", "has no causal language model"),
        ("bert", "change with later tokens"),
        ("rwkv", "change with padding"),
        ("minimax", "are others in sampling, which keeps a cache"),
    ],
)
def test_a_refused_architecture_is_refused_as_the_table_says(kind, reason, tmp_path):
    found = examine(kind, tmp_path, ("loads", "samples"))
    last = "samples" if kind == "minimax" else "loads"
    assert reason in found[last]
    assert found[last].split(" (by ")[0] == RECORD[kind][last].split(" (by ")[0]
    with pytest.raises(SteerError, match=reason):
        trainer_of(load_config(None, [*architectures.SETTINGS, f"model.path={tmp_path / 'model'}"]))


def policy_of(kind, folder):
    return load_policy(str(make_folder(kind, folder)))


def test_a_model_that_is_random_in_training_mode_is_refused_with_the_setting(tmp_path):
    policy = policy_of("qwen2", tmp_path)
    forward = policy.model.lm_head.forward

    def noisy(hidden):
        return torch.nn.functional.dropout(forward(hidden), 0.1, policy.model.training)

    policy.model.lm_head.forward = noisy
    pair = ragged_pair(policy)
    check_scores(policy.model, pair)
    with pytest.raises(SteerError, match=r"Qwen2ForCausalLM change in training mode.*engine.activations=keep"):
        check_scores(policy.model, pair, recompute=True)
    assert not policy.model.training


def test_a_model_with_the_configured_dropout_left_on_would_be_refused(tmp_path, monkeypatch):
    """The check finds what `without_randomness` takes away, so one stands in for the other."""
    monkeypatch.setattr("steer_core.policy.folder.without_randomness", lambda config: None)
    policy = policy_of("starcoder2", tmp_path)
    with pytest.raises(SteerError, match="change in training mode"):
        check_scores(policy.model, ragged_pair(policy), recompute=True)
    assert policy.model.config.residual_dropout == 0.1
    without_randomness(policy.model.config)
    assert policy.model.config.residual_dropout == 0


def test_a_trainer_refuses_at_its_start(tmp_path):
    """Packing where attention does not find the borders; recomputing what cannot be; probing without a derivative."""
    for kind, setting, remedy in (
        ("gpt_oss", ["optimizer.packing=packed", "optimizer.micro_batch_tokens=64"], "optimizer.packing=none"),
        ("jetmoe", ["engine.activations=recompute"], "engine.activations=keep"),
        ("bloom", ["train.probe_sequences=4"], "train.probe_sequences=0"),
    ):
        found = Examination(kind, tmp_path / kind)
        config = load_config(None, [*architectures.SETTINGS, f"model.path={found.model}", *setting])
        with pytest.raises(SteerError, match=remedy):
            trainer_of(config)


def test_config_and_weights_of_an_examined_model_are_not_the_class_s_own(tmp_path):
    """Or the table would say little: dropout is on in the folder, and buffers are not what the class puts there."""
    config = config_of("gemma4_text")
    assert config.attention_dropout == 0.1
    policy = policy_of("gemma4_text", tmp_path)
    assert policy.model.config.attention_dropout == 0
    assert float(weights_of(policy.model)["model.layers.0.layer_scalar"]) == pytest.approx(0.5)
