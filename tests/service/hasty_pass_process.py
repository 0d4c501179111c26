"""A process that trains a pass, and is sure sooner that a cluster is lost."""

from __future__ import annotations

import sys

from actstore.engines import cluster_watch
from trainer.passes import pass_process

if __name__ == "__main__":
    cluster_watch.LOOK_S, cluster_watch.LOST_S = 0.2, 2.0
    pass_process.REACH_WAIT_S = 0.5
    sys.exit(pass_process.main())
