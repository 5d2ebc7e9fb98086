"""A diagnosis of dumps made by hand: each trouble is found, its opposite is not, what is lacking is undecided."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from dumped import changed, drawn, without

from steer_core.common.errors import SteerError
from steer_core.diagnose import methods, words
from steer_core.diagnose.change import measured
from steer_core.diagnose.diagnosis import diagnose
from steer_core.diagnose.findings import QUADRANT_WORDS
from steer_core.diagnose.page import render, write_page
from steer_core.diagnose.states import States
from steer_core.formulas.entropy_change import ENTROPY_CHANGE, QUADRANTS
from steer_core.interventions import METHODS
from steer_core.interventions.base import Intervention
from steer_core.interventions.steer import Steer
from steer_core.runs.dumps import of_rows

ROWS = drawn(steps=4, drift=0.05)


def seen_of(rows):
    return diagnose(of_rows(rows, "made"))


@pytest.fixture(scope="module")
def calm():
    return seen_of(ROWS)


def status(rows, key):
    return seen_of(rows).findings[key].status


def test_a_run_in_which_nothing_happens_is_told_so(calm):
    found = {key: finding.status for key, finding in calm.findings.items()}
    assert found.pop("gap") == "undecided"  # no log-probs of a sampler
    assert set(found.values()) == {"not found"}
    assert calm.advice == []
    assert "None of the troubles" in words.verdict_of(calm)


def test_collapse_and_explosion_are_found_by_the_entropys_course_and_few_steps_decide_nothing():
    falling = drawn(steps=6, sharpness=lambda step: 1.0 + step)
    rising = drawn(steps=6, sharpness=lambda step: 3.0 / step)
    assert [status(falling, key) for key in ("collapse", "explosion")] == ["found", "not found"]
    assert [status(rising, key) for key in ("collapse", "explosion")] == ["not found", "found"]
    assert [status(falling[:16], key) for key in ("collapse", "explosion")] == ["undecided", "undecided"]
    assert status(drawn(steps=1, sharpness=lambda step: 600.0), "collapse") == "found"  # next to nothing is left


def test_collapse_is_found_by_sampled_log_probs_alone():
    rows = without(drawn(steps=6, sharpness=lambda step: 1.0 + step), "entropy")
    finding = seen_of(rows).findings["collapse"]
    assert finding.status == "found"
    assert finding.says.startswith("The mean of -ln p")


def test_the_clip_is_counted_by_side_and_place():
    def moved(row):
        first = [x - 1.0 if row["advantage"] < 0 else min(x + 1.0, 0) for x in row["old_logprob"][:2]]
        return first + row["old_logprob"][2:]

    rows = changed(drawn(), "logprob", moved)
    seen = seen_of(rows)
    tokens = sum(len(row["logprob"]) for row in rows)
    low = sum(2 for row in rows if row["advantage"] < 0)
    assert seen.clip.low == pytest.approx(low / tokens)
    raised = ((r["logprob"], r["old_logprob"]) for r in rows if r["advantage"] > 0)
    high = sum(math.exp(n - o) > 1.28 for pair in raised for n, o in zip(*pair, strict=True))
    assert seen.clip.high == pytest.approx(high / tokens)
    assert seen.clip.dual == 0
    assert seen.clip.position < 0.2
    assert seen.findings["clipping"].status == "found"
    assert seen.positions.clipped.iloc[0] > 0.5 > seen.positions.clipped.iloc[-1] == 0
    assert status(without(rows, "old_logprob"), "clipping") == "undecided"
    wide = changed(changed(rows, "clip_low", lambda r: 0.99), "clip_high", lambda r: 5.0)
    assert status(wide, "clipping") == "not found"
    assert status(wide, "far") == "found"


def test_quadrants_hold_every_token_that_has_an_advantage_and_the_papers_sums(calm):
    states = calm.states
    change = ENTROPY_CHANGE["paper"](states.new, states.old, states.advantages, states.clip)
    likely = states.new.logprob > -states.new.entropy
    first = calm.quadrants["positive_likely"]
    inside = likely & (states.advantages > 0)
    assert first.share == pytest.approx(float(inside.double().mean()))
    assert first.change == pytest.approx(float(change[inside].sum()))
    assert first.change < 0 < calm.quadrants["positive_unlikely"].change
    assert sum(one.share for one in calm.quadrants.values()) == pytest.approx(1)
    assert sum(one.share_of_size for one in calm.quadrants.values()) == pytest.approx(1)


def test_a_quadrant_that_carries_most_is_named():
    rows = changed(ROWS, "advantage", lambda row: 1.0 if row["reward"] else -0.05)
    finding = seen_of(rows).findings["quadrant"]
    assert finding.status == "found"
    assert finding.says.startswith(QUADRANT_WORDS["positive_likely"])


def test_an_outlier_is_found_with_its_row_place_and_number():
    rows = [dict(row) for row in ROWS]
    rows[5]["advantage"] = [1.0] * len(rows[5]["logprob"])
    likely = int(np.argmax([math.exp(x) * (1 - math.exp(x)) for x in rows[5]["logprob"]]))
    rows[5]["advantage"][likely] = 2000.0
    seen = seen_of(rows)
    assert seen.findings["outliers"].status == "found"
    top = seen.movers.largest[0]
    assert top.where == f"made, row 6, token {likely + 1}"
    assert top.advantage == 2000.0
    assert top.change == pytest.approx(float(seen.states.change.abs().max()) * math.copysign(1, top.change))
    assert "quantile" in next(one for one in seen.advice if one.because == "outliers").what


def test_truncation_is_found_as_told_or_by_the_longest_length_and_undecided_without_both():
    cut = changed(ROWS, "truncated", lambda row: row["reward"] == 0)
    seen = seen_of(cut)
    assert seen.truncation.share == pytest.approx(np.mean([row["reward"] == 0 for row in ROWS]))
    assert (seen.truncation.reward_cut, seen.truncation.reward_ended) == (0, 1)
    assert seen.findings["truncation"].status == "found"
    by_length = without(changed(ROWS, "max_tokens", lambda row: 6), "truncated")
    assert seen_of(by_length).truncation.share == 1
    assert status(without(ROWS, "truncated", "max_tokens"), "truncation") == "undecided"


def test_groups_without_signal_are_counted_by_step_and_told_apart_by_reward():
    def silent(row):
        return row["group"].endswith((".0", ".1", ".2"))

    rows = changed(ROWS, "advantage", lambda row: 0.0 if silent(row) else row["advantage"])
    rows = changed(
        rows, "reward", lambda row: 1.0 if row["group"].endswith(".0") else 0.0 if silent(row) else row["reward"]
    )
    seen = seen_of(rows)
    assert (seen.groups.no_signal, seen.groups.all_right, seen.groups.all_wrong) == (0.75, 0.25, 0.5)
    assert seen.groups.by_step == {1: 0.75, 2: 0.75, 3: 0.75, 4: 0.75}
    assert seen.findings["silence"].status == "found"
    assert "easier" in next(one.what for one in seen.advice if one.because == "silence")
    assert status(without(rows, "group"), "silence") == "undecided"


@pytest.mark.parametrize(("gap", "found"), [(1e-6, "not found"), (0.005, "not found"), (0.1, "found")])
def test_a_gap_between_sampler_and_trainer_is_found_by_its_size(gap, found):
    rows = changed(drawn(), "sampler_logprob", lambda row: [x - gap for x in row["old_logprob"]])
    seen = seen_of(rows)
    assert seen.gap.mean == pytest.approx(gap)
    assert seen.findings["gap"].status == found


def test_a_gap_is_undecided_where_the_trainers_log_probs_are_the_samplers_or_those_after_the_update():
    copied = changed(drawn(), "sampler_logprob", lambda row: row["old_logprob"])
    assert status(copied, "gap") == "undecided"
    sampled = changed(drawn(drift=0.3), "sampler_logprob", lambda row: row["old_logprob"])
    assert status(without(sampled, "old_logprob"), "gap") == "undecided"


@pytest.mark.parametrize(
    ("start", "end", "collapse", "explosion"),
    [
        (0.010, 0.018, "not found", "not found"),  # next to nothing, and rising
        (0.018, 0.010, "found", "not found"),
        (0.040, 0.090, "not found", "not found"),
        (0.040, 0.150, "not found", "found"),
        (1.0, 1.4, "not found", "not found"),
    ],
)
def test_a_rise_of_little_is_no_explosion_and_one_from_next_to_nothing_no_collapse(start, end, collapse, explosion):
    seen = seen_of(drawn(steps=6))
    seen = replace(seen, course=replace(seen.course, start=start, end=end))
    found = seen.findings
    assert (found["collapse"].status, found["explosion"].status) == (collapse, explosion)


def test_a_method_is_named_against_collapse_only_where_the_pushes_lower_entropy_and_it_lifts_them():
    for seed in range(3):
        seen = seen_of(drawn(steps=6, sharpness=lambda step: 1.0 + step, seed=seed))
        plain = next(one for one in seen.effects if one.name == "none")
        named = [one.what for one in seen.advice if one.because == "collapse" and "Of the methods" in one.what]
        assert bool(named) == (plain.change < 0)
        for text in named:
            best = next(one for one in seen.effects if f", {one.name} would lift" in text)
            assert best.change > plain.change
            assert best.mean < 1


# ---- what methods would do


def effect_of(seen, name):
    return next(one for one in seen.effects if one.name == name)


def test_every_method_is_told_of_or_named_with_the_reason(calm):
    assert {one.name for one in calm.effects} == set(METHODS) - {"steer-control"}
    silent = {one.name for one in calm.effects if one.why_not}
    assert silent == {"influence", "entropy-loss", "adaptive-entropy-loss"}
    assert len(words.method_lines(calm)) == len(calm.effects) - len(silent)
    assert any("needs the model" in text for text in words.silent_methods(calm))


def test_steers_factors_are_its_weights_step_by_step_and_the_largest_change_gets_lambda_min(calm):
    states, expected = calm.states, torch.empty(len(calm.states), dtype=torch.float64)
    for step in calm.dump.steps:
        part = states.step == step
        expected[part] = Steer().weights(states.at(part).tokens(states.clip, {}))
    plain = methods._pushes(Intervention(), calm.dump, states)
    pushed = plain != 0
    factor = methods._pushes(Steer(), calm.dump, states)[pushed] / plain[pushed]
    torch.testing.assert_close(factor, expected[pushed])
    effect = effect_of(calm, "steer")
    assert effect.smallest == pytest.approx(0.7)
    assert effect.damped == pytest.approx(float((expected[pushed] < 0.99).double().mean()))
    assert effect.top_damped == 1
    assert effect.size < effect.mean < 1  # it takes more of the estimated change than of the pushes


def test_grpos_own_pushes_are_ratio_times_advantage_where_the_clip_passes(calm):
    states = calm.states
    plain = methods._pushes(Intervention(), calm.dump, states)
    passes = ((states.advantages > 0) & (states.ratio <= 1.28)) | ((states.advantages < 0) & (states.ratio >= 0.8))
    torch.testing.assert_close(plain, states.ratio * states.advantages * passes)
    grpo = effect_of(calm, "none")
    assert (grpo.damped, grpo.raised, grpo.mean, grpo.size) == (0, 0, 1, 1)
    assert grpo.change == pytest.approx(float(states.change.sum()))


def test_w_reinforce_damps_every_push_of_a_good_response_and_no_other(calm):
    effect = effect_of(calm, "w-reinforce")
    assert effect.by_quadrant == pytest.approx(
        {name: 0.1 if name.startswith("positive") else 1.0 for name in QUADRANTS}
    )
    assert effect.smallest == pytest.approx(0.1)


def test_a_method_that_credits_responses_is_given_whole_groups_or_says_what_it_lacks(calm):
    effect = effect_of(calm, "boundary-gate")
    assert effect.mean == 1  # every group is a problem of its own, and none was solved before
    same = changed(ROWS, "group", lambda row: row["group"].split(".")[1])
    gated = effect_of(seen_of(same), "boundary-gate")
    assert gated.smallest == 0
    assert gated.damped == pytest.approx(0.75, abs=0.1)  # all but the first step
    raised = effect_of(calm, "differential-smoothing")
    assert raised.raised > 0.4 > raised.damped == 0
    lacking = effect_of(seen_of(without(ROWS, "reward")), "boundary-gate")
    assert "give `group` and `reward`" in lacking.why_not


def test_a_closed_loop_is_asked_to_hold_the_entropy_of_the_first_step():
    falling = seen_of(drawn(steps=4, sharpness=lambda step: float(step)))
    stare = effect_of(falling, "stare")
    first = float(falling.states.old.entropy[falling.states.step == 1].mean())
    assert stare.settings == f"target={first:.3g}"
    assert stare.largest == pytest.approx(1.1)  # its gate opens as entropy falls below
    assert stare.smallest == 1


def test_without_entropies_of_states_no_method_is_told_of():
    seen = seen_of(changed(ROWS, "entropy", lambda row: [-x for x in row["logprob"]]))
    assert seen.entropy.kind == "sampled"
    assert all(one.why_not for one in seen.effects)
    assert seen.quadrants == {}
    assert [seen.findings[key].status for key in ("wrong_entropy", "quadrant", "outliers")] == [
        "found", "undecided", "undecided"
    ]  # fmt: skip
    assert "calculate_entropy" in seen.advice[0].what


# ---- estimates against measured changes


def twice(factor, noise=0.0):
    """A step, and the same responses at the next with entropies changed by `factor` times the paper's estimate."""
    rows, random = drawn(steps=1), np.random.default_rng(3)
    dump = of_rows(rows, "made")
    change = np.split(States.of(dump, 1.0).change.numpy(), np.cumsum(dump.responses.length)[:-1])
    later = [
        row
        | {
            "step": 2,
            "entropy": (np.array(row["entropy"]) + factor * own + noise * random.normal(size=len(own))).tolist(),
        }
        for row, own in zip(rows, change, strict=True)
    ]
    return of_rows(rows + later[::-1], "made")


