"""`python -m eval VERB ...` is `autoresearch VERB ...`: demo, run, report, costs live here."""

import sys

from autoresearch import main

if __name__ == "__main__":
    sys.exit(main())
