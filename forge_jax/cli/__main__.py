"""`python -m forge_jax.cli`: the command line where no script is installed."""

import sys

from forge_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
