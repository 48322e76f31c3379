"""A safetensors file and the JSON that describes it: no pickle, and no altered byte goes unnoticed.

The JSON holds size and SHA-256 of the tensor file, and is sealed by a SHA-256 of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from .errors import CheckpointError

FORMAT = 1
HIDDEN = ".writing-"


def write_pair(folder: Path, stem: str, tensors: Mapping[str, Tensor], meta: Any,
                more: dict[str, Any]) -> None:
    """Write the tensor file, then the sealed JSON that describes it; each synced, then renamed.

    Raises:
        OSError, SafetensorError: if they cannot be written.
    """
    path = folder / f"{stem}.safetensors"
    hidden = folder / f"{HIDDEN}{path.name}"
    safetensors.save_file(_owning(tensors), hidden)
    with hidden.open("rb") as file:
        size, sha256 = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    hidden.replace(path)
    about = {"name": path.name, "bytes": size, "sha256": sha256}
    body = {"format": FORMAT, **more, "file": about, "meta": meta}
    hidden = folder / f"{HIDDEN}{stem}.json"
    with hidden.open("wb") as file:
        file.write(_sealed(body))
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(folder / f"{stem}.json")


def read_pair(folder: Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description, every byte of both checked.

    Raises:
        CheckpointError: if a file is missing, cut short or altered.
    """
    description = describe(folder, stem)
    path, file = folder / f"{stem}.safetensors", description["file"]
    data = _bytes(path, file["bytes"])
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise CheckpointError(f"{path} was altered: its SHA-256 is not the one in {stem}.json")
    try:
        return safetensors.load(data), description
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error})") from error


def describe(folder: Path, stem: str) -> dict[str, Any]:
    """Return the sealed JSON of a pair, checked to the byte.

    Raises:
        CheckpointError: if it is missing, cut short or altered.
    """
    path = folder / f"{stem}.json"
    data = _bytes(path)
    try:
        body = json.loads(data)
        sealed = _sealed({key: value for key, value in body.items() if key != "seal"})
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not the JSON that was written ({len(data)} bytes: cut short or "
                              "altered)") from error
    if sealed != data:
        raise CheckpointError(f"{path} was altered: it does not match its seal")
    if body.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {body.get('format')}; this fedlearn reads {FORMAT}; use the "
                              "fedlearn that wrote it")
    file = body.get("file")
    if not (isinstance(body.get("meta"), dict) and isinstance(file, dict) and type(file.get("bytes")) is int
            and isinstance(file.get("sha256"), str)):
        raise CheckpointError(f"{path} says nothing of its tensor file or of what was saved; allowed: what fedlearn "
                              "writes")
    return body


def _sealed(body: dict[str, Any]) -> bytes:
    """Return the one JSON text of ``body``, with a SHA-256 over it as its last key."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    seal = hashlib.sha256(text.encode()).hexdigest()
    return f'{text[:-1]},"seal":"{seal}"}}\n'.encode()


def _bytes(path: Path, size: int | None = None) -> bytes:
    """Return what is in a file, which has to be one, of that size."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):     # to open something else might wait for ever
            raise CheckpointError(f"{path} is not a file")
        if size is not None and about.st_size != size:
            raise CheckpointError(f"{path} holds {about.st_size} of {size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} cannot be read ({about.st_size} bytes do not fit into memory)") from error


def _owning(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, none sharing memory with another (safetensors refuses)."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        where = t.untyped_storage().data_ptr()
        plain[name] = t.clone() if where in seen else t
        seen.add(where)
    return plain


def jsonable(value: Any, where: str) -> Any:
    """Return the value as JSON gives it back; NumPy and torch scalars become plain numbers."""
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where}: found the key {wrong[0]!r}; JSON takes text keys only")
        return {key: jsonable(child, f"{where}.{key}") for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(child, f"{where}.{i}") for i, child in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise ValueError(f"{where}: found {type(value).__name__}; a checkpoint's meta takes what JSON can hold")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
