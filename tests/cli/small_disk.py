"""Commands on a small tmpfs: `python -m tests.cli.small_disk DISK STEPS`, in a mount
namespace of its own.

STEPS: JSON, a list of (command line, size of the disk, whether it is a fresh one, where
its only folder is copied to). Prints the commands' exit codes and what they said on
standard error. The libraries are loaded once, and each command runs in a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

WORK = {  # what the commands load when they begin
    "actstore": (
        "tests.harvesting.killing",
        "transformer_lens",
        "transformers.models.auto.tokenization_auto",
    ),
    "trainer": ("trainer.training.train_group", "torch._dynamo"),
}


def command(line: list[str], err: int) -> int:
    """Run one command line in a fork; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70  # a traceback's; 1 is a message's
    try:
        os.dup2(err, 1)
        os.dup2(err, 2)
        sys.argv = line
        importlib.import_module(f"{line[0]}.cli").main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001 (the interpreter would print it, too)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(
    disk: str, steps: list[tuple[list[str], int, bool, str]]
) -> list[tuple[int, str]]:
    for name in {line[0] for line, *_ in steps}:
        for module in WORK[name]:
            importlib.import_module(module)
    done = []
    for line, size, fresh, copy in steps:
        if fresh and os.path.ismount(disk):
            subprocess.run(["umount", disk], check=True)
        how = f"{'' if fresh else 'remount,'}size={size}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", disk], check=True)
        with tempfile.TemporaryFile() as err:
            code = command(line, err.fileno())
            err.seek(0)
            done.append((code, err.read().decode()))
        for folder in Path(disk).iterdir():
            shutil.copytree(folder, copy, dirs_exist_ok=True)
    return done


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
