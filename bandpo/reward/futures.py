"""Futures that follow from other futures, without a thread waiting for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def resolved(value: A) -> Future[A]:
    """A future that is done."""
    future: Future[A] = Future()
    future.set_result(value)
    return future


def then(future: Future[A], function: Callable[[A], B]) -> Future[B]:
    """The future of `function(result)`; failures of either are passed on."""
    following: Future[B] = Future()

    def finish(done: Future[A]) -> None:
        try:
            following.set_result(function(done.result()))
        except BaseException as error:  # cancellation included: a waiting caller must get it
            following.set_exception(error)

    future.add_done_callback(finish)
    return following


def otherwise(future: Future[A], explain: Callable[[BaseException], BaseException]) -> Future[A]:
    """The same future, except that `explain` replaces its exception, if any."""

    def explained(error: BaseException) -> BaseException:
        try:
            other = explain(error)
        except Exception as failure:  # else whoever waits for it would forever
            other = failure
        if other is not error:
            other.__cause__ = error
        return other

    following: Future[A] = Future()

    def finish(done: Future[A]) -> None:
        try:
            following.set_result(done.result())
        except BaseException as error:
            following.set_exception(error if done.cancelled() else explained(error))

    future.add_done_callback(finish)
    return following


def gather(futures: Sequence[Future[A]]) -> Future[list[A]]:
    """The future of all results, in order; the first failure is passed on when all are done."""
    if not futures:
        return resolved([])
    everything: Future[None] = Future()
    lock, left = threading.Lock(), len(futures)

    def count(_: Future[A]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            everything.set_result(None)

    for future in futures:
        future.add_done_callback(count)
    return then(everything, lambda _: [future.result() for future in futures])
