"""The config of an adapter as PEFT writes it: which linear modules it adapts, each with its rank and scale.

Source  PEFT 0.21: check_target_module_exists, get_pattern_key, and the scale of a LoRA's layer
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from editmgt_jax.config.json_config import require
from editmgt_jax.errors import UserError
from editmgt_jax.files import parse_json

ALL_LINEAR = "all-linear"
_MODULE = r"(.*\.)?({})$"  # around the key of a pattern of ranks or alphas
_LAYER = r"(?:^|.*?\.){}\.(\d+)\."  # around the name of a list of layers
_FORMS = {"rank_pattern": _MODULE, "alpha_pattern": _MODULE, "layers_pattern": _LAYER}
_SECONDS = 5  # of computing that the expressions of a config may take; with PEFT's own patterns it is milliseconds
# Run apart, for a match that goes on and on can be stopped from outside alone.
_TRIAL = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS}, {_SECONDS}))
for expression in json.load(sys.stdin)["expressions"]:
    print(json.dumps(expression), flush=True)
    for module in sys.argv[1:]:
        re.match(expression, module), re.fullmatch(expression, module)
"""
_LARGEST = 1e9  # no rank or alpha is near it
_READ = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "exclude_modules")
_READ += ("layers_to_transform", "layers_pattern", "peft_type", "bias", "init_lora_weights", "scope")
# Keys that change nothing of a trained LoRA's result.
_WITHOUT_EFFECT = ("_class_name", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision")
_WITHOUT_EFFECT += (
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "loftq_config",
    "qalora_group_size",
    "runtime_config",
)


@dataclasses.dataclass(frozen=True)
class PEFTConfig:
    """What PEFT's config says of a LoRA. What would change its result in a way that is not computed here is refused by name."""

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...] | str
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    use_rslora: bool = False
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    scope: str | None = None  # ours; None where none is stated

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Reads a config file. Errors: UserError that names the file and the key."""
        try:
            return cls.from_dict(parse_json(Path(path).read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """Errors: UserError that names the key."""
        require(isinstance(values, dict), "a LoRA's config must be a JSON object", values)
        require(values.get("peft_type", "LORA") == "LORA", "peft_type must be LORA", values.get("peft_type"))
        missing = sorted({"r", "lora_alpha", "target_modules"} - values.keys())
        require(not missing, "a LoRA's config must state r, lora_alpha and target_modules", f"none for {missing}")
        require(values.get("bias") in (None, "none"), "bias of a LoRA must be 'none'", values.get("bias"))
        begun = values.get("init_lora_weights", True)
        require(
            isinstance(begun, bool) or begun in (None, "gaussian", "orthogonal"),
            "init_lora_weights must leave the base's weights as they are (true, false, 'gaussian' or 'orthogonal')",
            begun,
        )
        for key in values.keys() - {*_READ, *_WITHOUT_EFFECT}:
            require(not values[key], f"{key} of a LoRA is not supported and must be absent", values[key])
        config = cls(
            _number(values, "r", int),
            _number(values, "lora_alpha", float),
            _names(values, "target_modules", (str,)),
            _pattern(values, "rank_pattern", int),
            _pattern(values, "alpha_pattern", float),
            bool(values.get("use_rslora")),
            _names(values, "exclude_modules", (str,)),
            _names(values, "layers_to_transform", (int,), listed=True),
            _names(values, "layers_pattern", (str,), listed=True),
            values.get("scope"),
        )
        require(config.target_modules, "target_modules of a LoRA must name modules", values["target_modules"])
        require(config.scope in (None, "all", "reference"), "scope must be 'all' or 'reference'", config.scope)
        return config

    def check_quick(self, modules: Sequence[str]) -> None:
        """Errors: UserError when a regular expression takes too long for the names of some modules, as nested repeats can."""
        repeats = [each for each in self._expressions() if re.search(r"[*+{]", each)]
        if not repeats:
            return
        trial = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL, *modules],
            input=json.dumps({"expressions": repeats}),
            capture_output=True,
            text=True,
        )
        if trial.returncode < 0:  # it was ended for its time; what is no expression has an error of its own
            slow = (trial.stdout.splitlines() or ["one of them"])[-1]
            raise UserError(
                f"the regular expressions of a LoRA must match names of modules within {_SECONDS} s; not so {slow}: "
                "leave nested repeats out, or list the modules"
            )

    def _expressions(self) -> Iterator[str]:
        """All regular expressions, as they are matched."""
        for names in (self.target_modules, self.exclude_modules):
            if isinstance(names, str):
                yield names
        yield from (_MODULE.format(each) for each in (*self.rank_pattern, *self.alpha_pattern))
        yield from (_LAYER.format(each) for each in self.layers_pattern)

    def targets(self, module: str) -> bool:
        """Whether a linear module, by its released name, is adapted."""
        if _matches(self.exclude_modules, module):
            return False
        if isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR:
            return True
        if not _matches(self.target_modules, module):
            return False
        if not self.layers_to_transform or isinstance(self.target_modules, str) or module in self.target_modules:
            return True
        return self._layer(module) in self.layers_to_transform

    def _layer(self, module) -> int | None:
        patterns = [_LAYER.format(each) for each in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((found for found in (re.match(each, module) for each in patterns) if found), None)
        return None if found is None else int(found[1])

    def rank(self, module: str) -> int:
        """The rank of a module's factors."""
        return int(_of_pattern(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """The factor of the product of a module's factors."""
        rank, alpha = self.rank(module), _of_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matches(names: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _of_pattern(pattern: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first key that a module's name ends with; keys are regular expressions."""
    return next((value for key, value in pattern.items() if re.match(_MODULE.format(key), module)), otherwise)


def _number(values, key, kind):
    value = values[key]
    right = isinstance(value, (int, kind)) and not isinstance(value, bool) and abs(value) < _LARGEST
    require(right, f"{key} of a LoRA must be {'an integer' if kind is int else 'a number'}", value)
    require(kind is float or value > 0, f"{key} of a LoRA must be positive", value)
    return kind(value)


def _pattern(values, key, kind) -> dict:
    pattern = values.get(key) or {}
    require(isinstance(pattern, dict), f"{key} of a LoRA must be a JSON object", pattern)
    for each in pattern:
        _check_expression(each, key)
    return {each: _number(pattern, each, kind) for each in pattern}


def _names(values, key, kinds, listed=False):
    """A key's value: a tuple, or the text of a regular expression; `listed` makes a tuple of one value, too."""
    value = values.get(key)
    value = () if value is None else value
    if isinstance(value, kinds) and not isinstance(value, bool):
        value = (value,) if listed else value
    if isinstance(value, str) and value.lower() != ALL_LINEAR:
        _check_expression(value, key)
    right = isinstance(value, (list, tuple, str)) and all(isinstance(each, kinds) for each in value)
    require(
        right, f"{key} of a LoRA must be {'integers' if kinds == (int,) else 'names or a regular expression'}", value
    )
    if listed and kinds == (str,):
        for each in value:
            _check_expression(each, key)
    return value if isinstance(value, str) else tuple(value)


def _check_expression(text, key) -> None:
    """Errors: UserError for what is no regular expression, alone or as a part of one."""
    try:
        re.compile(_FORMS.get(key, "{}").format(text))
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{key} of a LoRA must be a regular expression; got {text!r}: {error}") from error
