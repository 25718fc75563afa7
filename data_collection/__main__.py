"""`python -m data_collection` is `autoresearch collect`."""

import sys

from data_collection.collect import run
from loop.errors import ending

if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
