"""The next item made by a thread while the last one is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`make(item)` of each, in order, with the next one begun before the last is handed out.

    An error of `make` is raised where its item would be handed out.
    """
    with ThreadPoolExecutor(1, "bandpo-layout") as thread:
        begun: Future[Made] | None = None
        for item in items:
            following = thread.submit(make, item)
            if begun is not None:
                yield begun.result()
            begun = following
        if begun is not None:
            yield begun.result()
