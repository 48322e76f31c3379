"""A stand-in for Slurm on one machine: sbatch, srun and scontrol, by the name that it is called by.

It queues nothing. It gives a script the environment that Slurm gives it, runs its steps as so many processes with
Slurm's variables for each, hands SIGUSR1 on to them as srun does, and starts the script again when it has asked to be
requeued. What Slurm itself does with a signal, a dead node or a full queue is not shown.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

JOB, TASKS = "4242", 2
QUEUE = Path(os.environ["STUB_SLURM"])      # a folder: what happened, and who runs


def sbatch(script: str, *args: str) -> int:
    """Run a batch script until it no longer asks to be requeued."""
    environ = os.environ | {"SLURM_JOB_ID": JOB, "SLURM_SUBMIT_DIR": os.getcwd(), "SLURM_JOB_NODELIST": "node[1-2]",
                            "SLURM_NTASKS_PER_NODE": "1"}
    starts = 0
    while True:
        batch = subprocess.Popen(["bash", script, *args], env=environ | {"SLURM_RESTART_COUNT": str(starts)})
        (QUEUE / "batch").write_text(str(batch.pid))
        status = batch.wait()
        note(f"batch {starts} ended with {status}")
        if not (QUEUE / "requeue").exists():
            return status
        (QUEUE / "requeue").unlink()
        starts += 1


def srun(*args: str) -> int:
    """Run a command as tasks, and return the highest of their exit codes."""
    command = [arg for arg in args if not arg.startswith("--kill-on-bad-exit")]
    tasks = [subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0",
                                                         "SLURM_NTASKS": str(TASKS)}) for rank in range(TASKS)]
    (QUEUE / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
    codes = [task.wait() for task in tasks]
    note(f"tasks ended with {codes}")
    return max(128 - code if code < 0 else code for code in codes)


def scontrol(verb: str, *args: str) -> int:
    """Show the hosts of a list, here only this one, or note that a job is to be requeued."""
    if (verb, *args) == ("show", "hostnames", "node[1-2]"):
        print("127.0.0.1\n127.0.0.1")
        return 0
    assert (verb, *args) == ("requeue", JOB)
    (QUEUE / "requeue").touch()
    return 0


def note(what: str) -> None:
    """Add a line to what happened."""
    with (QUEUE / "said").open("a") as file:
        file.write(what + "\n")


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[Path(sys.argv[0]).name](*sys.argv[1:]))
