"""The command `python -m ihc2he.dashboard ENTITY/PROJECT`: see `ihc2he.loggers.dashboard`."""

import sys

from ihc2he.loggers.dashboard import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
