"""Downloading a gzipped file whose contents are known by their checksum."""

from __future__ import annotations

import gzip
import hashlib
import io
import tempfile
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from ..errors import DataError

TIMEOUT = 60  # seconds without a byte


def download_gzip(url: str, target: Path, sha256: str, most: int) -> None:
    """Download ``url`` to ``target``, whole or not at all.

    ``sha256`` is the checksum of the *unpacked* content (the same data is packed differently from
    place to place), ``most`` the largest size in bytes that it may have, packed or unpacked.

    Raises:
        DataError: if the address does not answer, or sends something else.
    """
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            packed = answer.read(most + 1)
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(most + 1)
    except (OSError, EOFError, HTTPException, ValueError, zlib.error) as error:
        raise DataError(f"download of {url} failed: {error}; allowed: an address that answers with the "
                        "gzipped file; try again, name a mirror, or put the files into a folder "
                        "yourself.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"download of {url}: found content with SHA-256 {found}; allowed: {sha256}; nothing "
                        "was kept; name a mirror, or put the files into a folder yourself.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as part:
        part.write(packed)
    Path(part.name).chmod(0o644)
    Path(part.name).replace(target)
