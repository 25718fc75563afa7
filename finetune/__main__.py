"""`python -m finetune` is `autoresearch finetune`; accelerate launches it on several GPUs."""

import sys

from finetune.train import run
from loop.errors import AutoresearchError


def main() -> int:
    try:
        return run(sys.argv[1:])
    except AutoresearchError as error:
        print(f"autoresearch: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
