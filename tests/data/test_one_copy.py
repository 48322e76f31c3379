"""Processes that opened the same saved store share its pages: one copy in memory, as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlearn.data.store import FILES, ClientStore

WORKERS, CLIENTS, FEATURES = 3, 64, 65_536
READ_ALL = """
import sys
from fedlearn.data.store import ClientStore
store = ClientStore.open(sys.argv[1])
print(sum(float(x.sum() + y.sum()) for x, y in map(store.client, range(len(store)))), flush=True)
sys.stdin.readline()    # keep it until everybody has been measured
"""


def mapped(pid: int, file: Path) -> tuple[int, int]:
    """Return (PSS, RSS) in bytes of a process's mappings of a file: PSS counts a page shared by n as 1/n of it."""
    pss = rss = 0
    here = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        word, *rest = line.split()
        if not word.endswith(":"):    # the head of a mapping, which ends with the path
            here = line.endswith(str(file))
        elif here and word == "Pss:":
            pss += 1024 * int(rest[0])
        elif here and word == "Rss:":
            rss += 1024 * int(rest[0])
    return pss, rss


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/PID/smaps, which only Linux has")
@pytest.mark.slow
def test_workers_that_read_all_of_a_store_hold_one_copy_of_it_together(tmp_path):
    folder = tmp_path.resolve()
    x = torch.arange(CLIENTS * FEATURES, dtype=torch.float32).reshape(CLIENTS, FEATURES) % 7    # 16 MiB
    ClientStore(x, torch.arange(CLIENTS), np.arange(CLIENTS + 1)).save(folder)
    file = folder / FILES[0]
    size = file.stat().st_size
    workers = [subprocess.Popen([sys.executable, "-c", READ_ALL, str(folder)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)]
    try:
        total = float(x.sum() + torch.arange(CLIENTS).sum())
        assert [float(w.stdout.readline()) for w in workers] == [total] * WORKERS
        pss, rss = np.sum([mapped(w.pid, file) for w in workers], axis=0)
    finally:
        for w in workers:
            w.communicate("\n", timeout=60)
    assert rss >= WORKERS * 0.99 * size    # everybody has all of it,
    assert pss <= 1.01 * size              # and together they have it once
