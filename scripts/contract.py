#!/usr/bin/env python3
"""Writes what bandpo relies on in a package, as its sources declare it: tests/contracts/*.json.

    python scripts/contract.py WHEEL…        wheels, which are read and not installed
    python scripts/contract.py vllm …        packages that are installed

tests/contracts/relied_on.yaml lists the names. tests/test_contracts.py holds our calls against what
was written, so that paths which only a GPU takes are guarded on a machine without one.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml

CONTRACTS = Path(__file__).resolve().parents[1] / "tests" / "contracts"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _inside(wheel: zipfile.ZipFile, path: str) -> str:
    return wheel.read(path).decode()


class Missing(Exception):
    """A name that the sources do not declare."""


class Sources:
    """The modules of a package, parsed and never imported."""

    def __init__(self, name: str, version: str, texts: Mapping[str, Callable[[], str]]) -> None:
        """`texts` read the files, by their paths."""
        self.name, self.version, self._texts = name, version, texts

    @classmethod
    def of(cls, target: str) -> Sources:
        """A wheel's, or those of an installed distribution."""
        if target.endswith(".whl"):
            wheel = zipfile.ZipFile(target)
            inside = [path for path in wheel.namelist() if path.endswith(".py")]
            name, version, *_ = Path(target).name.split("-")
            return cls(name, version, {p: partial(_inside, wheel, p) for p in inside})
        found = distribution(target)
        files = [path for path in found.files or () if path.suffix == ".py"]
        texts = {str(path): partial(path.read_text, encoding="utf-8") for path in files}
        return cls(target, found.version.split("+")[0], texts)

    @cache  # noqa: B019 (a script's)
    def module(self, dotted: str) -> ast.Module:
        """A module's syntax; raises Missing."""
        path = dotted.replace(".", "/")
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            if text := self._texts.get(candidate):
                return ast.parse(text())
        raise Missing(dotted)

    def find(self, dotted: str, name: str) -> tuple[ast.AST, str]:
        """The declaration of `name` in a module, and its module; imports are followed."""
        head, _, rest = name.partition(".")
        for node in _statements(self.module(dotted)):
            if isinstance(node, ast.ClassDef) and node.name == head and rest:
                return self._member(node, dotted, rest)
            if isinstance(node, ast.ClassDef | Function) and node.name == head:
                return node, dotted
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == head:
                        origin = self._imported(node, dotted)
                        return self.find(origin, f"{alias.name}.{rest}".rstrip("."))
            if head in _assigned(node) or head in _keys(node):
                return node, dotted
        raise Missing(f"{dotted}:{name}")

    def _imported(self, node: ast.ImportFrom, dotted: str) -> str:
        """The module that an import in `dotted` names; a package is its own parent."""
        package = f"{dotted.replace('.', '/')}/__init__.py" in self._texts
        parents = dotted.split(".")[: None if package else -1]
        kept = parents[: len(parents) - node.level + 1] if node.level else []
        return ".".join([*kept, *([node.module] if node.module else [])])

    def _member(self, owner: ast.ClassDef, dotted: str, name: str) -> tuple[ast.AST, str]:
        for node in owner.body:
            if (isinstance(node, Function) and node.name == name) or name in _assigned(node):
                return node, dotted
        for base in self.bases(owner, dotted):
            try:
                return self._member(*base, name)
            except Missing:
                continue
        raise Missing(f"{dotted}:{owner.name}.{name}")

    def bases(self, owner: ast.ClassDef, dotted: str) -> Iterator[tuple[ast.ClassDef, str]]:
        """The classes that a class is made from, as far as they are the package's own."""
        for base in owner.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            try:
                node, where = self.find(dotted, ast.unparse(base))
            except Missing:
                continue
            if isinstance(node, ast.ClassDef):
                yield node, where

    def fields(self, owner: ast.ClassDef, dotted: str) -> list[str]:
        """Annotated attributes of a class and its bases."""
        inherited = [f for base in self.bases(owner, dotted) for f in self.fields(*base)]
        own = [n.target.id for n in owner.body if isinstance(n, ast.AnnAssign)]  # type: ignore
        return list(dict.fromkeys(inherited + own))

    def endpoint(self, folder: str, path: str) -> Function:
        """The handler of an HTTP path; raises Missing."""
        for file in sorted(path for path in self._texts if path.startswith(f"{folder}/")):
            text = self._texts[file]()
            for node in ast.walk(ast.parse(text)) if f'"{path}"' in text else ():
                if isinstance(node, Function) and path in map(_path, node.decorator_list):
                    return node
        raise Missing(path)


def _statements(module: ast.AST) -> Iterator[ast.stmt]:
    """Those of a module, with what stands under an `if` or a `try`."""
    for node in ast.iter_child_nodes(module):
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from _statements(node)


