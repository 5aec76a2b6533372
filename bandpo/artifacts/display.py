"""A run on the console: lines that stay, and on a terminal a bar below them with the phase."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import (
    Console,
    ConsoleDimensions,
    ConsoleOptions,
    Group,
    RenderableType,
    RenderResult,
)
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from bandpo.redaction import RedactingFormatter, redact

LOG_WIDTH = 100
PATIENCE_S = 10
"""Phases that have lasted longer show for how long."""


class _Terminal(Console):
    """A console as wide as the terminal behind its own stream; rich asks stdin, stdout, stderr."""

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        try:
            found = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            return super().size
        if found.columns == 0 or "COLUMNS" in os.environ:
            return super().size
        return ConsoleDimensions(found.columns, found.lines)


class _Phase(ProgressColumn):
    """The phase, and the minutes and seconds that it has lasted."""

    def render(self, task: Task) -> Text:
        seconds = int(task.get_time() - task.fields["since"])
        lasted = f" {seconds // 60}:{seconds % 60:02}" if seconds > PATIENCE_S else ""
        return Text(f"{task.description}{lasted}", overflow="ellipsis", no_wrap=True)


class _Bar(Progress):
    """A bar that leaves room for the terminal's own ^C, which would wrap onto the next line."""

    def get_renderable(self) -> RenderableType:
        return Group(*map(_Short, self.get_renderables()))


@dataclass(frozen=True)
class _Short:
    renderable: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.renderable, options.update_width(options.max_width - 4))


class Display:
    """Lines of a run for its user, on the console and in a log; a context manager.

    On a terminal a bar with the step, the phase and the time that remains stays below the lines;
    elsewhere there are the same lines without it. Warnings of bandpo's logger are shown among
    them. On a rank that is not `active` there are only the warnings.
    """

    def __init__(
        self, stdout: TextIO, stderr: TextIO, log: TextIO | None = None, *, active: bool = True
    ) -> None:
        self._console = _Terminal(file=stdout)
        self._stderr, self._active = stderr, active
        self._log = None if log is None else Console(file=log, width=LOG_WIDTH, color_system=None)
        self._bar: Progress | None = None
        if active and self._console.is_terminal:
            flexible = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            self._bar = _Bar(
                TextColumn("[bold]{task.fields[counter]}"),
                BarColumn(bar_width=self._console.width // 6),
                _Phase(table_column=flexible),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                console=self._console,
                expand=True,
                transient=True,
                speed_estimate_period=float("inf"),  # a step may take minutes
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("starting", total=None, counter="", since=_now())

    def __enter__(self) -> Display:
        logger = logging.getLogger("bandpo")
        self._handlers, logger.handlers = logger.handlers, [_Warnings(self)]
        if self._bar is not None:
            self._bar.start()
            # A process that is killed leaves the terminal as it is at that moment.
            self._console.show_cursor(True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        logging.getLogger("bandpo").handlers = self._handlers

    def say(self, text: str, *, wrap: bool = True) -> None:
        """Prints text for the user; on a terminal its words are wrapped, unless it is to copy."""
        if self._active:
            text = redact(text)
            soft = not (wrap and self._console.is_terminal)
            self._console.print(text, highlight=False, markup=False, soft_wrap=soft)
            self._keep(text)

    def warn(self, text: str) -> None:
        """Prints a warning: to stderr, or above the bar where there is one."""
        if self._bar is not None:
            self._console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stderr, flush=True)
        self._keep(text)

    def print(self, renderable: Any) -> None:
        """Prints a table, or anything else that rich can show."""
        if self._active:
            self._console.print(renderable)
            if self._log is not None:
                self._log.print(renderable)

    def entries(self, head: str, entries: Sequence[str]) -> None:
        """Prints one line of entries; a terminal that is too narrow folds it between two of them.

        The entries below the first are indented by the width of the head.
        """
        line = "  ".join([head, *entries])
        if not self._console.is_terminal or len(line) <= self._console.width:
            self.say(line, wrap=False)
            return
        rows = [head]
        for entry in entries:
            if len(rows[-1]) + 2 + len(entry) > self._console.width:
                rows.append(" " * len(head))
            rows[-1] += f"  {entry}"
        self._console.print(redact("\n".join(rows)), highlight=False, markup=False, soft_wrap=True)
        self._keep(redact(line))

    def _keep(self, text: str) -> None:
        if self._log is not None:
            self._log.print(text, highlight=False, markup=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """Names what the run does now."""
        if self._bar is not None:
            self._bar.update(self._task, description=name, since=_now(), refresh=True)

    def progress(self, name: str) -> None:
        """Names how far the phase is."""
        if self._bar is not None:
            self._bar.update(self._task, description=name, refresh=True)

    def step(self, step: int, steps: int, done: int) -> None:
        """Counts the step that begins, of so many; `done` are finished."""
        if self._bar is not None:
            counter = f"step {counted(step, steps)}"
            self._bar.update(self._task, counter=counter, total=steps, completed=done)


class _Warnings(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display
        self.setFormatter(RedactingFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self._display.warn(self.format(record))


def counted(step: int, steps: int) -> str:
    """`  3/120`: as wide for every step."""
    return f"{step:>{len(str(steps))}}/{steps}"


def _now() -> float:
    return time.monotonic()
