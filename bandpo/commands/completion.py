"""`bandpo --install-completion` and `--show-completion`: command lines completed at TAB."""

from __future__ import annotations

from collections.abc import Sequence

from bandpo.completion.installation import install, named_shell, shell_in_use
from bandpo.completion.shells import script


def install_main(argv: Sequence[str]) -> int:
    """`bandpo --install-completion [bash|zsh|fish]`: writes its script."""
    print(install(named_shell(argv) or shell_in_use()))
    return 0


def show_main(argv: Sequence[str]) -> int:
    """`bandpo --show-completion [bash|zsh|fish]`: prints the script."""
    print(script(named_shell(argv) or shell_in_use()), end="")
    return 0
