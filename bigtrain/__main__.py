"""``python -m bigtrain`` is the same program as ``bigtrain``."""

from bigtrain.cli.main import main

if __name__ == "__main__":
    main()
