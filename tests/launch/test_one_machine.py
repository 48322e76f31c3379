"""The launchers of one machine, run for real: the model is that of one process."""

from __future__ import annotations

import pytest


@pytest.mark.torchrun
@pytest.mark.slow
def test_local_starts_a_rank_on_every_core_that_it_is_given(launch, quick, alone, sha256):
    said = launch("local.sh", "--ranks", "2", *quick, "rounds=3")
    assert said.returncode == 0, said.stderr
    assert "2 ranks started by torchrun" in said.stderr and sha256(said.stdout) == [alone(*quick, "rounds=3")]


@pytest.mark.torchrun
@pytest.mark.slow
def test_torchrun_on_its_only_machine(launch, quick, alone, sha256, tmp_path):
    args = ["--host", "localhost:0", "--nodes", "1", "--ranks", "2", "--launch", "monday"]
    said = launch("torchrun.sh", *args, *quick, "rounds=3")
    assert said.returncode == 0, said.stderr
    assert sha256(said.stdout) == [alone(*quick, "rounds=3")]
    again = launch("torchrun.sh", *args, *quick, "rounds=3")    # the word names the run that there is
    assert again.returncode == 0 and sha256(again.stdout) == sha256(said.stdout)
    assert len(list(tmp_path.glob("runs/fedavg-digits/2*"))) == 1


@pytest.mark.parametrize(("this", "is_host", "address"), [("node1", "true", "node1"), ("node2", "false", "~node2")])
def test_torchrun_gives_the_coordinator_the_first_rank(launch, tmp_path, this, is_host, address):
    """A stub of Python shows what it is called with; `hostname` is one, too."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"hostname": f"#!/bin/sh\necho {this}\n",
                       "python": '#!/bin/sh\nfor word; do echo "$word"; done >>"$0.said"\n'
                                 'env | grep ^TORCH_DISABLE_SHARE >>"$0.said" || true\n'}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "secret").write_text("0" * 64)
    said = launch("torchrun.sh", "--host", "node1:29999", "--nodes", "2:4", "--token", "secret", "rounds=3",
                  PATH=f"{programs}:/usr/bin:/bin", PYTHON=str(programs / "python"))
    assert said.returncode == 0, said.stderr
    words = (programs / "python.said").read_text().splitlines()
    assert {"--nnodes=2:4", "--rdzv-endpoint=node1:29999", f"--local-addr={address}", "backend.token=secret",
            "rounds=3", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"} <= set(words)
    conf, = [word for word in words if word.startswith("--rdzv-conf=")]
    assert f"is_host={is_host}," in conf and "last_call_timeout=3,keep_alive_interval=2" in conf


@pytest.mark.ray
@pytest.mark.slow
def test_ray_on_a_laptop(launch, quick, alone, sha256):
    said = launch("ray_laptop.sh", "--actors", "2", *quick, "rounds=3", RAY_ADDRESS="127.0.0.1:1")
    assert said.returncode == 0, said.stderr
    assert "2 Ray actors on this machine" in said.stderr and sha256(said.stdout) == [alone(*quick, "rounds=3")]
