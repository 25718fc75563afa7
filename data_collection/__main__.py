"""`python -m data_collection` is `autoresearch collect`."""

import sys

from data_collection.collect import run
from loop.errors import AutoresearchError


def main() -> int:
    try:
        return run(sys.argv[1:])
    except AutoresearchError as error:
        print(f"autoresearch: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
