"""Which entropy a dump holds is told from its numbers, on tokens whose every entropy is known."""

import math

import numpy as np
import pytest
from dumped import VOCABULARY, changed, drawn, without
from hypothesis import given
from hypothesis import strategies as st

from steer_core.diagnose.which_entropy import _binary, identify, logged_mean
from steer_core.runs.dumps import of_rows

ROWS = drawn(steps=4)


def verdict_of(rows):
    return identify(of_rows(rows, "made"))


def entropies(function):
    """ROWS with another number in place of each entropy: function(entropy, logprob, row)."""
    arrays = lambda row: (np.array(row["entropy"]), np.array(row["logprob"]), row)  # noqa: E731
    return changed(ROWS, "entropy", lambda row: np.asarray(function(*arrays(row))).tolist())


def test_shannons_entropy_in_nats_is_recognised():
    verdict = verdict_of(ROWS)
    assert (verdict.kind, verdict.divisor, verdict.factor, verdict.right) == ("shannon", "", 1.0, True)
    assert abs(verdict.slope - 1) < 3 * verdict.error < 0.1
    assert verdict.below == 0


def test_the_entropy_of_a_policy_that_is_next_to_certain_is_not_called_wrong():
    for seed in range(5):
        verdict = verdict_of(drawn(seed=seed, sharpness=lambda step: 12.0))
        assert verdict.kind in ("shannon", "undecided")
        assert verdict.factor == 1.0


def test_a_uniform_policys_entropy_is_not_called_a_sampled_one():
    flat = math.log(VOCABULARY)
    rows = changed(changed(ROWS, "entropy", lambda row: [flat] * len(row["entropy"])), "logprob",
                   lambda row: [-flat] * len(row["logprob"]))  # fmt: skip
    rows = changed(rows, "old_logprob", lambda row: row["logprob"])
    assert verdict_of(rows).kind != "sampled"


@pytest.mark.parametrize(
    ("function", "divisor", "factor"),
    [
        (lambda h, x, row: h / math.log(2), "in bits, that is divided by ln 2", math.log(2)),
        (lambda h, x, row: h / math.log(VOCABULARY), f"divided by ln V, V = {VOCABULARY}", math.log(VOCABULARY)),
        (lambda h, x, row: h / 40, "divided by the most tokens that a response may have", 40.0),
    ],
)
def test_a_shannon_entropy_that_is_divided_is_told_with_what_undoes_it(function, divisor, factor):
    verdict = verdict_of(entropies(function))
    assert (verdict.kind, verdict.divisor, verdict.right) == ("shannon", divisor, False)
    assert verdict.factor == pytest.approx(factor)


def test_an_entropy_divided_by_its_responses_length_is_told_and_undone_token_by_token():
    verdict = verdict_of(entropies(lambda h, x, row: h / len(h)))
    assert verdict.kind == "shannon"
    assert "divides twice" in verdict.divisor
    lengths = np.concatenate([np.full(len(row["logprob"]), len(row["logprob"])) for row in ROWS])
    np.testing.assert_array_equal(verdict.factor, lengths)


@pytest.mark.parametrize(
    ("function", "divisor"),
    [
        (lambda h, x, row: -x, ""),
        (lambda h, x, row: -x / math.log(2), "in bits, that is divided by ln 2"),
        (lambda h, x, row: -x / math.log(VOCABULARY), f"divided by ln V, V = {VOCABULARY}"),
        (lambda h, x, row: -x / 7.5, "divided by 7.5"),
        (
            lambda h, x, row: -x / len(h),
            "divided by the length of its response, so that a mean over tokens divides twice",
        ),
    ],
)
def test_the_sampled_negative_log_prob_is_recognised_token_by_token_divided_or_not(function, divisor):
    verdict = verdict_of(entropies(function))
    assert (verdict.kind, verdict.divisor, verdict.factor) == ("sampled", divisor, None)


def test_the_log_prob_that_the_number_repeats_is_named():
    rows = drawn(drift=0.4)
    assert (
        "the policy being updated" in verdict_of(changed(rows, "entropy", lambda r: [-x for x in r["logprob"]])).says[0]
    )
    verdict = verdict_of(changed(rows, "entropy", lambda r: [-x for x in r["old_logprob"]]))
    assert "the policy that sampled" in verdict.says[0]


