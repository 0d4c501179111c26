"""Reads through a cache until it is told to stop: `python -m tests.cache.reading_process
FOLDER SIZE SEED`. Ends with 0 where all bytes were right.
"""

from __future__ import annotations

import random
import sys
import threading
import time

from actstore.cache.local_cache import LocalCache
from tests.cache.known_bytes import Reader

# More than fit into the cache of the tests, so that it is always full.
NUMBERS = 120
THREADS = 2


def main(folder: str, size: int, seed: int) -> None:
    """Read random numbers with some threads until standard input ends."""
    cache = LocalCache(folder, size)
    over = threading.Event()
    wrong: list[BaseException] = []

    def read(thread: int) -> None:
        rng = random.Random(1000 * seed + thread)
        reader = Reader(cache)
        try:
            while not over.is_set():
                # Some are wanted more often than others, as are the chunks of a window.
                most = rng.choice([10, NUMBERS])
                reader.read(rng.sample(range(most), rng.randrange(1, 6)))
                if rng.random() < 0.1:
                    time.sleep(rng.random() / 50)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=read, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdout.write("reading\n")
    sys.stdout.flush()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    cache.close()
    sys.exit(len(wrong))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
