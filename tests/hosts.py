"""What tests on several hosts of this machine need: network namespaces."""

from __future__ import annotations

import pytest

from fedlearn.chaos.network import available

REASON = available()
needs_hosts = pytest.mark.skipif(bool(REASON), reason=f"no network namespaces: {REASON}")
