"""Strict records: frozen dataclasses that are checked when made, and saved as readable JSON."""

import hashlib
import json
import logging
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses

from rrlsam.errors import BadInputError
from rrlsam.system.files import atomic_write

T = TypeVar("T")
_log = logging.getLogger(__name__)
_CONFIG = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_SEAL = "sha256"
_FLAT_LIST = re.compile(r"\[\n\s*([^\[\]{}]*?)\n\s*\]")
"""A list over several lines without others inside; in JSON a string holds no line break."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass whose fields are type-checked on construction."""
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=_CONFIG)  # pyright: ignore[reportReturnType]


def to_json(value: object) -> str:
    """Indented JSON text of a record; lists of plain numbers stand on one line."""
    return _text(_plain(value))


def _plain(value: object) -> Any:
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")


def _text(plain: object) -> str:
    text = json.dumps(plain, indent=2, ensure_ascii=False)
    return _FLAT_LIST.sub(lambda m: "[" + re.sub(r"\s*\n\s*", " ", m.group(1)) + "]", text) + "\n"


def from_json(cls: type[T], text: str | bytes, *, source: str) -> T:
    """Read a record back; an unknown, missing or ill-typed key raises BadInputError naming it."""
    try:
        return pydantic.TypeAdapter(cls).validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInputError(f"{source}: {where}: {first['msg']}; mend the entry or delete the file") from error


def save_json(value: object, path: Path) -> None:
    """Write a record whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(value), encoding="utf-8")


def save_sealed(value: object, path: Path) -> None:
    """Write a record that nobody is to edit, with the SHA-256 of its JSON text as a first entry."""
    with atomic_write(path) as temporary:
        temporary.write_text(_text({_SEAL: _sum(value), **_plain(value)}), encoding="utf-8")


def load_sealed(cls: type[T], path: Path) -> T:
    """Read such a record back; BadInputError too if it is not what was written."""
    try:
        content = json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not valid JSON ({error}); delete the file") from error
    seal = content.pop(_SEAL, None) if isinstance(content, dict) else None
    value = from_json(cls, json.dumps(content), source=str(path))
    if seal != _sum(value):
        raise BadInputError(f"{path}: damaged or edited, its checksum does not fit; delete the file")
    return value


def _sum(value: object) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()


def load_json(cls: type[T], path: Path) -> T:
    """Read a record from a file."""
    return from_json(cls, read_whole(path), source=str(path))


def read_whole(path: Path) -> bytes:
    """A text file's bytes; BadInputError for what is none: a folder, or a pipe or device that may never end."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except PermissionError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error
    raise BadInputError(f"{path}: is not a regular file; replace it by a text file")


def load_or_none(cls: type[T], path: Path, load: Callable[[type[T], Path], T] = load_json) -> T | None:
    """A stored record, or None where there is none that can be read; it is then made anew."""
    try:
        return load(cls, path)
    except BadInputError as error:
        if path.exists():
            _log.warning("%s; made anew now, so nothing is to be done", error)
        return None
