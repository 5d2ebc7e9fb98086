"""`steer show`: the page's numbers are the file's, colours follow them, and no sampled text is markup."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampled import HOSTILE, response, some_responses

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.runs.responses import read, write
from steer_core.runs.rollouts import rollout_path
from steer_core.show import show
from steer_core.show.colours import DARK, LEVELS, LIGHT, Scale, contrast, level_class, luminance, stylesheet
from steer_core.show.page import MEASURES, Heading, embedded, legend, most_damped, number, render, shown, summary
from steer_core.show.watched import watched_step

HEADING = Heading("runs/one", 3, "steer", "paper", {})
COLUMN = {"lambda": "lambda_"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser makes of a page without running it: tags, and the text of each response."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if dict(attrs).get("class") == "text tokens":
            self.texts.append("")
            self.inside = tag

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def make_run(folder, steps=(1, 2, 5), rows=None, method="steer"):
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"intervention:\n  name: {method}\n")
    for step in steps:
        write(rollout_path(folder, step), rows or some_responses())
    return folder


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr().err
    assert exit.value.code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    return told


def test_the_pages_numbers_are_the_files(tmp_path):
    run = make_run(tmp_path / "run", steps=[7])
    page = show(run)[0].read_text(encoding="utf-8")
    rows, told = read(rollout_path(run, 7)), data_of(page)
    assert len(told["responses"]) == len(rows) == 6
    for row, shown_row in zip(rows, told["responses"], strict=True):
        assert (shown_row["tokens"], shown_row["ids"]) == (row.tokens, row.token_ids)
        assert shown_row["logprob"] == pytest.approx(row.logprob, rel=1e-5)
        for name in ("lambda", "omega", "entropy", "probability"):
            assert shown_row["values"][name] == pytest.approx(getattr(row, COLUMN.get(name, name)), rel=1e-5)
    facts = re.findall(r'<article id="r(\d+)".*?data-reward="([\d.]+)".*?>(.*?)</dl>', page, re.DOTALL)
    facts.sort(key=lambda fact: int(fact[0]))
    assert [(int(i), float(reward)) for i, reward, _ in facts] == [(i, row.reward) for i, row in enumerate(rows)]
    for row, (_, _, text) in zip(rows, facts, strict=True):
        values = re.findall(r"<dd[^>]*>(.*?)</dd>", text)
        finish = "cut off" if row.finish_reason == "length" else row.finish_reason
        assert values[:5] == [str(row.sample), number(row.reward), number(row.advantage), finish, str(len(row.tokens))]
        assert values[5:] == [number(np.mean(row.entropy)), number(min(row.lambda_))]


def test_the_numbers_at_the_top_are_taken_over_all_tokens():
    rows = [
        response(["a", "b", "c"], reward=1.0, lambda_=[1.0, 0.99, 0.9], entropy=[0.0, 1.0, 2.0]),
        response(["d"], reward=0.0, finish="stop", lambda_=[1.5], entropy=[5.0]),
    ]
    told = summary(rows)
    assert told["reward"] == 0.5
    assert told["entropy"] == 2.0
    assert told["undamped"] == 0.5
    assert (told["smallest"], told["cut"], told["tokens"]) == (0.9, 0.5, 4)
    page = render(rows, HEADING)
    assert "50.0%" in page
    assert "2 responses to 1 problem, 4 tokens" in page


def test_the_most_damped_tokens_are_listed_by_weight_then_by_size():
    rows = [response(["a", "b"], lambda_=[0.7, 1.0], omega=[0.1, 0.0]), response([" c"], lambda_=[0.7], omega=[-0.2])]
    listed = most_damped(rows)
    assert [(x["text"], x["row"], x["token"]) for x in listed] == [("␣c", 1, 0), ("a", 0, 0)]
    assert "No token was damped." in render([response(["a"], lambda_=[1.0])], HEADING)
    assert len(most_damped([response(["x"] * 40)])) == 10


def test_the_page_begins_with_the_most_damped_response_and_ends_with_one_without_colour():
    rows = [
        response(["a"], lambda_=[1.0], omega=[0.0]),
        response(["b"], sample=1, lambda_=[1.0], omega=[-0.4]),
        response(["c"], sample=2, lambda_=[0.7], omega=[0.1]),
    ]
    page = render(rows, HEADING)
    assert re.findall(r'<article id="r(\d+)"', page) == ["2", "1", "0"]
    assert re.findall(r'data-rank="(\d+)"', page) == ["0", "1", "2"]
    assert '<option value="damped" selected>' in page


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=20), st.sampled_from(MEASURES))
def test_colours_follow_the_values(values, measure):
    scale = Scale.of(values, measure.neutral, measure.power, measure.extent)
    levels = [scale.level(value) for value in sorted(values)]
    assert levels == sorted(levels)
    assert all(scale.level(value) * (value - measure.neutral) >= 0 for value in values)
    assert scale.level(measure.neutral) == scale.level(math.nan) == 0
    if measure.extent is None and scale.extent:
        assert max(map(abs, levels)) == LEVELS
    for level in scale.levels:
        assert scale.level(scale.value(level)) == level


def test_the_page_colours_each_token_by_the_scale_of_the_page():
    rows = some_responses()
    levels = [row["levels"] for row in data_of(render(rows, HEADING))["responses"]]
    for measure in MEASURES:
        scale = measure.scale(rows)
        assert [row[measure.key] for row in levels] == [[scale.level(x) for x in measure.values(row)] for row in rows]
    both = {level > 0 for row in levels for level in row["omega"] if level}
    assert both == {True, False}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_ink_is_readable_on_every_level_and_each_is_stronger_than_the_last(theme):
    assert theme.colour(0) == theme.paper
    for sign in (1, -1):
        ramp = [theme.colour(sign * level) for level in range(LEVELS + 1)]
        assert min(contrast(theme.ink, colour) for colour in ramp) >= 4.5
        away = [abs(luminance(colour) - luminance(theme.paper)) for colour in ramp]
        assert away == sorted(away)
        assert len(set(ramp)) == LEVELS + 1
    assert level_class(-3) == "n3"
    assert f".p16{{background:{theme.colour(16)}}}" in stylesheet()


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_two_sides_differ_for_colour_blind_eyes(theme):
    """Machado, Oliveira and Fernandes (2009), severity 1: protanopia, deuteranopia, tritanopia; on linear RGB."""
    seen = (
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    )

    def linear(colour):
        shares = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)

    for matrix in seen:
        below, above = ((np.array(matrix) @ linear(theme.colour(k))).clip(0, 1) ** (1 / 2.2) for k in (-LEVELS, LEVELS))
        assert np.linalg.norm(below - above) > 0.3


def test_a_legend_runs_from_the_lowest_value_to_the_highest():
    told = legend(Scale.of([-0.4, 0.1], 0.0, 0.5))
    assert [text for text, _ in told["ticks"]] == ["−0.400", "−0.100", "0", "0.100", "0.400"]  # noqa: RUF001
    assert [place for _, place in told["ticks"]] == sorted(place for _, place in told["ticks"])
    assert (told["cells"][0], told["cells"][16], told["cells"][-1]) == ("n16", "zero", "p16")
    assert [text for text, _ in legend(Scale.of([0.7, 1.0], 1.0))["ticks"]] == ["0.700", "0.850", "1.00"]
    assert legend(Scale.of([1.0, 1.0], 1.0))["cells"] == []
    assert "λ is 1.00 at every token" in render([response(["a"], lambda_=[1.0])], HEADING)


def test_no_sampled_text_is_markup():
    nasty = "".join(HOSTILE)
    row = response(HOSTILE, nasty, prompt=nasty, finish="stop")
    text = render([row], dataclasses.replace(HEADING, run=nasty, method=nasty))
    page, plain = Page(text), Page(render([response(["a"] * len(HOSTILE), prompt="b")], HEADING))
    assert page.tags.count("script") == plain.tags.count("script") == 2
    assert set(page.tags) <= {*plain.tags, "details", "summary"}
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert data_of(text)["responses"][0]["tokens"] == HOSTILE
    assert page.texts == [shown(row.response)]
    assert "49" not in page.texts[0]


@given(st.text(max_size=30))
def test_any_text_goes_into_the_page_and_comes_back(text):
    page = render([response([text, text])], HEADING)
    assert data_of(page)["responses"][0]["tokens"] == [text, text]


def test_embedded_json_cannot_end_its_element():
    told = embedded(["</script><!--", "\u2028&", math.pi])
    assert not set("<>&\u2028") & set(told)
    assert json.loads(told) == ["</script><!--", "\u2028&", math.pi]


def test_the_page_needs_nothing_from_another_place():
    page = render(some_responses(), HEADING)
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_text_and_rewards_are_there_without_the_script():
    rows = some_responses()
    page = render(rows, HEADING)
    assert sorted(Page(page).texts) == sorted(row.response for row in rows)
    assert page.count('<div class="reward">') == len(rows)
    assert "<noscript>" in page


def test_numbers_that_are_not_there_show_as_a_dash_and_no_colour():
    nan = float("nan")
    page = render([response(["a", "b"], entropy=[nan, 1.0], omega=[nan, math.inf])], HEADING)
    told = data_of(page)["responses"][0]
    assert told["values"]["omega"] == [None, None]
    assert told["levels"]["entropy"] == [0, 16]
    assert render([], HEADING)
    assert render([response([])], HEADING)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.70004, "0.700"), (-12.345, "−12.3"), (1.5e-7, "1.50e−7"), (4321.0, "4321"), (math.nan, "–")],  # noqa: RUF001
)
def test_a_number_has_three_digits_that_count(value, text):
    assert number(value) == text


def test_the_last_step_is_shown_beside_its_file(tmp_path, capsys):
    run = make_run(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["show", str(run)])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"written: {run}/rollouts/step_000005.html\n"
    assert "Responses of rollout 5" in (run / "rollouts" / "step_000005.html").read_text(encoding="utf-8")


def test_pages_link_to_the_pages_before_and_after_that_exist(tmp_path):
    run = make_run(tmp_path)

    def links(step):
        page = (run / "rollouts" / f"step_{step:06d}.html").read_text(encoding="utf-8")
        return re.findall(r'<a rel="(\w+)" href="([^"]+)"', page)

    show(run, [1])
    assert links(1) == []
    assert [path.name for path in show(run, [5, 1])] == ["step_000001.html", "step_000005.html"]
    assert links(1) == [("next", "step_000005.html")]
    show(run, [2])  # the pages on both sides learn of it
    assert links(1) == [("next", "step_000002.html")]
    assert links(2) == [("prev", "step_000001.html"), ("next", "step_000005.html")]
    assert links(5) == [("prev", "step_000002.html")]
    assert not [path for path in (run / "rollouts").iterdir() if path.name.startswith(".")]


def test_out_names_the_page_of_one_step(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert show(run, [2], tmp_path / "new" / "page.html") == [tmp_path / "new" / "page.html"]
    assert not list((run / "rollouts").glob("*.html"))
    told = error_of(capsys, "show", run, "--step", "1", "--step", "2", "--out", tmp_path / "a.html")
    assert "--out: " in told
    assert "is one page and 2 steps are asked for" in told
    (tmp_path / "file").touch()
    assert "cannot be written" in error_of(capsys, "show", run, "--out", tmp_path / "file" / "a.html")


def test_the_form_of_the_estimate_is_told(tmp_path):
    run = make_run(tmp_path, steps=[1])
    (run / "config.yaml").write_text("intervention:\n  name: steer\n  form: exact\n")
    assert "in the exact form" in show(run)[0].read_text(encoding="utf-8")


def test_a_step_that_is_not_there_lists_those_that_are(tmp_path, capsys):
    run = make_run(tmp_path, steps=(1, 2, 3, 7, 9, 10))
    told = error_of(capsys, "show", run, "--step", "4")
    assert f"--step: 4 is not in {run}; it holds steps 1 to 3, 7, 9 to 10" in told


def test_a_run_without_tokens_says_why(tmp_path, capsys):
    assert "holds no config.yaml" in error_of(capsys, "show", tmp_path)
    run = make_run(tmp_path / "run", steps=())
    assert "train.logged_responses above 0" in error_of(capsys, "show", run)
    (run / "rollouts" / "step_000001.jsonl").write_text("{}\n")
    assert "as older versions wrote them, without tokens" in error_of(capsys, "show", run)
    whole = tmp_path / "comparison"
    make_run(whole / "runs" / "grpo" / "seed_0")
    (whole / "plan.yaml").touch()
    assert f"for example {whole}/runs/grpo/seed_0" in error_of(capsys, "show", whole)


def test_a_damaged_file_is_named_and_leaves_no_page(tmp_path, capsys):
    run = make_run(tmp_path)
    rollout_path(run, 5).write_bytes(b"PAR1")
    assert f"responses {rollout_path(run, 5)}: damaged" in error_of(capsys, "show", run)
    assert not list((run / "rollouts").glob("*.html"))


def test_a_run_is_needed():
    with pytest.raises(SteerError, match=r"holds no config\.yaml"):
        show(rollout_path("nowhere", 1))


def test_what_the_watched_step_did_stands_beside_what_was_predicted(tmp_path):
    run = make_run(tmp_path, steps=(1, 2))
    rows = [
        {"step": 1, "probe/change/measured": -1.25e-3, "probe/change/first_order": -1.2e-3, "probe/change/paper": -4e-9,
         "probe/pearson/first_order": 0.987, "probe/sign/first_order": 0.75, "entropy/policy": 0.3},
        {"step": 2, "entropy/policy": 0.29},
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    first, second = (path.read_text(encoding="utf-8") for path in show(run, [1, 2]))
    table = first[first.index("Predicted against measured") :]
    cells = re.findall(r"<td>(?:<b>)?([^<]*)", table)[:9]
    expected = [number(-1.25e-3), "", "", number(-1.2e-3), "0.987", "0.750", number(-4e-9), *[number(math.nan)] * 2]
    assert cells == expected
    assert "Predicted against measured" not in second
    assert watched_step(run, 2) is None


def test_a_whole_group_stands_together_by_problem(tmp_path):
    rows = [response(["a", "b"], "p", sample) for sample in range(8)] + [response(["c"], "q")]
    sections = re.findall(r"<section>(.*?)</section>", render(rows, HEADING), re.DOTALL)
    assert sorted(section.count("<article") for section in sections) == [1, 8]
    assert any("over 8</small>" in section for section in sections)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_browser_turns_hostile_tokens_into_spans_and_runs_none(tmp_path):
    run = make_run(tmp_path / "run", steps=[1], rows=[response(HOSTILE, finish="stop"), response(["7"], sample=1)])
    page = show(run)[0]
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run([CHROMIUM, *options, page.as_uri()], capture_output=True, check=True, timeout=120)
    dom = done.stdout.decode()
    assert '<html lang="en" class="script">' in dom
    spans = re.search(r'class="text tokens"[^>]*>(.*?)</div>', dom, re.DOTALL)[1]
    levels = data_of(dom)["responses"][0]["levels"]["lambda"]
    classes = re.findall(r'<span[^>]*class="([^"]*)"', spans)
    assert len(classes) == spans.count("<span") == len(HOSTILE)
    assert ["n" + str(-k) if k else "" for k in levels] == [
        re.sub(r"\b(end|control)\b", "", x).strip() for x in classes
    ]
    assert "<img" not in dom
