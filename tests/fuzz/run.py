"""`make fuzz`: 600 malformed inputs, and what becomes of each; see docs/robustness.md.

python tests/fuzz/run.py [--seed N] [--only TEXT] [--shell N] [--workers N] [--write-docs] [--work FOLDER]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"

from fuzzing.report import main

if __name__ == "__main__":
    main()
