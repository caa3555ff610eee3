"""Declared keys of configs. A section is a frozen dataclass; each of its fields states type, rule, meaning, and whether a run
under way may change it. No jax.

    learning_rate: float = key(1e-4, "the peak of the schedule", above(0))

`read` makes a section of a plain dict, `plain` makes the dict again, `changes` compares two.
"""

import ast
import dataclasses
import difflib
import functools
import math
import numbers
import operator
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from editmgt_jax.errors import UserError

Section = typing.TypeVar("Section")
FREE, NOTED, FIXED = "free", "noted", "fixed"  # a run under way: may change a key, is told, must keep it
_KEY, _LONGEST = "key", 80  # characters of a value in a message
_WORDS = {
    int: "an integer",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    tuple[str, ...]: "several texts, such as ('to_q', 'to_k')",
    tuple[int, ...]: "several integers",
    tuple[float, ...]: "several finite numbers",
}


class ConfigError(UserError):
    """A config or an override that cannot be used: names the key, its rule and the value."""


class Misfit(Exception):
    """A value that is not of its key's type or form; its text says what it must be."""


# ---- declarations


class Rule(typing.NamedTuple):
    """What a value must be besides its type: in words that follow the type's, or replace them if `whole`; and as a test."""

    words: str
    holds: Callable[[Any], bool]
    whole: bool = False


ANY = Rule("", lambda value: True)


def at_least(low: float) -> Rule:
    """A number that is not below `low`."""
    return Rule(f" of at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    """A number larger than `low`."""
    return Rule(f" above {low}", lambda value: value > low)


def between(low: float, high: float) -> Rule:
    """A number from `low` to `high`, both included."""
    return Rule(f" from {low} to {high}", lambda value: low <= value <= high)


def below(low: float, high: float) -> Rule:
    """A number from `low` on, less than `high`."""
    return Rule(f" of at least {low} and below {high}", lambda value: low <= value < high)


def multiple_of(unit: int) -> Rule:
    """A positive multiple of `unit`."""
    return Rule(f" that is a positive multiple of {unit}", lambda value: value > 0 and value % unit == 0)


def one_of(*choices: str) -> Rule:
    """One of several texts."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices, whole=True)


def _whole(value):
    return value


@dataclasses.dataclass(frozen=True)
class Key:
    """What is declared of a key besides its name, type and default.

    Attributes:
      meaning: what it is, in a few words; change: FREE, NOTED or FIXED; folder: whether its text is the path of a folder.
      read: other forms of a value -> the value, or Misfit; write: the value -> what JSON can hold.
      fixed: value -> the part of it that FIXED is about.
    """

    meaning: str
    rule: Rule = ANY
    change: str = NOTED
    folder: bool = False
    read: Callable | None = None
    write: Callable | None = None
    fixed: Callable = _whole


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A section whose keys are the fields of one of the dataclasses of `editmgt_jax.config`, which checks them.

    Attributes:
      without: fields that are no keys; zeros: those of them that older configs set to 0; given: values of fields that have no
        default. inline: whether its keys stand among those of the section it is in; optional: whether an empty section is None;
        required: whether it must have keys.
    """

    kind: type
    change: str = FIXED
    without: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    given: tuple[tuple[str, Any], ...] = ()
    inline: bool = False
    optional: bool = False
    required: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are keys."""
        return tuple(field.name for field in dataclasses.fields(self.kind) if field.name not in self.without)


def key(default: Any, meaning: str, rule: Rule = ANY, change: str = NOTED, **more: Any) -> Any:
    """Declares a key; `...` as its default makes it required. more: attributes of `Key`."""
    metadata = {_KEY: Key(meaning, rule, change, **more)}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type) -> Any:
    """Declares a section inside a section."""
    return dataclasses.field(default_factory=kind)


def architecture(kind: type, **more: Any) -> Any:
    """Declares an `Architecture`. more: its attributes."""
    return dataclasses.field(metadata={_KEY: Architecture(kind, **more)})


# ---- dict -> section


