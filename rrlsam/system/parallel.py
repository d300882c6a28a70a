"""The same work for many cases, in threads: SimpleITK, zlib and hashing let go of Python's lock."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from rrlsam.errors import BadInputError
from rrlsam.system.progress import Progress
from rrlsam.system.resources import usable_cores

T = TypeVar("T")
R = TypeVar("R")

_SHOWN = 10


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

    Any error but BadInputError ends the work at once. `workers` None: one a usable core.
    """
    results: dict[str, R] = {}
    problems: dict[str, BadInputError] = {}
    with (
        ThreadPoolExecutor(max_workers=workers or usable_cores()) as pool,
        progress(description, len(items)) as advance,
    ):
        names = {pool.submit(work, item): name for name, item in items.items()}
        try:
            for future in as_completed(names):
                try:
                    results[names[future]] = future.result()
                except BadInputError as error:
                    problems[names[future]] = error
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _ordered(results, items), _ordered(problems, items)


def _ordered(found: Mapping[str, R], items: Mapping[str, T]) -> dict[str, R]:
    return {name: found[name] for name in items if name in found}


def _summary(problems: Mapping[str, BadInputError], total: int) -> str:
    if len(problems) == 1:
        return str(next(iter(problems.values())))
    lines = [f"{len(problems)} of {total} cases failed:"]
    lines += [f"  {problems[name]}" for name in sorted(problems)[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return "\n".join(lines)
