"""Composes a configuration from the shipped YAML files and overrides, and checks it.

Hydra composes; the result is validated section by section against its schema and then by the
cross-checks, and every problem found is reported in one error before anything loads.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from bandpo.config.cross_checks import cross_problems
from bandpo.config.keys import every_key
from bandpo.config.overrides import as_text, in_shell, is_sweep, is_understood, meant, replaced
from bandpo.config.policy import model_given, suited_to, unintended
from bandpo.config.schema import FORMER_KEYS, Config
from bandpo.config.suggestions import instead_of_section, meant_by, no_such
from bandpo.disk.shipped import shipped
from bandpo.errors import UserError

SchemaT = TypeVar("SchemaT", bound=BaseModel)
# hydra refuses some overrides with a bare ValueError.
# Folders of configs/ that are no groups of a command.
GROUPS_OF_OTHERS = {
    "train": ("benchmark", "preset", "template"),
    "eval": (
        *("benchmark", "data", "method", "policy", "preset", "protocol", "sampler", "template"),
    ),
}
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError)


def config_dir() -> Path:
    """The folder of the shipped YAML files."""
    return shipped("configs")


def defaults(schema: type[BaseModel]) -> dict[str, Any]:
    """The schema's default values as a tree, so that YAML files need not repeat them."""
    tree: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            tree[name] = defaults(field.annotation)
        elif not field.is_required():
            default = field.get_default(call_default_factory=True)
            tree[name] = list(default) if isinstance(default, tuple) else default
    return tree


def _compose(
    name: str, overrides: Sequence[str], schema: type[BaseModel], gpu: bool | None = None
) -> dict[str, Any]:
    return _resolved(_composed(name, overrides, schema), gpu)


@contextmanager
def _initialized(name: str, schema: type[BaseModel]) -> Iterator[Hydra]:
    """hydra with the schema's defaults, which the files of `name` list as `<name>_defaults`."""
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(f"{name}_defaults", defaults(schema))
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield GlobalHydra.instance().hydra  # type: ignore[misc]


def _suited(name: str, overrides: Sequence[str]) -> tuple[list[str], DictConfig]:
    """The overrides as hydra takes them and what they compose to, inside `_initialized`.

    They begin from settings that suit the model (`bandpo.config.policy`).
    """
    words = [word for o in overrides for word in replaced(o)]
    if name != "train":
        return words, hydra_compose(name, overrides=words)
    words = suited_to(model_given(words), words)
    composed = hydra_compose(name, overrides=words)
    suited = suited_to(OmegaConf.select(composed, "model.path"), words)
    if suited == words:
        return words, composed
    return suited, hydra_compose(name, overrides=suited)  # a protocol has named the model


def _composed(name: str, overrides: Sequence[str], schema: type[BaseModel]) -> DictConfig:
    """The files of `name` over the schema's defaults."""
    with _initialized(name, schema):
        return _suited(name, overrides)[1]


def show_composed(
    name: str,
    overrides: Sequence[str],
    schema: type[BaseModel],
    cfg: str = "job",
    package: str | None = None,
    resolve: bool = False,
) -> None:
    """Prints the composed configuration as hydra's --cfg does; raises UserError as `compose`."""
    try:
        with _initialized(name, schema) as hydra:
            words, composed = _suited(name, overrides)
            if package and OmegaConf.select(composed, package) is None:
                tree = _compose(name, overrides, schema)
                raise UserError(
                    f"--package {package}: no such key{meant_by(package, tree, schema)}"
                )
            _resolve_for(gpu=None)
            hydra.show_cfg(name, words, cfg, package, resolve)
    except COMPOSITION_ERRORS:
        compose(name, overrides, schema)
        raise


def show_info(name: str, overrides: Sequence[str], schema: type[BaseModel], info: str) -> None:
    """Prints how hydra composes, as its --info does; raises UserError as `compose`."""
    try:
        with _root_log_kept(), _initialized(name, schema) as hydra:
            hydra.show_info(info, name, _suited(name, overrides)[0])
    except COMPOSITION_ERRORS:
        compose(name, overrides, schema)
        raise