def read(kind: type[Section], values: Any, name: str = "") -> Section:
    """A section of type `kind` from a plain dict; keys that it leaves out have their defaults.

    Args:
      name: dotted name of the section, for messages.
    Errors: ConfigError.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{name or 'a config'} must be a section of keys, {', '.join(_names(kind))}; got {_shown(values)}"
        )
    for each in values:
        if each not in _names(kind):
            raise ConfigError(f"there is no config key {_join(name, str(each))}{_hint(each, _names(kind))}")
    return kind(
        **{field.name: found for field in dataclasses.fields(kind) for found in _read_field(field, values, name)}
    )


def _read_field(field: dataclasses.Field, values, section_name):
    """What `values` give a field, in a list; an empty one where its default counts."""
    declared, name = field.metadata.get(_KEY), _join(section_name, field.name)
    if isinstance(declared, Architecture):
        if declared.inline:
            own = {each: values[each] for each in (*declared.names, "_class_name") if each in values}
            return [_read_architecture(declared, own, section_name)]
        return [_read_architecture(declared, values.get(field.name, {}), name)]
    if declared is None:
        return [read(field.type, values.get(field.name, {}), name)]
    if field.name in values:
        return [check(field, values[field.name], name)]
    if field.default is dataclasses.MISSING:
        raise ConfigError(f"a config needs the key {name}: {declared.meaning}")
    return []


def check(field: dataclasses.Field, value: Any, name: str) -> Any:
    """The value of a key, of the key's type. Errors: ConfigError."""
    declared: Key = field.metadata[_KEY]
    words = declared.rule.words if declared.rule.whole else _WORDS.get(field.type, "") + declared.rule.words
    try:
        found = declared.read(value) if declared.read else _of_type(field.type, value)
        if not declared.rule.holds(found):
            raise Misfit(words)
    except Misfit as misfit:
        must = str(misfit) or words
        raise ConfigError(f"{name} must be {must}; got {_shown(value)} (it is {declared.meaning})") from None
    return found


