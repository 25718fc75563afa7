"""`python -m finetune` is `autoresearch finetune`; accelerate launches it on several GPUs."""

import sys

from finetune.train import run
from loop.errors import ending

if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
