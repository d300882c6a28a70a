"""The same work for many cases, in threads: SimpleITK, zlib and hashing let go of Python's lock."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, as_completed
from typing import TypeVar

from rrlsam.errors import SHOWN, BadInputError
from rrlsam.system.progress import Progress
from rrlsam.system.resources import usable_cores
from rrlsam.system.stopping import wait_for

T = TypeVar("T")
R = TypeVar("R")

PATIENCE_S = 5.0
"""How long a command that is stopped waits for what is being worked on: a large scan can take a minute."""


def for_each(
    work: Callable[[T], R], items: Mapping[str, T], description: str, *, workers: int | None, progress: Progress
) -> dict[str, R]:
    """Results by name, in the order of `items`. One bad case does not stop the others.

    Every BadInputError is kept until all are done and then raised as one; for the rest see `attempt_each`.
    """
    results, problems = attempt_each(work, items, description, workers=workers, progress=progress)
    if problems:
        raise BadInputError(_summary(problems, len(items)))
    return results


def attempt_each(
    work: Callable[[T], R], items: Mapping[str, T], description: str, *, workers: int | None, progress: Progress
) -> tuple[dict[str, R], dict[str, BadInputError]]:
    """Results and what was wrong with the other items, by name, each in the order of `items`.

    Any error but BadInputError ends the work once the items that are being worked on are done; Ctrl-C and SIGTERM wait
    for these a few seconds only and leave them to their threads. `workers` None: one a usable core.
    """
    results: dict[str, R] = {}
    problems: dict[str, BadInputError] = {}
    names: dict[Future[R], str] = {Future(): name for name in items}
    waiting = deque(zip(names, items.values(), strict=True))
    threads = [
        threading.Thread(target=_work_off, args=(waiting, work), daemon=True)
        for _ in range(min(workers or usable_cores(), len(items)))
    ]
    with progress(description, len(items)) as advance:
        try:
            for thread in threads:
                thread.start()
            for future in as_completed(names):
                try:
                    results[names[future]] = future.result()
                except BadInputError as error:
                    problems[names[future]] = error
                advance()
        except BaseException as error:
            waiting.clear()
            wait_for(threads, patience_s=None if isinstance(error, Exception) else PATIENCE_S)
            raise
    return _ordered(results, items), _ordered(problems, items)


def _work_off(waiting: deque[tuple[Future[R], T]], work: Callable[[T], R]) -> None:
    """Work on what waits until nothing does."""
    while True:
        try:
            future, item = waiting.popleft()
        except IndexError:
            return
        try:
            future.set_result(work(item))
        except BaseException as error:
            future.set_exception(error)


def _ordered(found: Mapping[str, R], items: Mapping[str, T]) -> dict[str, R]:
    return {name: found[name] for name in items if name in found}


def _summary(problems: Mapping[str, BadInputError], total: int) -> str:
    if len(problems) == 1:
        return str(next(iter(problems.values())))
    lines = [f"{len(problems)} of {total} cases failed:"]
    lines += [f"  {problems[name]}" for name in sorted(problems)[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    return "\n".join(lines)