def _of_type(kind, value):
    """A value as exactly `kind`: integers may stand for floats, lists for tuples. Errors: Misfit."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int and number and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and number and math.isfinite(value):
        return float(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and is_text(value):
        return value
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_of_type(typing.get_args(kind)[0], each) for each in value)
    raise Misfit


def is_text(value: Any) -> bool:
    """Whether a value is a text of valid Unicode."""
    try:
        return isinstance(value, str) and "\0" not in value and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _read_architecture(declared: Architecture, values, name):
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a section of keys, {', '.join(declared.names)}; got {_shown(values)}")
    if declared.optional and not values:
        return None
    if declared.required and not values:
        raise ConfigError(f"a config needs the section {name}: {', '.join(declared.names)}")
    for each, value in values.items():
        if each in declared.zeros and value == 0:
            continue
        if each not in (*declared.names, "_class_name"):
            raise ConfigError(f"there is no config key {_join(name, str(each))}{_hint(each, declared.names)}")
    own = {each: value for each, value in values.items() if each not in declared.zeros}
    try:
        return declared.kind.from_dict(dict(declared.given) | own)
    except UserError as error:
        named = str(error).split(" ")[0] in declared.names
        raise ConfigError(f"{name}{'.' if named else ': '}{error}") from None


def _names(kind) -> tuple[str, ...]:
    """The keys of a section."""
    names: tuple[str, ...] = ()
    for field in dataclasses.fields(kind):
        declared = field.metadata.get(_KEY)
        inline = isinstance(declared, Architecture) and declared.inline
        names += (*declared.names, "_class_name") if inline else (field.name,)
    return names


# ---- overrides


def override(kind: type, values: dict, name: str, text: str) -> None:
    """Sets the dotted key `name` in a plain dict to a value given as text, which the key's type tells how to read.

    Errors: ConfigError when there is no such key; whether the value fits, `read` tells.
    """
    at, whole = kind, values
    *sections, last = name.split(".")
    for depth, part in enumerate(sections):
        at = _inside(at, part, ".".join(sections[: depth + 1]))
        whole = whole.setdefault(part, {})
        if not isinstance(whole, dict):
            raise ConfigError(f"{'.'.join(sections[: depth + 1])} must be a section of keys; got {_shown(whole)}")
    if last not in _keys_of(at):
        raise ConfigError(f"there is no config key {name}{_hint(last, _keys_of(at))}")
    whole[last] = text if _takes_text(at, last) else _literal(text)


def _keys_of(at) -> tuple[str, ...]:
    return at.names if isinstance(at, Architecture) else _names(at)


def _inside(at, part, name):
    """The section `part` of a section."""
    found = {} if isinstance(at, Architecture) else {field.name: field for field in dataclasses.fields(at)}
    declared = found[part].metadata.get(_KEY) if part in found else None
    if part not in found or isinstance(declared, Key):
        known = tuple(each for each, field in found.items() if not isinstance(field.metadata.get(_KEY), Key))
        raise ConfigError(f"there is no config section {name}{_hint(part, known)}")
    return declared or found[part].type


def _takes_text(at, name) -> bool:
    kind = at.kind if isinstance(at, Architecture) else at
    for field in dataclasses.fields(kind):
        if field.name == name:
            declared = field.metadata.get(_KEY)
            return field.type is str or isinstance(declared, Key) and declared.read is not None
    return False  # of an architecture whose keys stand here


def _literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


# ---- section -> dict, comparison


def plain(whole: Any) -> dict[str, Any]:
    """What `read` makes the same section of, in values that JSON can hold."""
    found = {}
    for field in dataclasses.fields(whole):
        declared, value = field.metadata.get(_KEY), getattr(whole, field.name)
        if isinstance(declared, Architecture):
            own = {} if value is None else {each: getattr(value, each) for each in declared.names}
            found |= own if declared.inline else {field.name: own}
        elif declared is None:
            found[field.name] = plain(value)
        else:
            found[field.name] = declared.write(value) if declared.write else value
    return found


def leaves(whole: Any, name: str = "") -> Iterator[tuple[str, Any, Key]]:
    """(dotted name, value, declaration) of every key."""
    for field in dataclasses.fields(whole):
        declared, value, dotted = field.metadata.get(_KEY), getattr(whole, field.name), _join(name, field.name)
        if isinstance(declared, Architecture):
            each_key, prefix = Key("", change=declared.change), name if declared.inline else dotted
            for each in declared.names:
                yield _join(prefix, each), getattr(value, each, None), each_key
        elif declared is None:
            yield from leaves(value, dotted)
        else:
            yield dotted, value, declared


def changes(before: Any, after: Any) -> tuple[list[str], list[str]]:
    """What differs between two configs -> (FIXED keys, NOTED keys), each as 'model.mgt.num_layers was 2, is 3'."""
    old, told = {name: value for name, value, _ in leaves(before)}, ([], [])
    for name, value, declared in leaves(after):
        if declared.change == FREE or name in old and old[name] == value:
            continue
        fixed = declared.change == FIXED and (name not in old or declared.fixed(old[name]) != declared.fixed(value))
        show = declared.write or _whole
        line = f"{name} was {_shown(show(old[name])) if name in old else 'no key'}, is {_shown(show(value))}"
        about = f" ({declared.meaning})" if declared.meaning else ""
        told[not fixed].append(line + about)
    return told


def replaced(whole: Section, values: Mapping[str, Any]) -> Section:
    """The config with other values of some dotted keys, checked. Errors: ConfigError."""
    found = plain(whole)
    for name, value in values.items():
        *sections, last = name.split(".")
        inside = functools.reduce(operator.getitem, sections, found)
        inside[last] = value
    return read(type(whole), found)


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _hint(given, known) -> str:
    known = [name for name in known if name != "_class_name"]
    close = difflib.get_close_matches(str(given), known, n=1)
    return f": did you mean {close[0]}?" if close else f"; there are {', '.join(known)}" if known else ""


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
