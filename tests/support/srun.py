"""Stands in for SLURM's srun: starts TASKS processes of a command on this machine, with the variables of a step.

A signal that comes to it goes to all of them, as SLURM's goes to all tasks of a step; it ends with their highest exit
code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import dropwhile
from types import FrameType


def main() -> None:
    command = list(dropwhile(lambda word: word.startswith("--"), sys.argv[1:]))
    tasks, processes = int(os.environ["TASKS"]), list[subprocess.Popen[bytes]]()

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGUSR1, pass_on)
    for task in range(tasks):
        step = {"PROCID": task, "LOCALID": task, "NODEID": 0, "STEP_NUM_TASKS": tasks, "STEP_TASKS_PER_NODE": tasks}
        own = {f"SLURM_{name}": str(value) for name, value in step.items()} | {"SLURM_STEP_NODELIST": "127.0.0.1"}
        processes.append(subprocess.Popen(command, env={**os.environ, **own}))
    sys.exit(max(process.wait() for process in processes))


if __name__ == "__main__":
    main()
