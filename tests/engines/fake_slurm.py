"""Slurm's commands, as far as submitit and we use them, on this machine.

`install` puts them into a folder that goes on PATH. A job is a bash script in a process
group of its own; what is known of it lies in a file. `srun` becomes the work's process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")


def install(folder: Path) -> Path:
    """Write the commands; returns the folder for PATH."""
    programs = folder / "programs"
    programs.mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in COMMANDS:
        path = programs / name
        path.write_text(
            f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"import fake_slurm\nfake_slurm.main({name!r}, {str(folder)!r}, sys.argv[1:])\n"
        )
        path.chmod(0o755)
    return programs


def end_all(folder: Path) -> None:
    """End the jobs that are left."""
    for path in folder.glob("*.pid"):
        try:
            os.kill(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def main(name: str, folder: str, words: list[str]) -> None:
    globals()[name](Path(folder), words)


def sbatch(folder: Path, words: list[str]) -> None:
    script = Path(words[-1]).read_text()
    (folder / "script").write_text(script)
    if (folder / "refuses").exists():
        sys.exit("sbatch: error: invalid partition specified: nosuch")
    number = 100 + len(list((folder / "jobs").iterdir()))
    array = re.search(r"--array=0-(\d+)%", script)
    name = re.search(r"--job-name=(\S+)", script)[1]
    ids = [str(number)]
    if array:
        ids = [f"{number}_{i}" for i in range(int(array[1]) + 1)]
    for job in ids:
        state = {"name": name, "script": str(folder / f"{number}.sh"), "queued": True}
        write(folder, job, state)
        (folder / f"{number}.sh").write_text(script)
        subprocess.Popen(
            [sys.executable, "-S", __file__, str(folder), job],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    print(f"Submitted batch job {number}")


def write(folder: Path, job: str, state: dict[str, object]) -> None:
    path = folder / "jobs" / job
    temporary = folder / f"{job}.{os.getpid()}"
    temporary.write_text(json.dumps(state))
    temporary.replace(path)


def run(folder: Path, job: str) -> None:
    """A job, from the queue to its end; as often as it is put there again."""
    state = json.loads((folder / "jobs" / job).read_text())
    number, _, index = job.partition("_")
    environment = {**os.environ, "SLURM_JOB_ID": number, "FAKE_JOB": job}
    if index:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
    restarts = 0
    while True:
        requeued = folder / f"{job}.requeue"
        requeued.unlink(missing_ok=True)
        environment["SLURM_RESTART_COUNT"] = str(restarts)
        process = subprocess.Popen(["bash", state["script"]], env=environment)
        process.wait()
        if not requeued.exists():
            break
        restarts += 1
    write(folder, job, {**state, "queued": False, "restarts": restarts})


def srun(folder: Path, words: list[str]) -> None:
    options = [word for word in words if word.startswith("--")]
    output = Path(words[words.index("--output") + 1])
    command = words[words.index(sys.executable) :]
    assert "--unbuffered" in options
    job = os.environ["FAKE_JOB"]
    number, _, index = job.partition("_")
    name = str(output).replace("%A", number).replace("%a", index)
    name = name.replace("%j", job).replace("%t", "0")
    log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (folder / f"{job}.pid").write_text(str(os.getpid()))
    os.execv(command[0], command)


def squeue(folder: Path, words: list[str]) -> None:
    name = words[words.index("--name") + 1]
    assert "--array" in words
    for path in sorted((folder / "jobs").iterdir()):
        state = json.loads(path.read_text())
        if state["queued"] and state["name"] == name:
            print(path.name)


def scontrol(folder: Path, words: list[str]) -> None:
    assert words[0] == "requeue"
    (folder / f"{words[1]}.requeue").touch()


def scancel(folder: Path, words: list[str]) -> None:
    for word in words:
        for path in folder.glob(f"{word}*.pid"):
            os.kill(int(path.read_text()), signal.SIGTERM)


def works(folder: Path, job: str) -> int:
    """Wait until the process of a job's work is there; returns its number."""
    path = folder / f"{job}.pid"
    while not path.exists() or not path.read_text():
        time.sleep(0.05)
    return int(path.read_text())


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
