"""Names beside lines: near their ends, in order, and never on one another."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from steer_core.common.plot_style import apart, name_lines


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8))
def test_places_keep_their_gap_and_their_order(places):
    moved = apart(places, 3.0)
    order = sorted(range(len(places)), key=places.__getitem__)
    assert all(moved[j] - moved[i] >= 3.0 - 1e-9 for i, j in pairwise(order))


def test_places_far_apart_stay_and_a_crowd_opens_around_its_middle():
    assert apart([0.0, 50.0, 10.0], 4.0) == [0.0, 50.0, 10.0]
    assert apart([10.0, 10.0, 40.0], 4.0) == [8.0, 12.0, 40.0]
    assert apart([0.0, 1.0, 4.5], 4.0) == pytest.approx([-13 / 6, 11 / 6, 35 / 6])  # the pair, opened, meets the third


def test_names_stand_behind_the_ends_of_their_lines_in_their_colours():
    axis = Figure().subplots()
    for name, end, colour in (("low", 1.0, "#0072b2"), ("high", 1.001, "#d55e00"), ("_seed", 5.0, "#1f2a36")):
        axis.plot([0, 1], [0, end], color=colour, label=name)
    name_lines(axis)
    low, high = axis.texts
    assert (low.get_text(), low.get_color(), low.xy) == ("low", "#0072b2", (1.0, 1.0))
    assert (high.get_text(), high.get_color()) == ("high", "#d55e00")
    gap = 72 / axis.figure.dpi * (axis.transData.transform(high.xy)[1] - axis.transData.transform(low.xy)[1])
    assert gap + high.xyann[1] - low.xyann[1] == pytest.approx(1.25 * 7.5)
