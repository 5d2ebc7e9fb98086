"""A model on problem sets: sample, grade, keep every response; resumable after a kill at any moment.

    evaluation.json  parts/aime24/00000.parquet ...  responses.parquet  summary.json  table.md

The work is cut into parts of `benchmark.batch_sequences` responses whose content follows from the settings alone.
A part is generated from a seed of its own and kept (`sampled_00000.parquet`) before it is graded: a grader that fails
loses no response, and a resumed evaluation samples none anew. Every file is written aside and renamed: it is there
whole or not at all, so a resumed evaluation loses and repeats nothing. At the end the parts become one
`responses.parquet`, one row a response in the order of problem set, problem and sample; but for the columns under
`time/` it is the same whether or not the evaluation was interrupted.
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
from transformers import PreTrainedTokenizerBase

from steer_core.common.environment import environment, memory_bytes
from steer_core.common.errors import SteerError, nearest
from steer_core.common.files import lock, write_atomically, written_whole
from steer_core.common.places import refuse_others
from steer_core.common.seeding import derive_seed
from steer_core.common.settings import merged, to_dict
from steer_core.config.config import BenchmarksConfig
from steer_core.config.sections import BenchmarkConfig
from steer_core.config.tasks import CountdownConfig
from steer_core.evaluation.grading import graded
from steer_core.evaluation.tables import RECORD, RESPONSES, read_record
from steer_core.policy.folder import positions_of, read_config
from steer_core.policy.model import base_digest, load_policy, load_tokenizer, model_folder
from steer_core.policy.preflight import check_policy
from steer_core.policy.tokenizer import check_prompt
from steer_core.problems import Countdown, Problem
from steer_core.problems.own import is_own, load_own
from steer_core.problems.prompts import prompted, spelled_out
from steer_core.problems.sets import ProblemSet, load_set, names
from steer_core.rewards import graders_of
from steer_core.rollout.rollout import Sampler
from steer_core.rollout.samplers import local_sampler

COUNTDOWN_PROBLEMS, COUNTDOWN_SAMPLES = 150, 32
_RESPONSE_BYTES = 1000
"""At least, of a kept response: its prompt, its text, its tokens and verdicts."""
Watch = Callable[[int, int, str], None]
"""Told (responses done, responses in all, what is being sampled) before every part and at the end."""


@dataclass(frozen=True)
class Part:
    """Responses that are sampled together: samples `first` to `first + samples` of each problem."""

    problem_set: ProblemSet
    index: int
    problems: list[Problem]
    first: int
    samples: int

    @property
    def responses(self) -> int:
        """How many there are."""
        return len(self.problems) * self.samples

    def path(self, folder: Path) -> Path:
        """Where an evaluation keeps this part, once it is graded."""
        return folder / "parts" / self.problem_set.name / f"{self.index:05d}.parquet"

    def sampled(self, folder: Path) -> Path:
        """Where it keeps the responses of this part until they are graded."""
        return self.path(folder).with_name(f"sampled_{self.index:05d}.parquet")


def evaluate_problem_sets(
    wanted: Sequence[str],
    config: BenchmarksConfig,
    folder: Path,
    resume: bool,
    watch: Watch,
    accept_changed: bool = False,
) -> list[ProblemSet]:
    """Sample and grade what is not there yet, and leave `responses.parquet`.

    accept_changed: take data files that are not the manifest's; their hash is recorded either way.
    Raises SteerError for a set named twice, and for what is wrong with the model, the data or the folder.
    """
    called = [Path(name).name if is_own(name) else name for name in wanted]
    twice = [name for name in called if called.count(name) > 1]
    if twice:
        raise SteerError(f"--benchmarks: {twice[0]} is named twice; name each once, and give files names of their own")
    config = replace(config, benchmark=replace(config.benchmark, style=spelled_out(config.benchmark.style)))
    tokenizer, positions = load_tokenizer(config.model.path), context_of(config.model.path)
    sets = [problem_set_of(name, config.benchmark, config.task, tokenizer, accept_changed) for name in wanted]
    for one in sets:
        check_prompt(tokenizer, one.problems[0].prompt)
        check_kept(one)
    limits = {one.name: room(tokenizer, positions, one, config.benchmark.max_new_tokens) for one in sets}
    about = {
        "settings": to_dict(config),
        "benchmarks": {one.name: {"problems": len(one.problems), "samples": one.samples, "source": one.source,
                                  "digest": one.digest} for one in sets},
        "model_sha256": base_digest(config.model.path),
        "max_new_tokens": limits,
    }  # fmt: skip
    start_evaluation(folder, about, {one.name: {"state": one.state, "of": one.of} for one in sets}, resume)
    parts = [part for one in sets for part in parts_of(one, config.benchmark.batch_sequences)]
    with lock(folder):
        if not (folder / RESPONSES).exists():
            sample_missing(parts, folder, lambda: sampler_of(config, tokenizer, positions), config.benchmark, limits,
                           watch)  # fmt: skip
        gather(parts, folder)
    total = sum(part.responses for part in parts)
    watch(total, total, "")
    return sets


def problem_set_of(
    name: str,
    config: BenchmarkConfig,
    task: CountdownConfig,
    tokenizer: PreTrainedTokenizerBase,
    accept_changed: bool = False,
) -> ProblemSet:
    """A problem set by name or in a file, its prompts written for a tokenizer's model; `countdown` is made.

    Raises SteerError for a name that is unknown, for more problems than there are, and as `load_set`, `load_own` do.
    """
    if name == "countdown":
        made = Countdown(task).problems("test", config.problems or COUNTDOWN_PROBLEMS)
        return ProblemSet(
            name, "countdown", config.samples_of(COUNTDOWN_SAMPLES), made, "made here, test split", "", of=len(made)
        )
    if not is_own(name) and name not in names():
        known = nearest(name, ["countdown", *names()])
        raise SteerError(f"--benchmarks: {name!r} is unknown; {known}; or name a .parquet, .jsonl or .json file")
    loaded = load_own(Path(name)) if is_own(name) else load_set(name, accept_changed=accept_changed)
    held = len(loaded.problems)
    if config.problems is not None and config.problems > held:
        raise SteerError(f"benchmark.problems: {config.problems} is more than the {held} of {name}; lower it")
    problems = [prompted(problem, config.style, tokenizer) for problem in loaded.problems[: config.problems]]
    return replace(loaded, problems=problems, samples=config.samples_of(loaded.samples))


def check_kept(problem_set: ProblemSet) -> None:
    """Raise SteerError where the machine cannot hold all responses to a problem set."""
    count, most = len(problem_set.problems) * problem_set.samples, memory_bytes() // _RESPONSE_BYTES
    if count > most:
        raise SteerError(
            f"benchmark.samples: {problem_set.samples} of each of the {len(problem_set.problems)} problems of "
            f"{problem_set.name} are more responses than this machine can hold; ask for "
            f"{max(1, most // len(problem_set.problems))} or fewer"
        )


def parts_of(problem_set: ProblemSet, most: int) -> Iterator[Part]:
    """The problem set cut into parts of at most `most` responses, in order of problem and sample."""
    samples, index = problem_set.samples, 0
    together = max(most // samples, 1)
    for start in range(0, len(problem_set.problems), together):
        problems = problem_set.problems[start : start + together]
        for first in range(0, samples, most):
            yield Part(problem_set, index, problems, first, min(most, samples - first))
            index += 1


def context_of(path: str) -> int:
    """The positions of the model in a folder: its longest prompt plus response."""
    return positions_of(read_config(model_folder(path), path))


def room(tokenizer: PreTrainedTokenizerBase, positions: int, problem_set: ProblemSet, most: int) -> int:
    """How long a response may be: `most` tokens, or what the set's longest prompt leaves of the positions."""
    encoded = tokenizer([problem.prompt for problem in problem_set.problems], add_special_tokens=False)["input_ids"]
    left = positions - max(map(len, encoded))
    if left < 1:
        raise SteerError(
            f"--benchmarks: the longest prompt of {problem_set.name} fills the model's {positions} positions; "
            "use a model with a longer context, or fewer problems"
        )
    return min(most, left)


