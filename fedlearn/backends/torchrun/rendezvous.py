"""Where a coordinator and the ranks that it starts meet: a store on loopback, and a name in it for every group.

Only they know its token: it is in the first line that a child is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from .store import connect, serve
from .token import new_token

LOOPBACK = "127.0.0.1"


class Rendezvous:
    """The coordinator's store; ``hello`` is what a child needs to reach it.

    Raises:
        ConfigError: if the port is taken.
    """

    def __init__(self, port: int, timeout: float) -> None:
        token = new_token()
        self.server = serve(token, LOOPBACK, port, timeout)
        self.hello = {"port": self.server.port, "token": token.hex(), "timeout": timeout}

    def close(self) -> None:
        """End the store; safe to call twice."""
        self.server.close()


def reach(hello: Mapping[str, Any]) -> Any:
    """Return a child's end of its coordinator's store."""
    return connect(bytes.fromhex(hello["token"]), LOOPBACK, hello["port"], hello["timeout"])


def part_for(store: Any, group: int) -> Any:
    """Return the part of a store in which the ranks of one group meet; every group has its own."""
    return dist.PrefixStore(f"group/{group}", store)
