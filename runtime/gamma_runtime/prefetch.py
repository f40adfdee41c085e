"""The next images are made ready while the graph runs: in order, a bounded number, by threads that end with it."""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

from gamma_runtime.errors import EnvironmentFault, UsageError

__all__ = ["THREAD_NAME", "chunked", "prefetched"]

THREAD_NAME = "gamma-decode"
T = TypeVar("T")
R = TypeVar("R")


def prefetched(
    work: Callable[[T], R], items: Iterator[T], threads: int, ahead: int
) -> Generator[tuple[T, R], None, None]:
    """Each item with ``work(item)``, in order, the next ones being worked on by threads.

    The items are taken by the caller's own thread, never more than ``ahead`` before they are asked for. What ``work``
    or ``items`` raises comes after everything before it. Closing the iterator, or an exception where it is used,
    cancels what was not begun and waits for the rest; no thread stays.

    Args:
        work: called in the threads; with ``threads=0`` by the caller, one item at a time.
        items: may be slow or endless.
        threads: how many.
        ahead: items that are taken before they are asked for.

    Raises:
        UsageError: used in a forked child of the process that began it. EnvironmentFault: no thread could be started.
    """
    if threads == 0:
        for item in items:
            yield item, work(item)
        return
    owner = os.getpid()
    pool = concurrent.futures.ThreadPoolExecutor(threads, THREAD_NAME)
    pending: collections.deque[tuple[T, concurrent.futures.Future[R]]] = collections.deque()
    end: Exception | None = None
    try:
        while True:
            while end is None and len(pending) <= ahead:
                try:
                    item = next(items)
                except Exception as error:  # also StopIteration; raised when all before it was handed out
                    end = error
                else:
                    pending.append((item, _submit(pool, work, item)))
            if not pending:
                break
            item, future = pending.popleft()
            yield item, future.result()
            if os.getpid() != owner:
                raise UsageError("images began to be scored before a fork", hint="call score_many in the child itself")
    finally:
        if os.getpid() == owner:  # a forked child has none of the threads
            pool.shutdown(wait=True, cancel_futures=True)
    if end is not None and not isinstance(end, StopIteration):
        raise end


def _submit(pool: concurrent.futures.Executor, work: Callable[[T], R], item: T) -> concurrent.futures.Future[R]:
    try:
        return pool.submit(work, item)
    except RuntimeError as error:
        hint = "too little memory, or a limit of processes; --decode-threads 0 needs no thread"
        raise EnvironmentFault(f"no thread for decoding ({error})", hint=hint) from error


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter; what ``items`` raises comes after a list of what was before it."""
    chunk: list[T] = []
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