def start_evaluation(folder: Path, about: dict[str, Any], data: dict[str, Any], resume: bool) -> None:
    """Make the folder of an evaluation, or check that it holds this very one.

    about: what makes it this one. A setting that was not there when it began counts as its default. data: what the
    tables have to say of the problems, by set.
    Raises SteerError where the folder holds one and `resume` is off, or holds another one or other results.
    """
    path = folder / RECORD
    if path.exists():
        if not resume:
            raise SteerError(f"--out: {folder} holds an evaluation already; add --resume to go on, or name another")
        record = read_record(folder)
        held = merged({"settings": to_dict(BenchmarksConfig())}, record["about"])
        differs = [key for key in about if held.get(key) != about[key]]
        if differs or len(held) != len(about):
            raise SteerError(
                f"--out: {folder} holds an evaluation with other {', '.join(differs) or 'settings'}; "
                "give the settings it began with, or name another folder"
            )
        if "data" in record:
            return
    else:
        refuse_others(folder, RECORD)
        record = {"about": about, "environment": environment()}
    text = json.dumps({**record, "data": data}, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise SteerError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error


def sampler_of(config: BenchmarksConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> Sampler:
    """What generates, by `benchmark.engine`."""
    engine = config.benchmark.engine
    if engine == "vllm" or engine == "vllm-process":
        from steer_core.rollout.vllm import VllmSampler

        own_process = engine == "vllm-process"
        return VllmSampler(config.model, str(model_folder(config.model.path)), tokenizer, positions, own_process)
    policy = load_policy(**vars(config.model))
    check_policy(policy)
    return local_sampler(policy, engine)


def sample_missing(
    parts: Sequence[Part],
    folder: Path,
    sampler: Callable[[], Sampler],
    config: BenchmarkConfig,
    limits: dict[str, int],
    watch: Watch,
) -> None:
    """Sample, grade and write every part that is not in the folder; one that is sampled already is only graded.

    sampler: makes one, where anything is to be sampled. limits: the longest response, by problem set.
    """
    missing = [part for part in parts if not part.path(folder).exists()]
    kinds = {part.problem_set.name: part.problem_set.grader for part in missing}
    graders = {name: graders_of(kind, config.sandbox, config.thinking) for name, kind in kinds.items()}
    generator = None if all(part.sampled(folder).exists() for part in missing) else sampler()
    done, total = 0, sum(part.responses for part in parts)
    for part in parts:
        name, path = part.problem_set.name, part.path(folder)
        watch(done, total, name)
        if not path.exists():
            kept = part.sampled(folder)
            if generator is not None and not kept.exists():
                write_table(sample(part, generator, replace(config, max_new_tokens=limits[name])), kept)
            write_table(graded(parquet.read_table(kept, partitioning=None), graders[name]), path)
            kept.unlink()
        done += part.responses


def sample(part: Part, sampler: Sampler, config: BenchmarkConfig) -> pa.Table:
    """Sample a part: one row a response."""
    name, began = part.problem_set.name, time.time()
    seed = derive_seed(config.seed, f"benchmark/{name}", part.index)
    start = time.perf_counter()
    rollout = sampler.generate([problem.prompt for problem in part.problems], part.samples, config, seed)
    seconds = time.perf_counter() - start
    problems = [problem for problem in part.problems for _ in range(part.samples)]
    count = len(problems)
    tokens = [
        ids[mask.bool()].tolist() for ids, mask in zip(rollout.response_ids_BT, rollout.response_mask_BT, strict=True)
    ]
    columns: dict[str, Any] = {
        "benchmark": [name] * count,
        "problem": [problem.id for problem in problems],
        "sample": [part.first + row % part.samples for row in range(count)],
        "prompt": [problem.prompt for problem in problems],
        "reference": [problem.reference for problem in problems],
        "response": rollout.texts,
        "tokens": [len(ids) for ids in tokens],
        "token_ids": pa.array(tokens, pa.list_(pa.int32())),
        "finish_reason": rollout.finish_reasons,  # "stop": the last of token_ids is the end token
        "seed": [seed] * count,
    }
    columns["time/began"] = [began] * count
    columns["time/generated_seconds"] = [seconds] * count
    return pa.table(columns)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all. Raises SteerError where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as aside:
            parquet.write_table(table, aside, compression="zstd")
    except OSError as error:
        raise SteerError(f"{path}: cannot be written ({error.strerror}); make room, then --resume") from error


def gather(parts: Sequence[Part], folder: Path) -> None:
    """Join the parts of a finished evaluation into one file, in order, and remove them."""
    path = folder / RESPONSES
    if not path.exists():
        tables = [parquet.read_table(part.path(folder)) for part in parts]
        write_table(pa.concat_tables(tables, promote_options="default"), path)
    shutil.rmtree(folder / "parts", ignore_errors=True)