def test_half_precision_does_not_hide_what_it_is():
    assert verdict_of(entropies(lambda h, x, row: (-x).astype(np.float16).astype(float))).kind == "sampled"
    assert verdict_of(entropies(lambda h, x, row: h.astype(np.float16).astype(float))).right


def test_one_number_a_response_is_no_entropy_of_states_and_the_mean_is_recognised():
    verdict = verdict_of(entropies(lambda h, x, row: np.full(len(h), -x.mean())))
    assert (verdict.kind, verdict.factor) == ("one number a response", None)
    assert "it is the mean of -ln p" in verdict.says[1]
    assert "no mean of -ln p" in verdict_of(entropies(lambda h, x, row: np.full(len(h), h.mean() + 1))).says[1]


def test_what_is_below_0_is_no_entropy_and_a_log_prob_with_its_own_sign_is_named():
    verdict = verdict_of(entropies(lambda h, x, row: x))
    assert verdict.kind == "negative"
    assert "Its negative is the negative log-prob of the sampled token" in verdict.says[2]


def test_the_entropy_at_another_temperature_is_not_taken_for_shannons():
    def colder(h, x, row):
        return 0.6 * h

    verdict = verdict_of(entropies(colder))
    assert (verdict.kind, verdict.right, verdict.factor) == ("unknown", False, None)
    assert verdict.slope == pytest.approx(1 / 0.6, rel=0.1)
    assert verdict.below > 0.02  # E[-ln p] alone would do; the bound agrees


def test_few_tokens_and_a_policy_far_from_the_one_that_sampled_are_undecided_and_said_to_be():
    few = verdict_of(ROWS[:1])
    assert few.kind == "undecided"
    assert few.factor == 1.0  # nothing speaks against it
    far = verdict_of(drawn(drift=1.0))
    assert far.kind == "undecided"
    assert "|ln ratio|" in far.says[1]
    assert verdict_of(without(ROWS, "entropy")).kind == "absent"
    wrong = verdict_of(changed(ROWS[:1], "entropy", lambda row: [0.01 * x for x in row["entropy"]]))
    assert (wrong.kind, wrong.factor) == ("undecided", None)  # far below h(p)


def test_a_policy_that_moved_a_little_since_the_draw_still_tells():
    verdict = verdict_of(drawn(steps=4, drift=0.05))
    assert verdict.right


@given(st.lists(st.floats(0.001, 20), min_size=2, max_size=12), st.data())
def test_no_shannon_entropy_lies_below_the_binary_entropy_of_any_of_its_outcomes(weights, data):
    p = np.array(weights) / sum(weights)
    h = -(p * np.log(p)).sum()
    drawn_one = data.draw(st.integers(0, len(p) - 1))
    assert h >= _binary(np.log(p[[drawn_one]]))[0] - 1e-12
    two = np.array([p[drawn_one], 1 - p[drawn_one]])
    if two.min() > 0:  # two outcomes reach the bound
        assert _binary(np.log(two[:1]))[0] == pytest.approx(-(two * np.log(two)).sum(), abs=1e-9)


@pytest.mark.parametrize(
    ("logged", "told"),
    [
        (
            lambda rows: np.mean([x for r in rows for x in r["entropy"]]),
            "the mean over tokens of the column `entropy`.",
        ),
        (
            lambda rows: np.mean([np.mean(r["entropy"]) for r in rows]),
            "the mean over responses of the mean of the column `entropy`.",
        ),
        (lambda rows: -np.mean([x for r in rows for x in r["logprob"]]), "the mean over tokens of -ln p"),
        (
            lambda rows: np.mean([np.sum(r["entropy"]) for r in rows]) / 40,
            "the mean over responses of the sum of the column `entropy`, divided by the most tokens",
        ),
        (lambda rows: 17.0, "is no mean of this dump"),
    ],
)
def test_which_mean_the_logged_entropy_is(logged, told):
    by_step = {step: float(logged([row for row in ROWS if row["step"] == step])) for step in range(1, 5)}
    dump = of_rows(changed(ROWS, "logged_entropy", lambda row: by_step[row["step"]]), "made")
    assert told in logged_mean(dump, identify(dump))[0]
    assert logged_mean(of_rows(ROWS, "made"), identify(dump)) == ()
