"""`python -m bigtrain.cli.torchrun`: the launcher, under the name that scripts know."""

import sys

from bigtrain.base import BigtrainError, check_temporary_folder, show_controls


def main() -> int:
    """Start the launcher, whose libraries need a folder for temporary files when they are imported."""
    try:
        if warning := check_temporary_folder():
            print(show_controls(f"warning: {warning}"), file=sys.stderr)
    except BigtrainError as error:
        print(show_controls(f"error: {error}"), file=sys.stderr)
        return error.status
    from bigtrain.launcher.torchrun import main as launch

    return launch()


if __name__ == "__main__":
    sys.exit(main())
