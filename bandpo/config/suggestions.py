"""Messages for keys and choices that do not exist, with those that may have been meant."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from pydantic import BaseModel

from bandpo.config.keys import every_key
from bandpo.errors import did_you_mean


def no_such(
    error: Exception, override: str, tree: Mapping[str, Any], schema: type[BaseModel]
) -> str | None:
    """The problem of an override whose key or choice does not exist; None for other errors."""
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    if isinstance(error, MissingConfigException) and error.options is not None:
        options = [name for name in error.options if not name.startswith("_")]
        meant = did_you_mean(value, options) or _as_value(key, value, schema)
        return f"no such {key}{meant or '; there are'} ({', '.join(options)})"
    known = isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError)
    if not isinstance(error, ConfigCompositionException) or not known:
        return None
    return f"no such key{meant_by(key, tree, schema)}"


def meant_by(key: str, tree: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """The keys that may have been meant by one that does not exist, or those of its section."""
    known = dict(every_key(tree))
    if meant := did_you_mean(key.replace("/", "."), (name for name in known if name != key)):
        return meant
    section = key.rpartition(".")[0]
    if section in known and not isinstance(known[section], Mapping):
        return f"; {section} has no keys: did you mean {section}=…?"
    if is_open(schema, key):
        return f"; +{key}=… adds it"
    inside: Any = tree
    for name in filter(None, section.split(".")):
        inside = inside.get(name) if isinstance(inside, Mapping) else None
    if not isinstance(inside, Mapping):
        return ""
    keys = ", ".join(name for name in inside if name != key.rpartition(".")[2])
    return f"; {section} has {keys}" if section else f"; there are {keys}"


def is_open(schema: type[BaseModel], key: str) -> bool:
    """Whether the part of the configuration that holds the key takes keys of any name."""
    for name in key.split(".")[:-1]:
        field = schema.model_fields.get(name)
        if field is None or not _is_section(field.annotation):
            return True
        schema = field.annotation  # type: ignore[assignment]
    return schema.model_config.get("extra") != "forbid"


def instead_of_section(key: str, value: Any, schema: type[BaseModel]) -> str | None:
    """The problem of one value for a whole section; None where the key is no section."""
    field = schema.model_fields.get(key)
    if field is None or not _is_section(field.annotation) or isinstance(value, Mapping):
        return None
    return f"{key}={value!r}: {key} is a section of keys{_as_value(key, str(value), schema)}"


def _as_value(section: str, value: str, schema: type[BaseModel]) -> str:
    """`; did you mean <first key of the section>=value?` where that key takes a text."""
    field = schema.model_fields.get(section)
    if field is None or not _is_section(field.annotation) or not value:
        return ""
    name, first = next(iter(field.annotation.model_fields.items()))  # type: ignore[union-attr]
    takes_text = "str" in str(first.annotation)
    return f"; did you mean {section}.{name}={value}?" if takes_text else ""


def _is_section(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)