def _assigned(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _keys(node: ast.AST) -> set[Any]:
    """Of a mapping at the top of a module: environment variables, names that load lazily."""
    value = getattr(node, "value", None)
    keys = value.keys if isinstance(value, ast.Dict) else ()
    return {key.value for key in keys if isinstance(key, ast.Constant)}


def _path(decorator: ast.expr) -> Any:
    call = decorator if isinstance(decorator, ast.Call) else None
    first = call.args[0] if call and call.args else None
    return first.value if isinstance(first, ast.Constant) else None


def parameters(function: Function) -> list[str]:
    """`["self", "level=", "*", "tags=", "**rest"]`: an equals sign where there is a default."""
    a = function.args
    ordered = [*a.posonlyargs, *a.args]
    required = len(ordered) - len(a.defaults)
    found = [arg.arg + "=" * (i >= required) for i, arg in enumerate(ordered)]
    if a.vararg or a.kwonlyargs:
        found.append(f"*{a.vararg.arg if a.vararg else ''}")
    pairs = zip(a.kwonlyargs, a.kw_defaults, strict=True)
    found += [arg.arg + "=" * (default is not None) for arg, default in pairs]
    return found + ([f"**{a.kwarg.arg}"] if a.kwarg else [])


def declared(sources: Sources, place: str) -> Any:
    """The contract's entry for `module:name`: parameters, fields, or that it is there."""
    dotted, _, name = place.partition(":")
    if not name:
        sources.module(dotted)
        return {}
    node, where = sources.find(dotted, name)
    if isinstance(node, Function):
        return {"parameters": parameters(node)}
    if isinstance(node, ast.ClassDef):
        return {"fields": sources.fields(node, where)}
    return {}


def reads(sources: Sources, place: str, variable: str) -> list[str]:
    """Members of an object `variable` that a class uses: `name`, `method()`, `iter()`."""
    owner, _ = sources.find(*place.split(":"))  # type: ignore[arg-type]
    called = {id(node.func) for node in ast.walk(owner) if isinstance(node, ast.Call)}
    found = set()
    for node in ast.walk(owner):
        if isinstance(node, ast.Attribute) and _is(node.value, variable):
            found.add(node.attr + "()" * (id(node) in called))
        iterated = getattr(node, "iter", None) or (
            node.args[0] if isinstance(node, ast.Call) and _is(node.func, "iter") else None
        )
        if iterated is not None and _is(iterated, variable):
            found.add("iter()")
    return sorted(found)


def texts(sources: Sources, place: str, variable: str) -> list[str]:
    """The texts of a list that a function assigns to `variable`."""
    owner, _ = sources.find(*place.split(":"))  # type: ignore[arg-type]
    for node in ast.walk(owner):
        listed = getattr(node, "value", None)
        if variable in _assigned(node) and isinstance(listed, ast.List):
            return sorted(item.value for item in listed.elts if isinstance(item, ast.Constant))
    raise Missing(f"{place} {variable}")


def _is(node: ast.AST, name: str) -> bool:
    """Whether it is a variable or an attribute of this name."""
    return name in (getattr(node, "id", None), getattr(node, "attr", None))


def handler(sources: Sources, folder: str, path: str) -> dict[str, Any]:
    """An endpoint's parameters, and the keys of the replies that it writes out."""
    function = sources.endpoint(folder, path)
    replies = (
        k.value
        for node in ast.walk(function)
        if isinstance(node, ast.Dict)
        for k in node.keys
        if isinstance(k, ast.Constant)
    )
    return {"parameters": parameters(function), "reply": sorted(set(replies))}


def contract(sources: Sources, relied_on: dict[str, Any]) -> dict[str, Any]:
    """Everything relied on; raises SystemExit with all names that are missing."""
    missing: list[str] = []

    def take(read: Any, *arguments: Any) -> Any:
        try:
            return read(sources, *arguments)
        except Missing:
            missing.append(" ".join(map(str, arguments[-1:] if read is handler else arguments)))

    folder = relied_on.get("endpoints", {}).get("under", "")
    found = {
        "package": sources.name,
        "version": sources.version,
        "names": {place: take(declared, place) for place in relied_on["names"]},
        "reads": {
            f"{place} {variable}": take(reads, place, variable)
            for place, variables in relied_on.get("reads", {}).items()
            for variable in variables
        },
        "lists": {
            f"{place} {variable}": take(texts, place, variable)
            for place, variables in relied_on.get("lists", {}).items()
            for variable in variables
        },
        "endpoints": {
            path: take(handler, folder, path)
            for path in relied_on.get("endpoints", {}).get("paths", ())
        },
    }
    if missing:
        raise SystemExit(f"{sources.name} {sources.version} lacks: {', '.join(missing)}")
    return found


def relied_on(package: str) -> dict[str, Any]:
    """The names of a package in tests/contracts/relied_on.yaml (a CPU build's are the same)."""
    every = yaml.safe_load((CONTRACTS / "relied_on.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = every[package.removesuffix("-cpu")]
    return found


if __name__ == "__main__":
    for target in sys.argv[1:]:
        sources = Sources.of(target)
        written = contract(sources, relied_on(sources.name))
        file = CONTRACTS / f"{sources.name.removesuffix('-cpu')}-{sources.version}.json"
        file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {file.name}")
