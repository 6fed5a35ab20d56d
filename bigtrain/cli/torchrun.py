"""`python -m bigtrain.cli.torchrun`: the launcher, under the name that scripts know."""

import sys

from bigtrain.launcher.torchrun import main

if __name__ == "__main__":
    sys.exit(main())
