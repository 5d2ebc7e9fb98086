"""YAML as plain data: no key twice, no text that stands for endless or enormous data."""

from __future__ import annotations

from typing import Any

import yaml

LARGEST = 100_000
"""Most values a text may stand for, each counted as often as an alias repeats it."""


def load(text: str) -> Any:
    """The data of a YAML text. Raises ValueError, in one line where it stands, for text that is none or is refused.

    Refused are a key given twice in a mapping, an alias within what it stands for, more than LARGEST values, and
    nesting that is too deep to read.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, (), 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise ValueError("sections are nested too deep; write fewer levels") from error
    except (LookupError, TypeError, AttributeError) as error:  # PyYAML's own, of a value that a tag does not fit
        raise ValueError("a tag such as !!int stands at a value that it does not fit; drop the tag") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _count(node: yaml.Node, above: tuple[int, ...], count: int) -> int:
    """How many values there are with those of a node, having checked it."""
    line = node.start_mark.line + 1
    if id(node) in above:
        raise ValueError(f"line {line}: an alias stands within what it stands for; write the values out")
    if count > LARGEST:
        raise ValueError(f"line {line}: aliases stand for more than {LARGEST} values; write out those that are meant")
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    for part in parts:
        count = _count(part, (*above, id(node)), count)
    return count + 1


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise ValueError(
                    f"line {line}: key {key.value} is given twice, in line {lines[name]} too; keep one of them"
                )
            lines[name] = line