@pytest.mark.parametrize("factor", [0.01, -0.01])
def test_an_estimate_that_tells_the_change_is_seen_to_and_one_of_the_wrong_sign_too(factor):
    dump = twice(factor)
    found = measured(dump, States.of(dump, 1.0))
    sign = math.copysign(1, factor)
    assert found.pairs == 16
    assert found.tokens == len(dump) / 2
    assert found.by_form["paper"]["pearson"].mean == pytest.approx(sign, abs=1e-6)
    assert found.by_form["paper"]["sign"].mean == (factor > 0)
    assert found.change == pytest.approx(factor * found.predicted["paper"])


def test_noise_lowers_the_agreement_and_no_pair_is_told():
    dump = twice(0.01, noise=0.01)
    assert 0.1 < measured(dump, States.of(dump, 1.0)).by_form["paper"]["pearson"].mean < 0.95
    alone = of_rows(ROWS, "made")
    assert measured(alone, States.of(alone, 1.0)).why_not == "no response comes at two steps"


# ---- the page and the command


def test_the_page_holds_all_it_shows_and_escapes_what_a_dump_holds(tmp_path):
    rows = changed(ROWS, "tokens", lambda row: ["<script>alert(1)</script>"] * len(row["logprob"]))
    rows = changed(rows, "prompt", lambda row: "$<b>`")
    page = render(seen_of(rows))
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "&lt;script&gt;" in page
    assert write_page(seen_of(rows), tmp_path / "out") == tmp_path / "out" / "diagnosis.html"
    numbers = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert numbers["entropy"]["kind"] == "shannon"
    assert numbers["findings"]["collapse"]["status"] == "not found"
    with pytest.raises(SteerError, match="cannot be written"):
        write_page(seen_of(rows), tmp_path / "out" / "diagnosis.json")


@pytest.mark.parametrize(
    "kept", ["entropy old_logprob", "group reward truncated max_tokens step", "", "entropy token_ids"]
)
def test_a_dump_that_lacks_columns_gives_a_page_all_the_same(kept):
    every = {"entropy", "old_logprob", "group", "reward", "truncated", "max_tokens", "token_ids", "step", "vocabulary",
             "clip_low", "clip_high"}  # fmt: skip
    seen = seen_of(without(ROWS, *(every - set(kept.split()))))
    assert "undecided" in render(seen)
    assert seen.to_decide


def test_a_dump_without_any_advantage_or_of_one_token_is_told_of_too():
    assert "no token has a push" in words.silent_methods(seen_of(changed(ROWS, "advantage", lambda row: 0.0)))[0]
    one = [{"logprob": [-0.5], "advantage": 1.0, "entropy": [0.4]}]
    assert seen_of(one).entropy.kind == "undecided"
    assert render(seen_of(one))
