"""The pass takes the memory that it was given, whatever the dictionary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.explorer.explored import small_store

MEMORY = 48 << 20
# What a process has of its own: pages of mapped files may be dropped at any time.
CODE = """
import json, sys, threading, time
from pathlib import Path
import torch
import actstore
from actstore.machine.glibc_malloc import keep_freed_memory
from tests.benchmarks.explorer import random_sae_of
from trainer.explorer.gather_contexts import gather
torch.set_num_threads(1)

def own():
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('RssAnon'):
            return int(line.split()[1]) * 1024

store = actstore.open(sys.argv[1])
sae = random_sae_of(store, int(sys.argv[2]), 16)
folder = Path(sys.argv[3])
folder.mkdir()
# What libraries take when they are first used is not the pass's.
warm = folder.with_name(folder.name + "-warm")
warm.mkdir()
gather(random_sae_of(store, 64, 16), store, warm, max_rows=64)
before = own()
most = [before]
def watch():
    while True:
        most[0] = max(most[0], own())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
found = gather(sae, store, folder, memory=int(sys.argv[4]))
size = sum(path.stat().st_size for path in folder.iterdir())
print(json.dumps({"taken": most[0] - before, "files": size}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_whatever_the_dictionary(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    found = {}
    for n_latents in (4_096, 65_536):
        command = [sys.executable, "-c", CODE, store.url, str(n_latents)]
        command += [str(tmp_path / str(n_latents)), str(MEMORY)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[n_latents] = json.loads(done.stdout)
    # The files hold many times the memory, and grow with the dictionary; it does not.
    assert found[65_536]["files"] > 8 * MEMORY
    for one in found.values():
        assert one["taken"] < 1.5 * MEMORY, found
