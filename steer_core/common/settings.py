"""Typed settings: how YAML files, `key=value` overrides and dataclasses become one another.

An unknown key, a wrong type or a value out of range raises `SteerError` with the field, the value
and the remedy (for an unknown key: the nearest known name).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from steer_core.common import plain_yaml
from steer_core.common.errors import SteerError, nearest, one_line
from steer_core.common.files import read_text

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Of every settings dataclass: no unknown key, no infinity; a line under a field is its help."""

LARGEST_COUNT = 2**53 - 1
"""Of a setting that is a whole number: what a number in JSON holds exactly."""
SMALLEST, LARGEST = 1e-35, 1e35
"""Of a setting that is a fraction, the least size but 0, and the largest: what float32 holds with a margin."""


@dataclasses.dataclass(frozen=True)
class KindOf:
    """Annotates a field whose settings dataclass follows from its mapping: `kind(mapping)`, or None."""

    kind: Callable[[dict[str, Any]], type | None]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping a YAML file holds. Raises SteerError where it is missing, unreadable or no mapping.

    See `plain_yaml` for the YAML that is refused.
    """
    text = read_text(path, "configuration", "give the path of a YAML file")
    try:
        data = plain_yaml.load(text)
    except ValueError as error:
        raise SteerError(f"configuration {path}: not YAML ({one_line(error, 400)}); mend that line") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SteerError(f"configuration {path}: holds a {type(data).__name__}; write `section:` and `key: value`")
    return data


def read_extended(path: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of a YAML file on top of the files that its key `extends` names, in their order.

    `extends: name` or `extends: [one, two]` stands for name.yaml beside the file. Raises SteerError where
    a file extends itself, and as `read_yaml` does.
    """
    path = Path(path)
    data, place = read_yaml(path), path.resolve()
    if place in seen:
        raise SteerError(f"configuration {path}: extends itself; take a name out of `extends`")
    names = data.pop("extends", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SteerError(f"configuration {path}: extends: {names!r} is no name; write one name, or a list of names")
    whole: dict[str, Any] = {}
    for name in names:
        whole = merged(whole, read_extended(path.parent / f"{name}.yaml", (*seen, place)))
    return merged(whole, data)


def merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`base` with every value of `top`; a section in both is merged key by key."""
    both = {key: merged(base[key], value) for key, value in top.items() if _both_sections(base.get(key), value)}
    return {**base, **top, **both}


def _both_sections(one: Any, other: Any) -> bool:
    return isinstance(one, dict) and isinstance(other, dict)


def apply_overrides(data: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """A copy of `data` with each `section.key=value` set; values are read as YAML."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for override in overrides:
        path, separator, text = override.partition("=")
        *sections, key = path.split(".")
        if not separator or not all(sections) or not key:
            raise SteerError(
                f"override {override!r}: not of the form section.key=value; write for example train.seed=1"
            )
        node = result
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise SteerError(f"override {override!r}: {section} is a value, no section; drop `.{key}`")
        try:
            node[key] = plain_yaml.load(text)
        except ValueError as error:
            told = one_line(override)
            raise SteerError(f"override {told!r}: the value is not YAML ({one_line(error)}); quote it") from error
    return result


def build(kind: type[T], data: dict[str, Any], section: str = "") -> T:
    """`data` as the settings dataclass `kind`. Raises SteerError naming the first field that does not fit.

    Unknown keys come first, whatever else is wrong. section: what `data` is a part of, for the message.
    """
    entries = list(_entries(kind, data, section))
    for entry in entries:
        if entry.hint is None:
            raise _unknown(kind, entry)
    for entry in entries:
        if isinstance(entry.value, bool) and not _takes_booleans(entry.hint):
            raise SteerError(f"{entry.name}: {entry.value} is not allowed; write a number or a word in quotes")
    try:
        built = TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = _path(kind, first["loc"])
        name, told = ".".join([section] * bool(section) + path), one_line(repr(first["input"]))
        if first["type"] == "missing" and not isinstance(first["input"], list | tuple):
            raise SteerError(f"{name}: is missing; add `{path[-1]}:` with its value") from error
        if first["type"] == "union_tag_invalid":
            value, known = first["input"]["name"], first["ctx"]["expected_tags"]
            raise SteerError(f"{name}.name: {value!r} is not allowed; input should be one of {known}") from error
        if first["type"].startswith(("dataclass", "model_attributes")):
            raise SteerError(
                f"{name}: {one_line(repr(first['input']))} is no section; write `key: value` below it"
            ) from error
        told = one_line(repr(first["input"]))
        raise SteerError(f"{name}: {told} is not allowed; {_lower(first['msg'])}") from error
    _check_sizes(built, section)
    return built


def _check_sizes(value: Any, name: str) -> None:
    """Raise SteerError for a number that float32, or a count of anything, does not hold, wherever it stands."""
    parts: list[tuple[Any, Any]]
    if dataclasses.is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    else:
        if isinstance(value, int) and abs(value) > LARGEST_COUNT:
            raise SteerError(f"{name}: {one_line(value, 40)} is not allowed; give a whole number below 2**53")
        if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
            raise SteerError(f"{name}: {value} is not allowed; give 0 or a number between {SMALLEST} and {LARGEST}")
        return
    for key, part in parts:
        _check_sizes(part, f"{name}.{key}" if name else str(key))


def to_dict(config: Any) -> dict[str, Any]:
    """A settings dataclass as plain YAML-ready data."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def describe(kind: type, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(dotted key, default, meaning) of every setting, for `--settings`."""
    rows = []
    hints = get_type_hints(kind)
    for name, field in _fields(kind).items():
        sections = _sections(hints[name])
        for section in sections:
            rows += describe(section, f"{prefix}{name}.")
        if not sections:
            own = next(k for k in reversed(kind.__mro__) if name in vars(k).get("__annotations__", {}))
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((prefix + name, default, _fields(own)[name].description or ""))
    return rows


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a settings dataclass, which pydantic puts on it without telling the type checker."""
    return kind.__pydantic_fields__


class _Entry(NamedTuple):
    """One value of some data: its dotted name, its type (None for an unknown key), the keys known beside it."""

    name: str
    value: Any
    hint: Any
    known: list[str]


def _entries(hint: Any, data: Any, name: str) -> Iterator[_Entry]:
    """Everything that data of a type holds, from the outside in."""
    section = _section(hint, data)
    known = get_type_hints(section, include_extras=True) if section else {}
    fields = [field.name for field in dataclasses.fields(section)] if section else []
    element = [Any, *(part for part in get_args(_bare(hint)) if part is not ...)][-1]
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list | tuple) else ()
    for key, value in items:
        inner = element if section is None else known[key] if key in fields else None
        entry = _Entry(f"{name}.{key}" if name else str(key), value, inner, fields)
        yield entry
        if inner is not None:
            yield from _entries(inner, value, entry.name)


def _section(hint: Any, data: Any) -> type | None:
    """The settings dataclass that a mapping is to become, where its type or a `KindOf` tells one."""
    if not isinstance(data, dict):
        return None
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, KindOf):
            return mark.kind(data)
    return _bare(hint) if dataclasses.is_dataclass(_bare(hint)) else None


def _bare(hint: Any) -> Any:
    """A type without its annotations."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _takes_booleans(hint: Any) -> bool:
    """Whether a yes or a no is meant where a type stands; pydantic would read one as 1 or 0 for any number."""
    return hint in (bool, Any) or any(_takes_booleans(part) for part in get_args(hint))


def _unknown(kind: type, entry: _Entry) -> SteerError:
    """That a key is unknown, with where to set what another framework calls so, or else the nearest known key."""
    within = sorted(
        (inner.name for inner in _entries(dict, entry.value, entry.name)), key=lambda name: -name.count(".")
    )
    for name in (*within, entry.name):
        if answer := getattr(kind, "elsewhere", lambda key: None)(_key(name)):
            return SteerError(f"{name}: unknown key; {answer}")
    key, leaf = _key(entry.name), not isinstance(entry.value, dict)
    others = {other: None for other, *_ in describe(kind) if leaf and _key(other) == key and other != entry.name}
    if others and key != "name":
        return SteerError(f"{entry.name}: unknown key; did you mean {' or '.join(others)}?")
    return SteerError(f"{entry.name}: unknown key; {nearest(key, entry.known)}")


def _key(name: str) -> str:
    return name.rpartition(".")[2]


def _sections(hint: Any) -> list[Any]:
    """The settings dataclasses that a type holds: itself, the members of a union, the values of a mapping."""
    return [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]


def _path(kind: Any, location: tuple[str | int, ...]) -> list[str]:
    """The keys that lead to an error: its location without the tags of union members."""
    path = []
    for part in map(str, location):
        if len(_sections(kind)) > 1:
            kind = next(member for member in _sections(kind) if member.name == part)
            continue
        path.append(part)
        kind = get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else next(iter(_sections(kind)), None)
    return path


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
