"""Epochs that are logged as they begin and once a checkpoint holds them, in a command or in a worker of it.

python epochs.py LOG    a worker, as ``lrbench.running.worker`` is one
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import lrbench.running.worker as worker
import lrbench.training as training
from lrbench.store import run_id

PATIENCE = 2.0
"""Seconds within which a worker must end that has lost its command."""


def log_epochs(log: int) -> None:
    """Log those of this process; and that it goes on, where whoever started it has ended."""
    train_epoch, save, parent = training._train_epoch, training._save_checkpoint, os.getppid()

    def wanted() -> None:
        if os.getppid() != parent:
            time.sleep(PATIENCE)  # in which it is to be ended
            os.write(log, f"orphan {os.getpid()}\n".encode())

    def begin(*arguments: object) -> object:
        wanted()
        config, epoch = arguments[-2:]
        os.write(log, f"begun {run_id(config.to_json())}/{epoch}\n".encode())
        return train_epoch(*arguments)

    def saved(path: Path, config: object, trained: object, optimizer: object) -> None:
        wanted()
        save(path, config, trained, optimizer)
        os.write(log, f"safe {run_id(config.to_json())}/{len(trained.history)}\n".encode())

    training._train_epoch, training._save_checkpoint = begin, saved


def log_workers(file: Path) -> None:
    """Let each worker that this process starts log its epochs, and log the worker itself."""
    start = subprocess.Popen

    def popen(command: list[str], **options: object) -> "subprocess.Popen[str]":
        if command[-1] != worker.__name__:
            return start(command, **options)
        options["env"] = {**options["env"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = start([command[0], __file__, str(file)], **options)
        with file.open("a") as log:
            log.write(f"worker {process.pid}\n")
        return process

    subprocess.Popen = popen


if __name__ == "__main__":
    log_epochs(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND))
    worker.main()
