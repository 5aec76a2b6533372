"""How far an evaluation is, on stderr."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class ProgressDisplay:
    """Problems done of each benchmark: bars on a terminal, a line per tenth in a log."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(stderr=True)
        self._shown, self._terminal = shown, self._console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=self._console)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Callable[[str, int, int], None]:
        if self._shown and self._terminal:
            self._bars.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        if self._shown and self._terminal:
            self._bars.stop()

    def _advance(self, benchmark: str, done: int, to_do: int) -> None:
        if not self._shown:
            return
        if self._terminal:
            if benchmark not in self._tasks:
                self._tasks[benchmark] = self._bars.add_task(benchmark, total=to_do)
            self._bars.update(self._tasks[benchmark], completed=done)
        elif done * 10 // to_do > (done - 1) * 10 // to_do:
            self._console.print(f"{benchmark}: {done} of {to_do} problems", highlight=False)
