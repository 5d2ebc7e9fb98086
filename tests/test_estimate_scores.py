"""What `steer estimate` asks of each estimate, and what it writes and draws."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from small import small_config

from steer_core.common.errors import SteerError
from steer_core.estimation.estimate import Update, estimate
from steer_core.estimation.figure import estimate_figure
from steer_core.estimation.scores import SOURCE_ESTIMATES, accuracy, answers
from steer_core.estimation.tables import ESTIMATE_COLUMNS, estimate_table, write_estimate
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.formulas.tabular import tabular_tokens
from steer_core.ladder.attribution import RUNGS
from steer_core.policy.model import load_policy
from steer_core.stats.agreement import agreement, agreement_intervals

DOUBLE = ("model.dtype=float64", "rollout.max_new_tokens=20")
PLACES = ["group", "sequence", "position", "token", "text", "advantage", "logprob", "entropy", "quadrant"]
MEASURES = {"mse", "pearson", "spearman", "sign", "slope"}
UPDATES = [Update("sgd", 0.001), Update("adamw", 1e-5)]


@pytest.fixture(scope="module")
def policy():
    return load_policy("embedded", dtype=torch.float64)


@pytest.fixture(scope="module")
def whole():
    """An estimate on four groups with signal, in two mini-batches."""
    return estimate("embedded", small_config(*DOUBLE), UPDATES, with_signal=True)


def token_table(groups, size, seed=0):
    random = np.random.default_rng(seed)
    shared = random.normal(size=(groups, 1))
    truth = (shared + random.normal(size=(groups, size))).flatten()
    guess = truth + random.normal(size=groups * size)
    return pd.DataFrame({"group": np.repeat(np.arange(groups), size), "measured": truth, "guess": guess})


def test_accuracy_is_the_agreement_of_all_tokens_within_its_interval():
    table = token_table(30, 5)
    scores = accuracy(table, "measured", ["guess", "measured"])
    assert set(scores) == {"guess", "measured"}
    assert {m: v[0] for m, v in scores["guess"].items()} == pytest.approx(agreement(table.guess, table.measured))
    for value, low, high in scores["guess"].values():
        assert low < value < high
    assert scores["measured"]["pearson"] == pytest.approx([1, 1, 1])
    shuffled = accuracy(table.sample(frac=1, random_state=1), "measured", ["guess"])["guess"]
    assert all(shuffled[m] == pytest.approx(v) for m, v in scores["guess"].items())


def test_accuracys_interval_is_over_prompts_so_that_repeating_their_tokens_tells_nothing_new():
    table = token_table(20, 3)
    scores, repeated = (accuracy(t, "measured", ["guess"])["guess"] for t in (table, table.loc[table.index.repeat(10)]))
    assert all(repeated[m] == pytest.approx(v) for m, v in scores.items())
    by_token = accuracy(table.loc[table.index.repeat(10)].assign(group=range(600)), "measured", ["guess"])["guess"]
    for measure in MEASURES:
        assert np.diff(by_token[measure][1:]) < 0.5 * np.diff(scores[measure][1:])


def test_one_prompt_has_scores_without_an_interval():
    scores = accuracy(token_table(1, 9), "measured", ["guess"])["guess"]
    assert set(scores) == MEASURES
    for value, low, high in scores.values():
        assert math.isfinite(value)
        assert math.isnan(low)
        assert math.isnan(high)


def test_intervals_over_groups_cover_the_true_correlation_and_intervals_over_tokens_do_not():
    """x = 2 a + e, y = 2 b + f by group: corr(a, b) = 0.8 and corr(e, f) = 0, so corr(x, y) = 0.64."""
    random, groups, size, times = np.random.default_rng(0), 40, 5, 150
    covered = {"group": 0, "token": 0}
    for _ in range(times):
        a = random.normal(size=(groups, 1))
        b = 0.8 * a + 0.6 * random.normal(size=(groups, 1))
        x, y = ((2 * shared + random.normal(size=(groups, size))).flatten() for shared in (a, b))
        for name, group in (("group", np.repeat(np.arange(groups), size)), ("token", np.arange(groups * size))):
            interval = agreement_intervals(x, y, group, draws=300)["pearson"]
            covered[name] += interval.low <= 0.64 <= interval.high
    assert 0.89 <= covered["group"] / times <= 0.985
    assert covered["token"] / times < 0.8


def test_the_record_is_json_without_nan_and_answers_every_question_for_every_update(whole):
    record = json.loads(json.dumps(whole.record, allow_nan=False))
    assert list(record["updates"]) == list(whole.tokens) == ["sgd:0.001", "adamw:1e-05"]
    assert (record["model"], record["run"]) == ("embedded", None)
    assert record["config"]["model"]["dtype"] == "float64"
    assert record["sample"]["prompts"] == 4 <= record["sample"]["prompts_sampled"]
    for update, summary in record["updates"].items():
        assert summary["mini_batches"] + summary["mini_batches_without_signal"] == 2
        assert summary["tokens"] == len(whole.tokens[update]) == record["sample"]["response_tokens"]
        assert set(summary["target"]) == {*RUNGS, "baseline"}
        assert set(summary["source"]) == set(summary["size"]) == set(SOURCE_ESTIMATES)
        for scores in (*summary["target"].values(), *summary["source"].values(), *summary["size"].values()):
            assert set(scores) == MEASURES
        assert summary["moments"] is False


def test_scores_are_against_the_measured_change_the_influence_and_its_size(whole):
    for update, tokens in whole.tokens.items():
        summary = whole.record["updates"][update]
        baseline = -tokens["advantage"] * (1 - np.exp(tokens["logprob"]))
        share = {name: tokens[name] / tokens["states"] for name in ENTROPY_CHANGE}
        share |= {"output_layer_influence": tokens["output_layer_influence"], "baseline": baseline}
        pushed = tokens["advantage"] != 0
        for name in SOURCE_ESTIMATES:
            for question, told, truth in (
                ("source", share[name], tokens["influence"]),
                ("size", share[name][pushed].abs(), tokens["influence"][pushed].abs()),
            ):
                expected = agreement(told, truth) | ({"sign": math.nan} if question == "size" else {})
                found = {m: math.nan if v[0] is None else v[0] for m, v in summary[question][name].items()}
                assert found == pytest.approx(expected, rel=1e-9, nan_ok=True), (question, name)
        for name in RUNGS:
            found = {m: v[0] for m, v in summary["target"][name].items()}
            assert found == pytest.approx(agreement(tokens[name], tokens["measured"]), rel=1e-9), name
        assert summary["target"]["first_order"]["pearson"][0] > 0.99


def test_where_states_share_nothing_the_exact_form_has_factor_one_as_influence_too():
    """A tabular policy: the influence on the mean is the change at the token's own state over their number."""
    table = tabular_tokens(states=400, vocabulary=30, eta=1e-5)
    table = table.assign(states=len(table), influence=table["measured"] / len(table), output_layer_influence=0.0)
    found = answers(table.assign(output_layer=0.0, first_order=table["measured"]))
    for question in ("target", "source", "size"):
        assert found[question]["exact"]["slope"][0] == pytest.approx(1, rel=1e-4), question
    assert found["source"]["paper"]["slope"][0] != pytest.approx(1, abs=0.01)


