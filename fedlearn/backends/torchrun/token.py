"""The token of a group of ranks: the secret that says who may take part.

Ranks that a coordinator starts itself are told it in the first line of their standard input, never by an argument or
the environment, which other programs can read. Ranks that torchrun starts read it from a file, ``backend.token``, that
every host has; where all of them are on one host and none is named, rank 0 puts one into a folder that only its user
can look into, for as long as they meet.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ...errors import ConfigError

KEY = "backend.token"
LEAST, MOST = 16, 4096   # bytes
HOW = "`fedlearn token FILE` makes one; give every host the same file."
LOOPBACK = ("localhost", "127.", "::1")


def new_token() -> bytes:
    """Return a token that nobody can guess."""
    return secrets.token_bytes(32)


def write_token(path: str | Path) -> None:
    """Write a new token into a new file that only its owner can read.

    Raises:
        ConfigError: if there is such a file already, or it cannot be written.
    """
    try:
        _write(Path(path).expanduser(), new_token().hex().encode() + b"\n")
    except FileExistsError:
        raise ConfigError("token", str(path), "a file that does not exist yet",
                          "A run may use the token in it; remove it first to replace it.") from None
    except OSError as e:
        raise ConfigError("token", str(path), "a file that can be written", f"{e.strerror}.") from e


def read_token(path: str | Path) -> bytes:
    """Return the token in a file, without white space around it.

    Raises:
        ConfigError: if the file is missing or unreadable, or the token in it is empty, too short or too long.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            token = file.read(MOST + 1).strip()
            mode = os.fstat(file.fileno()).st_mode
    except (OSError, RuntimeError) as e:   # a RuntimeError: there is no such user
        why = getattr(e, "strerror", None) or e
        raise ConfigError(KEY, str(path), "a file with the same secret on every host", f"{why}; {HOW}") from e
    if not LEAST <= len(token) <= MOST:
        found = f"{len(token)} bytes" if token else "nothing"
        raise ConfigError(KEY, str(path), f"a file with a secret of {LEAST} to {MOST} bytes",
                          f"It holds {found}. {HOW}")
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        logging.getLogger("fedlearn").warning(f"{KEY}: other users of this machine can read or change {path}; "
                                              f"chmod 600 it")
    return token


def one_host(environ: Mapping[str, str]) -> bool:
    """Return whether all ranks of a launch are on this host, as far as its environment says."""
    world = environ.get("WORLD_SIZE")
    return environ.get("LOCAL_WORLD_SIZE") == world or environ.get("MASTER_ADDR", "").startswith(LOOPBACK)


def token_for(environ: Mapping[str, str], backend_token: str | None) -> bytes | None:
    """Return the token of a launch; nothing if rank 0 has yet to make it.

    At rank 0 of a launch on one host that names none it is a new one each time: ask once.

    Raises:
        ConfigError: if the file that is named is no good, none is named though there are several hosts, or the
            private folder is not private.
    """
    if backend_token:
        return read_token(backend_token)
    if not one_host(environ):
        raise ConfigError(KEY, backend_token, "the path of a file with the same secret on every host",
                          f"Ranks on several hosts must prove to each other that they belong together. {HOW}")
    folder = folder_for(environ)
    if environ["RANK"] != "0":
        if not folder.exists():
            return None
        _check_private(folder)
        with suppress(FileNotFoundError):
            return (folder / "token").read_bytes()
        return None
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _check_private(folder)
    token, path = new_token(), folder / f"new-{secrets.token_hex(8)}"
    _write(path, token)
    path.rename(folder / "token")
    return token


def folder_for(environ: Mapping[str, str]) -> Path:
    """Return where the ranks of a launch on one host find its token."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    launch = sha256("\0".join(environ.get(name, "") for name in names).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fedlearn-{os.geteuid()}-{launch}"


def forget_token(environ: Mapping[str, str], backend_token: str | None) -> None:
    """Remove at rank 0 what ``token_for`` made there; safe to call twice."""
    if not backend_token and environ["RANK"] == "0" and one_host(environ):
        shutil.rmtree(folder_for(environ), ignore_errors=True)


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(KEY, None, f"a file, or {folder} as a folder that is only this user's",
                          "That is somebody else's, or open to others, and was not trusted: remove it if you can, or "
                          "name a file with a secret (`fedlearn token FILE` makes one).")


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
