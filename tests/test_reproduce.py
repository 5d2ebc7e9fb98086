"""`python -m reproduce`: the catalogue, what a claim comes to, raw rows, stages at the paper's scale, and the pages."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from steer_core import SteerError
from steer_core.common.places import CONFIGS
from steer_core.common.settings import apply_overrides, to_dict
from steer_core.config.config import load_config
from steer_core.evaluation.tables import published_scores

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
from pipeline import arms, listing, needs, pool, score_page, stages
from pipeline.catalogue import RULES, Claim, catalogue, find
from pipeline.make import gathered
from pipeline.measures import judge, values
from pipeline.page import laptop_page
from pipeline.pool import refuse_other_settings
from pipeline.rows import read_rows, write_rows

ROOT = Path(__file__).parent.parent
BASE = {"pass@1": 0.1, "pass@32": 0.8, "policy_entropy": 0.5}
ABOUT = {
    "plan": {
        "arms": {"grpo": {"label": "GRPO", "overrides": []}, "steer": {"label": "STEER", "overrides": ["a=1"]}},
        "seeds": [0, 1, 2],
        "common": {"train": {"rollouts": 2}, "evaluation": {"problems": 4, "split": "test", "samples": 32}},
    },
    "base": BASE,
    "environment": {"date": "2026-11-30T00:00", "cores": 2, "processor": "CPU", "base_model_sha256": "abc"},
}


def run(arm: str, seed: int, correct: list[int], entropy: float = 0.2, **more) -> dict:
    """A finished run of two rollouts, 32 responses a problem; correct: how many of 4 are right."""
    evaluations = [{"step": 1, "samples": 32, "entropy": 0.4, "correct": [0, 0, 0, 0]},
                   {"step": 2, "samples": 32, "entropy": entropy, "correct": [8 * n for n in correct]}]  # fmt: skip
    metrics = {"time/rollout_seconds": [1.0, 1.0], "entropy/policy": [0.4, entropy]}
    row = {"arm": arm, "seed": seed, "finished": True, "metrics": metrics, "evaluations": evaluations, "final": None}
    return row | more


def reproduce(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "reproduce", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_every_item_names_known_arms_and_the_figures_it_covers():
    items = catalogue()
    assert {"table1", "table2", "table3", "table4", "table5", "table6", "table8", "table9", "table10", "table11",
            "table12", "figure6", "figure7", "figure8", "figure18", "figure20", "figure22"} <= set(items)  # fmt: skip
    for figure in (*range(1, 20), 20, 22):
        assert find(f"figure{figure}") in items
    with pytest.raises(SteerError, match="did you mean 'table3'"):
        find("tabel3")


@pytest.mark.parametrize("name", [name for name, item in catalogue().items() if item.paper])
def test_every_arm_is_a_configuration_of_the_papers_model_and_keeps_its_setting(name):
    for one in stages.runs_of(catalogue()[name]):
        config = load_config(CONFIGS / "paper" / f"{one.model}-grpo.yaml", one.settings())
        config.with_method()
        assert (config.rollout.prompts, config.rollout.responses, config.train.rollouts) == (512, 8, 200)
        assert config.train.seed == one.seed


def test_steers_arm_at_the_papers_scale_is_the_shipped_configuration():
    for arm, shipped in (("steer", "qwen2.5-math-7b-steer"), ("extreme-steer", "qwen2.5-math-7b-extreme-steer")):
        item = catalogue()["table6" if arm.startswith("extreme") else "table3"]
        (one,) = stages.runs_of(item, (0,), [arm])
        own = load_config(CONFIGS / "paper" / f"{one.model}-grpo.yaml", one.settings())
        assert own == load_config(CONFIGS / "paper" / f"{shipped}.yaml", [])


def test_the_released_arm_is_the_preset_of_that_name():
    arm = arms.pool().config("steer-release", 0)
    preset = load_config(CONFIGS / "release.yaml", [])
    assert arm.intervention == preset.intervention
    assert arm.optimizer.micro_batch_sequences == preset.optimizer.micro_batch_sequences == 8


def test_published_names_of_arms_stand_in_the_published_scores_unless_they_are_said_to_lack():
    for name, item in catalogue().items():
        if item.published:
            scores = published_scores()
            known = set(scores[scores.table == item.published].method)
            strange = {method for method in item.arms.values() if method} - known
            assert not strange or all(one.lower() in item.unknown.lower() for one in strange), (name, strange)


@pytest.mark.parametrize(
    ("steer", "word"), [([4, 4, 3, 3], "holds"), ([0, 0, 0, 0], "fails"), ([1, 2, 1, 2], "undecided")]
)
def test_a_claim_holds_or_fails_by_the_side_of_zero_that_its_interval_lies_on(steer, word):
    claim = Claim(text="more", measure="pass@1", weights={"steer": 1, "grpo": -1})
    jitter = [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    runs = {
        "grpo": [run("grpo", seed, [1, 2, 1, 2]) for seed in range(3)],
        "steer": [run("steer", seed, (np.array(steer) + jitter[seed]).clip(0, 4).tolist()) for seed in range(3)],
    }
    verdict = judge(claim, runs, BASE)
    assert verdict.word == word
    wanted = np.mean([np.mean((np.array(steer) + j).clip(0, 4)) for j in jitter]) / 4 - 1.5 / 4
    assert verdict.found.mean == pytest.approx(wanted)
    assert ("excluded" in verdict.told()) == (word == "undecided")


def test_one_seed_decides_nothing_and_seeds_that_an_arm_lacks_do_not_count():
    claim = Claim(text="more", measure="entropy", weights={"steer": 1, "grpo": -1})
    runs = {"grpo": [run("grpo", s, [0] * 4) for s in range(3)], "steer": [run("steer", 1, [0] * 4, entropy=0.9)]}
    verdict = judge(claim, runs, BASE)
    assert (verdict.word, verdict.seeds, verdict.found.mean) == ("undecided", 1, pytest.approx(0.7))
    assert judge(claim, {"grpo": runs["grpo"]}, BASE).word == "not run"


def test_the_measures_by_hand():
    final = {"samples": 8, "correct": [4, 0]}
    rows = [run("grpo", 0, [4, 2, 0, 1], entropy=0.3, final=final)]
    assert values(rows, "pass@1", BASE).tolist() == [[1, 0.5, 0, 0.25]]
    assert values(rows, "entropy", BASE).tolist() == [[0.3]]
    assert values(rows, "fall of entropy", BASE).tolist() == [[pytest.approx(0.2)]]
    assert values(rows, "mean pass@1", BASE).tolist() == [[pytest.approx((0 + 0.4375) / 2)]]
    assert values(rows, "final pass@2", BASE).tolist() == [[pytest.approx(1 - (4 * 3) / (8 * 7)), 0]]
    with pytest.raises(SteerError, match="choose from pass@1"):
        values(rows, "accuracy", BASE)


def test_a_far_pass_at_k_that_was_not_sampled_is_not_run():
    claim = Claim(text="far", measure="final pass@1024", weights={"grpo": 1})
    rows = [run("grpo", seed, [0] * 4, final={"samples": 64, "correct": [1]}) for seed in range(2)]
    assert judge(claim, {"grpo": rows}, BASE).word == "not run"


def test_the_page_is_made_from_the_rows_and_changes_with_them(tmp_path):
    item = catalogue()["figure20"].__class__(
        title="T", shows="S", kind="scores", arms={"grpo": None, "steer": None},
        claims=[Claim(text="more", measure="pass@1", weights={"steer": 1, "grpo": -1})],
    )  # fmt: skip
    rows = [run(arm, seed, [seed, 1, 2, 3]) for arm in ("grpo", "steer") for seed in range(3)]
    laptop_page("one", item, ABOUT, rows, tmp_path)
    before = (tmp_path / "one.md").read_text(encoding="utf-8")
    assert "| GRPO | 0.438" in before
    assert (tmp_path / "one.png").stat().st_size > 1000
    rows[3]["evaluations"][-1]["correct"] = [32, 32, 32, 32]  # in place of 0, 8, 16 and 24
    laptop_page("one", item, ABOUT, rows, tmp_path)
    after = (tmp_path / "one.md").read_text(encoding="utf-8")
    assert "| STEER | 0.438" in before
    assert f"| STEER | {(16 + 7 + 8) / 48:.3f}" in after


def test_rows_are_added_to_those_that_are_kept_and_a_finished_run_is_not_lost(tmp_path):
    kept, new = tmp_path / "kept.jsonl.xz", tmp_path / "new.jsonl.xz"
    write_rows(kept, ABOUT, [run("grpo", 0, [1, 1, 1, 1])])
    write_rows(new, ABOUT, [run("grpo", 0, [2, 2, 2, 2], finished=False), run("steer", 0, [3, 3, 3, 3])])
    pool.merge_rows(new, kept)
    _, rows = read_rows(kept)
    assert {row["arm"]: row["evaluations"][-1]["correct"][0] for row in rows} == {"grpo": 8, "steer": 24}
    assert arms.is_kept(kept, "steer", 0)
    assert not arms.is_kept(kept, "steer", 0, {"samples": 64})
    assert not arms.is_kept(kept, "steer", 1)


def test_kept_rows_of_other_settings_are_refused_before_anything_runs(tmp_path):
    kept, plan = tmp_path / "kept.jsonl.xz", arms.pool()
    about = ABOUT | {"plan": to_dict(plan)}
    write_rows(kept, about, [run("grpo", 0, [1, 1, 1, 1])])
    refuse_other_settings(plan, kept)
    other = replace(plan, common=apply_overrides(plan.common, ["train.rollouts=3"]))
    with pytest.raises(SteerError, match=r"\(all\); use --fresh"):
        refuse_other_settings(other, kept)
    changed = plan.arms | {"grpo": replace(plan.arms["grpo"], overrides=["optimizer.learning_rate=1e-5"])}
    with pytest.raises(SteerError, match=r"\(grpo\); use --fresh"):
        refuse_other_settings(replace(plan, arms=changed), kept)
    unheld = plan.arms | {"opo": replace(plan.arms["opo"], label="another")}
    refuse_other_settings(replace(plan, arms=unheld), kept)


def test_rows_of_another_base_model_are_not_merged(tmp_path):
    kept, new = tmp_path / "kept.jsonl.xz", tmp_path / "new.jsonl.xz"
    write_rows(kept, ABOUT, [run("grpo", 0, [1, 1, 1, 1])])
    changed = ABOUT | {"environment": ABOUT["environment"] | {"base_model_sha256": "other"}}
    write_rows(new, changed, [run("steer", 0, [1, 1, 1, 1])])
    with pytest.raises(SteerError, match=r"another base model.*--fresh"):
        pool.merge_rows(new, kept)


def test_the_kept_pages_are_what_the_kept_rows_give(tmp_path):
    about, rows = arms.finished_runs(arms.RESULTS / arms.ROWS)
    for name, item in catalogue().items():
        if item.kind in ("scores", "curves") and not item.not_here:
            laptop_page(name, item, about, rows, tmp_path)
            kept = (arms.RESULTS / f"{name}.md").read_text(encoding="utf-8")
            assert (tmp_path / f"{name}.md").read_text(encoding="utf-8") == kept, f"python -m reproduce {name} --kept"
            assert (tmp_path / f"{name}.png").exists() == (arms.RESULTS / f"{name}.png").exists()


def test_a_stage_that_came_to_its_end_is_not_run_again_and_one_that_failed_is(tmp_path):
    state, calls = stages.State(tmp_path / "state.json"), []

    def fails() -> None:
        calls.append("failed")
        raise SteerError("no")

    with pytest.raises(SteerError):
        state.stage("one", ["a"], fails)
    for _ in range(2):
        state.stage("one", ["a", "b"], lambda: calls.append("ran"))
    assert calls == ["failed", "ran"]
    assert json.loads((tmp_path / "state.json").read_text())["one"]["command"] == "a b"


def test_the_commands_of_the_papers_scale_train_to_a_checkpoint_and_go_on(tmp_path):
    (one,) = stages.runs_of(catalogue()["table12"], (1,), ["clip-cov"])
    first = stages.train_command(one, "paper", tmp_path, 10)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "8", "-m"]
    assert first[:7] == launcher
    assert {"paper/qwen2.5-math-1.5b-grpo", "intervention.name=clip-cov", "train.seed=1", "train.rollouts=10",
            "model.path=Qwen/Qwen2.5-Math-1.5B"} <= set(first)  # fmt: skip
    assert "torch.distributed.run" not in stages.train_command(one, "paper-1gpu", tmp_path, 10)
    (tmp_path / "config.yaml").write_text("")
    again = stages.train_command(one, "paper", tmp_path, 20)
    assert again[-4:] == ["--resume", str(tmp_path), "train.rollouts=20", "--no-report"]
    assert stages.SCALE["paper"].steps[-1] == 200
    assert len(stages.SCALE["paper"].steps) == 20


def test_checkpoints_are_chosen_by_the_papers_samples_and_the_end_is_evaluated_by_the_items():
    weights, out = Path("weights"), Path("nowhere")
    assert "benchmark.samples=1024" in stages.evaluate_command("paper", weights, ["aime24"], out, 1024)
    assert not any("samples" in word for word in stages.evaluate_command("paper", weights, ["aime24"], out, None))
    item = catalogue()["figure6"]
    assert stages.final_folder(out, "last", "aime24", item) != stages.final_folder(
        out, "last", "aime24", catalogue()["table3"]
    )


def test_the_weights_that_lead_are_kept_by_each_rule(tmp_path, monkeypatch):
    shares = {1: 0.5, 2: 0.25, 3: 0.75}
    held_out = [{"step": 1, "pass@1": 0.1}, {"step": 2, "pass@1": 0.3}, {"step": 3, "pass@1": 0.2}]
    checkpoint = tmp_path / "checkpoint"

    class Run:
        checkpoints = SimpleNamespace(saved=lambda: [checkpoint])

        def read(self, name: str) -> list[dict]:
            return held_out

    monkeypatch.setattr("steer_core.runs.folder.RunFolder.open", lambda path: Run())
    for step, share in shares.items():
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "model.safetensors").write_text(f"weights {step}")
        (checkpoint / "manifest.json").write_text("{}")
        monkeypatch.setattr(stages, "counts", lambda folder, share=share: {"aime24": {"shares": [share, share]}})
        stages.keep_best(tmp_path, tmp_path / "run", step, "aime24")
    chosen = {rule: (tmp_path / "chosen" / rule / "model.safetensors").read_text() for rule in RULES}
    assert chosen == {"published": "weights 3", "validation": "weights 2", "last": "weights 3"}
    assert not (tmp_path / "chosen" / "last" / "manifest.json").exists()


def test_a_published_score_is_inside_or_outside_by_the_pooled_spread_of_seeds():
    ours = np.array([[0.30, 0.34], [0.32, 0.36], [0.31, 0.35]])
    other = np.array([[0.2, 0.2], [0.3, 0.3]])
    spread = score_page.spread_of([ours, other, other[:1]])
    wanted = ((0.01**2 + 0.01**2) + 2 * 0.05**2) / 3
    assert (spread.variance, spread.freedom) == (pytest.approx(wanted), 3)
    error = 100 * np.sqrt(wanted * (1 / 3 + 1 / 2))
    told, verdict = score_page.compared(ours, 33.0, True, spread)
    assert told.startswith(f"+0.0 ± {error:.1f} [")
    assert verdict == "inside"
    far = 33.0 + 1.01 * stats.t.ppf(0.975, 3) * error
    near = 33.0 + 0.99 * stats.t.ppf(0.975, 3) * error
    assert score_page.compared(ours, far, True, spread)[1] == "outside"
    assert score_page.compared(ours, near, True, spread)[1] == "inside"
    assert score_page.compared(ours, 33.0, False, spread)[1] == "not comparable"
    assert score_page.compared(ours, None, True, spread)[1] == "not known"


def test_a_page_sets_published_and_replicated_scores_beside_those_obtained(tmp_path):
    benchmarks = {name: {"grader": "release", "samples": 4, "whole": True, "correct": [1, 2, 0]}
                  for name in catalogue()["table12"].paper.benchmarks}  # fmt: skip
    about = {"date": "2026-11-30T00:00", "git_commit": "abc", "processor": "CPU", "cores": 2, "gpu": None}
    rows = [
        {"model": "qwen2.5-math-1.5b", "arm": arm, "seed": seed, "select": "published", "step": 10,
         "entropy": [0.3, 0.2], "benchmarks": benchmarks, "environment": about,
         "stages": {"train to 10": {"command": "steer train", "seconds": 3600.0, "date": "2026-11-30"}}}
        for arm in ("grpo", "steer") for seed in (0, 1)
    ]  # fmt: skip
    score_page.score_page("table12", catalogue()["table12"], "paper", rows, tmp_path)
    page = (tmp_path / "table12.md").read_text(encoding="utf-8")
    (grpo,) = [line for line in page.splitlines() if line.startswith("| qwen2.5-math-1.5b | GRPO | aime24 |")]
    assert "| 16.2 | 13.5 | 25.0 [" in grpo
    assert grpo.endswith("| not decided |")  # seeds that agree exactly
    (opo,) = [line for line in page.splitlines() if line.startswith("| qwen2.5-math-1.5b | OPO | aime24 |")]
    assert "| 14.8 | - | not run |" in opo
    assert "4.0 hours" in page


def test_one_seed_or_seeds_that_agree_decide_nothing_beside_a_published_score():
    one = np.array([[0.5, 0.4]])
    alike = np.array([[0.5, 0.4], [0.4, 0.5]])
    for shares in (one, alike):
        assert score_page.compared(shares, 49.0, True, score_page.spread_of([shares]))[1] == "not decided"


def test_rows_of_runs_that_end_side_by_side_are_all_gathered(tmp_path):
    row = {"model": "m", "arm": "grpo", "seed": 0, "select": "last", "step": 1}
    for seed in (0, 1):
        (tmp_path / f"{seed}-row.json").write_text(json.dumps(row | {"seed": seed, "step": 2}))
    rows = gathered([row, row | {"arm": "steer"}], tmp_path.glob("*-row.json"))
    assert {(one["arm"], one["seed"]): one["step"] for one in rows} == {
        ("grpo", 0): 2, ("grpo", 1): 2, ("steer", 0): 1}  # fmt: skip


def test_what_is_missing_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setattr(needs, "gpus_here", lambda: 1)
    monkeypatch.setattr(needs, "find_spec", lambda module: None)
    monkeypatch.setenv("STEER_DATA", str(ROOT / "tests"))
    with pytest.raises(SteerError) as told:
        needs.refuse_lacking(catalogue()["table5"], "paper", ["qwen2.5-coder-3b"])
    message = str(told.value)
    for word in ("GPUs: 1 here, 8 needed", "hf download Qwen/Qwen2.5-Coder-3B --local-dir", "deepspeed: not installed",
                 "archercoder.parquet is no file here", "livecodebench"):  # fmt: skip
        assert word in message
    assert "Coder-7B" not in message


@pytest.mark.parametrize("scale", ["smoke", "paper", "paper-1gpu"])
def test_a_dry_run_names_every_run_with_its_need_and_a_slurm_array_over_them(scale):
    told = needs.cluster_lines("table12", catalogue()["table12"], scale)
    lines = [line for line in told.splitlines() if line.startswith(f"python -m reproduce table12 --scale {scale}")]
    assert len([line for line in lines if "--models" in line]) == 12
    assert "#SBATCH --array=0-11" in told
    assert "GiB of disk" in told
    assert ("torch.distributed.run" in told) == (scale == "paper")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tabel3"], "NAME: 'tabel3'"),
        (["table5"], "table5 is not made at laptop"),
        (["table1", "--scale", "paper"], "table1 is not made at paper"),
        (["table3", "--kept", "--fresh"], "--kept"),
        (["table11", "--arms", "nobody", "--out", "runs/none"], "--arms: nobody"),
        (["table11", "--kept", "--results", "nowhere"], "--kept"),
        (["table11", "--arms", "opo"], "--arms: opo is none of this item's"),
        (["table11", "--seeds", "7", "--out", "runs/none"], "--seeds: 7"),
        (["table1", "--quick"], "--quick: table1 has none here"),
        (["table12", "--scale", "smoke", "--models", "qwen"], "--models: qwen"),
        (["table12", "--scale", "paper", "--kept"], "--kept: there is no run"),
    ],
)
def test_bad_words_are_refused_by_name(words, told):
    done = reproduce(*words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_readme_and_docs_hold_the_list_as_it_is():
    for path, text in listing.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m reproduce all --kept"


@pytest.mark.long
def test_a_slice_of_a_table_trains_and_goes_on(tmp_path):
    words = ["table11", "--quick", "--jobs", "2", "--out", str(tmp_path), "--arms", "grpo", "steer"]
    done = reproduce(*words, "--seeds", "0")
    assert done.returncode == 0, done.stderr
    done = reproduce(*words)
    assert done.returncode == 0, done.stderr
    _, rows = arms.finished_runs(tmp_path / "results" / "laptop" / arms.ROWS)
    assert sorted((row["arm"], row["seed"]) for row in rows) == [("grpo", 0), ("grpo", 1), ("steer", 0), ("steer", 1)]
    assert "STEER" in (tmp_path / "results" / "laptop" / "table11.md").read_text(encoding="utf-8")