def test_totals_and_contributions_are_means_over_the_mini_batches(whole):
    for update, tokens in whole.tokens.items():
        summary = whole.record["updates"][update]
        batches = [rows for _, rows in tokens.groupby(tokens["group"] // 2)]
        assert len(batches) == 2
        totals = summary["totals"]
        assert totals["measured"] == pytest.approx(np.mean([rows["measured"].mean() for rows in batches]))
        assert totals["influence"] == pytest.approx(np.mean([rows["influence"].sum() for rows in batches]))
        for column in ("quadrant", "group"):
            rows = summary["contributions"][column]
            assert {row[column] for row in rows} == set(tokens[column])
            assert sum(row["tokens"] for row in rows) == len(tokens)
            for name in ("measured", "influence", "output_layer"):
                assert sum(row[name] for row in rows) == pytest.approx(totals[name], rel=1e-9)


def test_contributions_by_text_rank_tokens_by_influence(whole, policy):
    for update, tokens in whole.tokens.items():
        rows = whole.record["updates"][update]["contributions"]["text"]
        influences = [row["influence"] for row in rows]
        assert influences == sorted(influences)
        assert {row["text"] for row in rows} <= set(tokens["text"])
        assert tokens["text"].tolist() == [policy.tokenizer.decode([i]) for i in tokens["token"]]
        for row in rows:
            alike = tokens[tokens["text"] == row["text"]]
            assert row["influence"] == pytest.approx(alike["influence"].sum() / 2)


def test_the_written_folder_holds_the_record_the_figure_and_every_tokens_row(whole, tmp_path):
    assert write_estimate(whole, tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "estimate.json"
    names = ["estimate.json", "estimate.png", "tokens_adamw_1e-05.csv.gz", "tokens_sgd_0.001.csv.gz"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == names
    assert json.loads((tmp_path / "new" / "folder" / "estimate.json").read_text()) == whole.record
    assert (tmp_path / "new" / "folder" / "estimate.png").read_bytes().startswith(b"\x89PNG")
    for update, tokens in whole.tokens.items():
        table = pd.read_csv(tmp_path / "new" / "folder" / f"tokens_{update.replace(':', '_')}.csv.gz")
        assert list(table) == [*PLACES, *RUNGS, "measured", "influence", "output_layer_influence", "states"]
        np.testing.assert_allclose(table["influence"], tokens["influence"], rtol=1e-5)
        assert table["text"].tolist() == tokens["text"].tolist()
    (tmp_path / "file").write_text("")
    with pytest.raises(SteerError, match=r"--out: .*file cannot be written .*; name another folder"):
        write_estimate(whole, tmp_path / "file")


def test_the_figure_shows_every_estimate_of_every_update_with_its_correlations(whole):
    figure = estimate_figure(whole.tokens, whole.record)
    assert len(figure.axes) == len(RUNGS) * len(UPDATES)
    for axis, (update, name) in zip(figure.axes, [(u, n) for u in whole.tokens for n in RUNGS], strict=True):
        scores = whole.record["updates"][update]["target"][name]
        (text,) = axis.texts
        assert text.get_text() == f"r = {scores['pearson'][0]:.2f}\nrank r = {scores['spearman'][0]:.2f}"
        assert len(axis.collections[0].get_offsets()) == len(whole.tokens[update])


def test_a_score_that_is_undefined_is_shown_as_such_and_stops_nothing(whole):
    """One prompt has no interval; JSON holds null there."""
    (update, tokens), *_ = whole.tokens.items()
    summary = json.loads(json.dumps(whole.record["updates"][update]))
    for scores in (*summary["target"].values(), *summary["source"].values(), *summary["size"].values()):
        scores.update(pearson=[None] * 3, sign=[0.5, None, None])
    record = {**whole.record, "updates": {update: summary}}
    console = Console(width=ESTIMATE_COLUMNS, record=True, file=io.StringIO())
    console.print(estimate_table(record, update))
    assert console.export_text().count("0.50 [-, -]") == len(RUNGS) + 1 + 2 * len(SOURCE_ESTIMATES)
    figure = estimate_figure({update: tokens}, record)
    assert all(axis.texts[0].get_text().startswith("r = -\n") for axis in figure.axes)
