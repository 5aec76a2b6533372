"""Makes the embedded policy that the package ships, from its recipe.

    python scripts/make_embedded_policy.py FOLDER

Another machine rounds otherwise and makes another policy of the same properties: what ships is made
once, and a test holds its bits (tests/model/test_embedded.py). Prints the hash of the weights and
what was proved of them.
"""

import argparse
import hashlib
from pathlib import Path

import torch

from bandpo.model.embedded import Recipe, build_tokenizer
from bandpo.model.warm_up import prove, warm_up


def main() -> None:
    """Writes model, configuration and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    model = warm_up(Recipe(), lambda step, proof: print(f"step {step}: {proof}", flush=True))
    tokenizer = build_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    print(f"{hashlib.sha256(weights).hexdigest()}  {folder}\n{prove(model, tokenizer)}")


if __name__ == "__main__":
    main()