@contextmanager
def _root_log_kept() -> Iterator[None]:
    """Undoes what hydra does to the root logger, through which it prints."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def values_of(name: str, overrides: Sequence[str], schema: type[BaseModel]) -> dict[str, Any]:
    """Every key with its value; nothing is checked."""
    return dict(every_key(_compose(name, overrides, schema)))


def _resolve_for(gpu: bool | None) -> None:
    """`${on_gpu:a,b}` becomes a on a machine with GPUs and b without; None: on this machine."""
    there = torch.cuda.is_available() if gpu is None else gpu
    OmegaConf.register_new_resolver("on_gpu", lambda a, b: a if there else b, replace=True)


def _resolved(composed: DictConfig, gpu: bool | None = None) -> dict[str, Any]:
    """The tree with its interpolations."""
    _resolve_for(gpu)
    return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("full_key", "object_type", "Config search path", "provider=", "See https://hydra")
    hints = [line for line in lines[1:] if not line.startswith(noise)]
    return " ".join([lines[0], *hints]) if lines else type(error).__name__


class _SortedOut(NamedTuple):
    """Overrides that compose, the problems of the others, and what those mean in quotes."""

    accepted: list[str]
    problems: list[str]
    meant: dict[str, str]


def _sorted_out(name: str, overrides: Sequence[str], schema: type[BaseModel]) -> _SortedOut:
    """Tries overrides one by one; choices of groups (method=…) first, as they decide on keys."""
    found = _SortedOut([], [], {})
    keys = {override: override.split("=")[0].lstrip("+~") for override in overrides}
    # Search paths first, then groups, then values.
    order = {o: (k != "hydra.searchpath", not (config_dir() / k).is_dir()) for o, k in keys.items()}

    def tree() -> dict[str, Any]:
        composed = _composed(name, found.accepted, schema)
        return OmegaConf.to_container(composed)  # type: ignore[return-value]

    for override in sorted(overrides, key=lambda o: order[o]):
        word = override
        if not is_understood(override) and (text := meant(override)):
            found.problems.append(f"{override}: hydra reads syntax in it; {in_shell(text)}")
            found.meant[override] = word = text
        try:
            _compose(name, [*found.accepted, word], schema)
            found.accepted.append(word)
        except COMPOSITION_ERRORS as error:
            problem = FORMER_KEYS.get(keys[override]) or no_such(error, word, tree(), schema)
            found.problems.append(f"{word}: {problem or _first_sentence(error)}")
            if is_sweep(word):
                key, _, values = word.partition("=")
                found.problems[-1] = (
                    f"{word}: a sweep needs -m, a list needs brackets ({key}=[{values}]); "
                    f"{in_shell(as_text(word))}"
                )
    return found


def compose(
    name: str,
    overrides: Sequence[str],
    schema: type[SchemaT],
    ranks: int = 1,
    gpu: bool | None = None,
) -> SchemaT:
    """The configuration `name` with overrides, as `schema`, for a job of so many `ranks`.

    `gpu` says whether they have GPUs; None: whether this machine has. Raises UserError with every
    problem; its `instead` are the overrides that only lack quotes.
    """
    sorted_out = _SortedOut(list(overrides), [], {})
    try:
        OverridesParser.create().parse_overrides(list(overrides))
        raw = _compose(name, overrides, schema, gpu)
    except COMPOSITION_ERRORS:
        sorted_out = _sorted_out(name, overrides, schema)
        raw = _compose(name, sorted_out.accepted, schema, gpu)
    if issubclass(schema, Config) and (problem := unintended(overrides, raw.get("data"))):
        sorted_out.problems.append(problem)
    try:
        return validate(raw, schema, sorted_out.problems, overrides, ranks)
    except UserError as error:
        error.instead = sorted_out.meant
        raise


def compose_seeds(
    name: str,
    overrides: Sequence[str],
    schema: type[SchemaT],
    seeds: Sequence[int],
    ranks: int = 1,
    gpu: bool | None = None,
) -> list[SchemaT]:
    """`compose` with each `seed` in turn, for little more than the time of one."""
    try:
        composed = _composed(name, overrides, schema)
        seeded = [OmegaConf.merge(composed, {"seed": seed}) for seed in seeds]
        trees = [_resolved(tree, gpu) for tree in seeded]  # type: ignore
    except COMPOSITION_ERRORS:
        return [compose(name, [*overrides, f"seed={seed}"], schema, ranks, gpu) for seed in seeds]
    return [validate(tree, schema, ranks=ranks) for tree in trees]


def validate(
    raw: Mapping[str, Any],
    schema: type[SchemaT],
    problems: Sequence[str] = (),
    overrides: Sequence[str] = (),
    ranks: int = 1,
) -> SchemaT:
    """`raw` as `schema`; cross-checks run on every section that is valid by itself.

    Raises UserError with `problems` found before and all that are found here. `overrides` are its
    source, to show how a value is quoted.
    """
    found = list(problems)
    try:
        schema.model_validate(raw)
    except ValidationError as error:
        found += [_in_words(detail, overrides, raw, schema) for detail in error.errors()]
    found += cross_problems(raw, schema, ranks)
    if found:
        raise UserError.join("the configuration has these problems:", found)
    return schema.model_validate(raw)


def _in_words(
    detail: Any, overrides: Sequence[str], raw: Mapping[str, Any], schema: type[BaseModel]
) -> str:
    key = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        former = f"; {FORMER_KEYS[key]}" if key in FORMER_KEYS else ""
        return f"{key}: no such key{former or meant_by(key, raw, schema)}"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    if problem := instead_of_section(key, detail["input"], schema):
        return problem
    message = detail["msg"].removeprefix("Value error, ")
    is_said = detail["type"] == "value_error" and not detail["input"]
    if is_said or isinstance(detail["input"], Mapping):  # a whole section would hide the message
        return f"{key}: {message}"
    hint = ""
    given = [o for o in overrides if f"{key}.".startswith(f"{o.partition('=')[0].lstrip('+')}.")]
    if detail["type"] == "string_type" and given:
        hint = f"; {in_shell(as_text(given[-1]))}"
    return f"{key}={detail['input']!r}: {message}{hint}"
