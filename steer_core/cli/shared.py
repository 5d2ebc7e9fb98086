"""What several commands share: settings among their words, `--settings`, the model that is named, files to write."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from steer_core.common.errors import SteerError

if TYPE_CHECKING:
    from rich.console import Console

    from steer_core.config.tasks import TaskConfig
    from steer_core.runs.folder import RunFolder

_SHOWN, _NAME_BYTES, _NAMES = 60, 200, 100  # below the 255 bytes of Linux, with room for what is put beside


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The arguments of a command, options in any place; its words `key=value` are its settings, wherever they stand."""
    actions = parser._actions
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            return _parse_named(parser, action, words)
    if not any(action.dest == "settings" for action in actions):
        return parser.parse_intermixed_args(words)
    single = [name for action in actions if action.nargs is None for name in action.option_strings]
    settings, others = [], []
    for before, word in zip(["", *words], words, strict=False):
        is_value = before.startswith("--") and any(name.startswith(before) for name in single)
        (settings if re.match(r"[\w.]+=", word) and not is_value else others).append(word)
    args = parser.parse_intermixed_args(others)
    args.settings += settings
    return args


def at_least(least: float, number: type[int] | type[float] = int) -> Callable[[str], float]:
    """The `type` of an option that takes a number from `least` on; argparse names the option and the value."""

    def read(word: str) -> float:
        try:
            value = number(word)
        except ValueError:
            value = nan
        if not (least <= value < inf):
            raise argparse.ArgumentTypeError(f"{word} is no {'whole ' * (number is int)}number from {least:g} on")
        return value

    return read


def _parse_named(
    parser: argparse.ArgumentParser, actions: argparse._SubParsersAction[argparse.ArgumentParser], words: list[str]
) -> argparse.Namespace:
    """The arguments of a command whose first plain word names what it does, such as `steer data audit`."""
    place = next((i for i, word in enumerate(words) if word in actions.choices), None)
    if place is None:
        return parser.parse_args(words)
    args = parse(actions.choices[words[place]], words[:place] + words[place + 1 :])
    setattr(args, actions.dest, words[place])
    return args


def take_settings(parser: argparse.ArgumentParser, benchmarks: bool = False) -> None:
    """Have a command take settings of a run, with `benchmarks` of an evaluation on benchmarks too, and list them."""

    class Listed(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, word: str, *_) -> None:
            print(settings_text(word, benchmarks))
            parser.exit()

    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, for example train.seed=1")
    parser.add_argument(
        "--settings",
        nargs="?",
        const="",
        metavar="WORD",
        action=Listed,
        dest="listed",
        help="list every setting with its default and meaning, or those with WORD in their name, and end",
    )


def take_config(parser: argparse.ArgumentParser) -> None:
    """Have a command take a configuration and settings on top of it; its epilog names those that are shipped."""
    from steer_core.common.places import SCALES
    from steer_core.config.config import shipped

    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file or shipped name (default: all defaults)"
    )
    take_settings(parser)
    parser.add_argument(
        "--scale",
        choices=sorted(path.stem for path in SCALES.glob("*.yaml")),
        help="swap model and sizes alone: smoke runs any configuration in about a minute on a CPU",
    )
    parser.epilog = fill(f"shipped configurations: {', '.join(shipped())}", 78, break_on_hyphens=False)


def settings_text(word: str = "", benchmarks: bool = False) -> str:
    """Settings with defaults and meanings, of every method too; with a word, those that have it in key or method."""
    from steer_core.common.settings import describe
    from steer_core.config.config import Config
    from steer_core.config.elsewhere import called_here
    from steer_core.config.sections import BenchmarkConfig
    from steer_core.interventions import catalogue, method

    parts = [("", "settings (section.key=value), with their defaults:", describe(Config))]
    if benchmarks:
        rows = describe(BenchmarkConfig, "benchmark.")
        parts.append(("", "settings of --benchmarks, with their defaults (model.* and task.* as above):", rows))
    try:
        for name, meaning, _ in catalogue():
            rows = [row for row in describe(method(name), "intervention.") if row[0] != "intervention.name"]
            parts.append((name, f"with intervention.name={name}: {meaning}", rows))
    except Exception as error:  # whatever a broken torch raises at its import
        parts.append(("", f"settings of methods: {type(error).__name__} at their import; see `steer doctor`", []))
    told = []
    for name, title, rows in parts:
        shown = [row for row in rows if word in row[0] or word in name]
        lines = [f"  {key}={'' if value is None else value}\n      {meaning}" for key, value, meaning in shown]
        told += ["\n".join([title, *lines])] if lines or not rows else []
    if not told:
        answer = called_here(word) or f"`--settings` without {word} lists them all"
        raise SteerError(f"--settings: no setting has {word!r} in its name; {answer}")
    return "\n\n".join(told)


def path_of(text: str) -> Path:
    """The path that an argument of a command is. Raises SteerError for one that no file system or page can hold."""
    name = ascii(text)[1:-1]
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    try:
        parts = [len(part) for part in text.encode().split(b"/")]
    except UnicodeEncodeError as error:
        raise SteerError(f"path {shown}: is not UTF-8; give it another name") from error
    if not text or "\0" in text:
        raise SteerError(f"path {shown!r}: is empty or holds a null character; name a file or folder")
    if max(parts) > _NAME_BYTES or len(parts) > _NAMES:
        told = f"{max(parts)} bytes in one name, {len(parts)} names"
        raise SteerError(f"path {shown}: is too long ({told}); {_NAME_BYTES} and {_NAMES} are allowed")
    return Path(text)


def yaml_path(name: str | None, shipped: Path) -> Path | None:
    """The YAML file that a word names: itself, or the shipped one of that name."""
    if name is None:
        return None
    own = shipped / path_of(f"{name}.yaml")
    return own if own.is_file() and not path_of(name).is_file() else path_of(name)


def trained(model: str) -> tuple[str, RunFolder | None]:
    """(folder of weights, the run they are the last checkpoint of or None) of a MODEL argument."""
    from steer_core.runs.folder import RunFolder

    if not (path_of(model) / "config.yaml").is_file():
        return model, None
    run = RunFolder.open(model)
    saved = run.checkpoints.saved()
    if not saved:
        raise SteerError(f"MODEL: {model} has no checkpoint yet; train on, or give a model folder")
    run.checkpoints.check(saved[-1])
    return str(saved[-1]), run


def refuse_unnamed_reward(task: TaskConfig, settings: list[str]) -> None:
    """Raise SteerError where a run's own configuration names code as its reward that the command line does not name.

    The run may be somebody else's; only its reader decides what is called.
    """
    named = str(task.reward or "")
    if ":" in named and f"task.reward={named}" not in settings:
        raise SteerError(
            f"task.reward: {named} is code that the run's configuration names, and it would be called; where you trust "
            f"it, add task.reward={named}"
        )


@contextmanager
def writing(option: str, path: Path, kind: str = "file") -> Iterator[None]:
    """Tell in one line where what an option names cannot be written."""
    try:
        yield
    except OSError as error:
        raise SteerError(f"{option}: {path} cannot be written ({error.strerror}); name another {kind}") from error


def wide_console(columns: int) -> Console:
    """A console that is wide enough for a table; a narrower terminal wraps its lines and loses nothing."""
    from rich.console import Console

    return Console(width=max(Console().width, columns))
