"""A model on benchmarks: sample, grade, keep every response; resumable after a kill at any moment.

    evaluation.json  parts/aime24/00000.parquet ...  responses.parquet  summary.json  table.md

The work is cut into batches of `benchmark.batch_sequences` responses whose content follows from the settings alone.
A batch is generated from a seed of its own, graded, and written aside and renamed: it is there whole or not at all,
so a resumed evaluation loses and repeats nothing. At the end the batches become one `responses.parquet`, one row a
response in the order of benchmark, problem and sample; but for the columns under `time/` it is the same whether or
not the evaluation was interrupted.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from transformers import AutoConfig, PreTrainedTokenizerBase

from steer_core.common.environment import environment
from steer_core.common.errors import SteerError, nearest
from steer_core.common.files import lock, write_atomically, written_whole
from steer_core.common.seeding import derive_seed
from steer_core.common.settings import to_dict
from steer_core.config.config import BenchmarksConfig
from steer_core.config.sections import BenchmarkConfig, CountdownConfig
from steer_core.policy.model import base_digest, load_tokenizer, model_folder, policy_of
from steer_core.policy.tokenizer import check_prompt
from steer_core.problems import Countdown
from steer_core.problems.sets import load_data, names, render, styled
from steer_core.rewards import Grader, graders_of
from steer_core.rollout.huggingface import HuggingFaceEngine
from steer_core.rollout.rollout import RolloutEngine

COUNTDOWN_PROBLEMS, COUNTDOWN_SAMPLES = 150, 32
RESPONSES = "responses.parquet"


@dataclass(frozen=True)
class Item:
    """One problem as the model gets it: its identity, the prompt as rendered, and what its grader compares with."""

    problem: str
    prompt: str
    reference: str


@dataclass(frozen=True)
class Benchmark:
    """Problems that are graded alike. samples: of each; source and digest: where they come from."""

    name: str
    grader: str
    samples: int
    items: list[Item]
    source: str
    digest: str


@dataclass(frozen=True)
class Batch:
    """Responses that are sampled together: samples `first` to `first + samples` of each item."""

    benchmark: str
    index: int
    items: list[Item]
    first: int
    samples: int

    @property
    def responses(self) -> int:
        """How many there are."""
        return len(self.items) * self.samples

    def path(self, folder: Path) -> Path:
        """Where an evaluation keeps this batch."""
        return folder / "parts" / self.benchmark / f"{self.index:05d}.parquet"


def benchmark_of(
    name: str,
    config: BenchmarkConfig,
    task: CountdownConfig,
    tokenizer: PreTrainedTokenizerBase,
    accept_changed: bool = False,
) -> Benchmark:
    """A benchmark by name, its prompts rendered for a tokenizer's model; `countdown` is made, the others are loaded.

    Raises SteerError for a name that is unknown, for more problems than there are, and as `load_data` does.
    """
    if name == "countdown":
        problems = Countdown(task).problems("test", config.problems or COUNTDOWN_PROBLEMS)
        items = [Item(p.id, p.prompt, p.prompt) for p in problems]
        return Benchmark(name, "countdown", config.samples or COUNTDOWN_SAMPLES, items, "made here, test split", "")
    if name not in names():
        raise SteerError(f"--benchmarks: {name!r} is unknown; {nearest(name, ['countdown', *names()])}")
    data = load_data(name, accept_changed=accept_changed)
    count = len(data.questions) if config.problems is None else config.problems
    if count > len(data.questions):
        raise SteerError(f"benchmark.problems: {count} is more than the {len(data.questions)} of {name}; lower it")
    items = [
        Item(q.id, render(styled(q, config.style), tokenizer), q.reference) for q in data.questions[:count]
    ]  # fmt: skip
    return Benchmark(name, data.grader, config.samples or data.samples, items, data.source, data.digest)


def batches_of(benchmark: Benchmark, most: int) -> Iterator[Batch]:
    """The benchmark cut into batches of at most `most` responses, in order of problem and sample."""
    samples, index = benchmark.samples, 0
    together = max(most // samples, 1)
    for start in range(0, len(benchmark.items), together):
        items = benchmark.items[start : start + together]
        for first in range(0, samples, most):
            yield Batch(benchmark.name, index, items, first, min(most, samples - first))
            index += 1


def start_evaluation(folder: Path, about: dict[str, Any], resume: bool) -> None:
    """Make the folder of an evaluation, or check that it holds this very one.

    Raises SteerError where the folder holds one and `resume` is off, or holds another one.
    """
    path = folder / "evaluation.json"
    if path.exists():
        if not resume:
            raise SteerError(f"--out: {folder} holds an evaluation already; add --resume to go on, or name another")
        held = json.loads(path.read_text(encoding="utf-8"))["about"]
        differs = [key for key in about if held.get(key) != about[key]]
        if differs or len(held) != len(about):
            raise SteerError(
                f"--out: {folder} holds an evaluation with other {', '.join(differs) or 'settings'}; "
                "give the settings it began with, or name another folder"
            )
        return
    text = json.dumps({"about": about, "environment": environment()}, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise SteerError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error


def sample(batch: Batch, engine: RolloutEngine, graders: Sequence[Grader], config: BenchmarkConfig) -> pa.Table:
    """Generate a batch and grade it: one row a response."""
    seed, began = derive_seed(config.seed, f"benchmark/{batch.benchmark}", batch.index), time.time()
    rollout = engine.generate([item.prompt for item in batch.items], batch.samples, config, seed)
    generated = time.time()
    items = [item for item in batch.items for _ in range(batch.samples)]
    count = len(items)
    tokens = [
        ids[mask.bool()].tolist() for ids, mask in zip(rollout.response_ids_BT, rollout.response_mask_BT, strict=True)
    ]
    columns: dict[str, Any] = {
        "benchmark": [batch.benchmark] * count,
        "problem": [item.problem for item in items],
        "sample": [batch.first + i % batch.samples for i in range(count)],
        "prompt": [item.prompt for item in items],
        "reference": [item.reference for item in items],
        "response": rollout.texts,
        "tokens": [len(ids) for ids in tokens],
        "token_ids": pa.array(tokens, pa.list_(pa.int32())),
        "finish_reason": rollout.finish_reasons,
        "seed": [seed] * count,
    }
    for grader in graders:
        verdicts = grader.grade([item.reference for item in items], rollout.texts)
        columns[f"{grader.name}/status"] = [verdict.status for verdict in verdicts]
        columns[f"{grader.name}/answer"] = pa.array([verdict.answer for verdict in verdicts], pa.string())
        columns[f"{grader.name}/detail"] = [verdict.detail for verdict in verdicts]
    columns["time/began"] = [began] * count
    columns["time/generated_seconds"] = [generated - began] * count
    columns["time/graded_seconds"] = [time.time() - generated] * count
    return pa.table(columns)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file aside, sync it and rename it. Raises SteerError where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            parquet.write_table(table, partial, compression="zstd")
    except OSError as error:
        raise SteerError(f"{path}: cannot be written ({error.strerror}); make room, then --resume") from error


def gather(batches: Sequence[Batch], folder: Path) -> None:
    """Join the batches of a finished evaluation into one file, in order, and remove them."""
    path = folder / RESPONSES
    if not path.exists():
        tables = [parquet.read_table(batch.path(folder)) for batch in batches]
        write_table(pa.concat_tables(tables, promote_options="default"), path)
    shutil.rmtree(folder / "parts", ignore_errors=True)


def evaluate_benchmarks(
    wanted: Sequence[str],
    config: BenchmarksConfig,
    folder: Path,
    resume: bool,
    watch: Callable[[int, int, str], None],
    accept_changed: bool = False,
) -> list[Benchmark]:
    """Sample and grade what is not there yet, and leave `responses.parquet`.

    watch: told (responses done, responses in all, what is being sampled) before every batch and at the end.
    accept_changed: take data files that are not the manifest's; their hash is recorded either way.
    Raises SteerError for a benchmark named twice, and for what is wrong with the model, the data or the folder.
    """
    twice = [name for name in wanted if list(wanted).count(name) > 1]
    if twice:
        raise SteerError(f"--benchmarks: {twice[0]} is named twice; name each once")
    tokenizer, positions = load_tokenizer(config.model.path), context_of(config.model.path)
    benchmarks = [benchmark_of(name, config.benchmark, config.task, tokenizer, accept_changed) for name in wanted]
    about = {
        "settings": to_dict(config),
        "benchmarks": {one.name: {"problems": len(one.items), "samples": one.samples, "source": one.source,
                                  "digest": one.digest} for one in benchmarks},
        "model_sha256": base_digest(config.model.path),
    }  # fmt: skip
    limits = {}
    for one in benchmarks:
        check_prompt(tokenizer, one.items[0].prompt)
        limits[one.name] = room(tokenizer, positions, one, config.benchmark.max_new_tokens)
    about["max_new_tokens"] = limits
    start_evaluation(folder, about, resume)
    batches = {one.name: list(batches_of(one, config.benchmark.batch_sequences)) for one in benchmarks}
    everything = [batch for some in batches.values() for batch in some]
    total, done = sum(batch.responses for batch in everything), 0
    with lock(folder):
        missing = not (folder / RESPONSES).exists() and not all(batch.path(folder).exists() for batch in everything)
        engine = engine_of(config, tokenizer, positions) if missing else None
        for one in benchmarks if missing else ():
            graders = graders_of(one.grader, config.benchmark.sandbox)
            settings = replace(config.benchmark, max_new_tokens=limits[one.name])
            for batch in batches[one.name]:
                watch(done, total, one.name)
                if not batch.path(folder).exists():
                    write_table(sample(batch, engine, graders, settings), batch.path(folder))
                done += batch.responses
        gather(everything, folder)
    watch(total, total, "")
    return benchmarks


def context_of(path: str) -> int:
    """The positions of the model in a folder: its longest prompt plus response."""
    return AutoConfig.from_pretrained(model_folder(path), local_files_only=True).max_position_embeddings


def engine_of(config: BenchmarksConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> RolloutEngine:
    """What generates, by `benchmark.engine`."""
    if config.benchmark.engine != "huggingface":
        from steer_core.rollout.vllm import VllmEngine

        own_process = config.benchmark.engine == "vllm-process"
        return VllmEngine(config.model, str(model_folder(config.model.path)), tokenizer, positions, own_process)
    return HuggingFaceEngine(policy_of(config.model))


def room(tokenizer: PreTrainedTokenizerBase, positions: int, benchmark: Benchmark, most: int) -> int:
    """How long a response may be: `most` tokens, or what the benchmark's longest prompt leaves of the positions."""
    encoded = tokenizer([item.prompt for item in benchmark.items], add_special_tokens=False)["input_ids"]
    left = positions - max(map(len, encoded))
    if left < 1:
        raise SteerError(
            f"--benchmarks: the longest prompt of {benchmark.name} fills the model's {positions} positions; "
            "use a model with a longer context, or fewer problems"
        )
    return min(most, left)
