"""The folder that an export or import makes: it appears whole, in place of an earlier one, or not at all."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bigtrain.base import BigtrainError, commit_directory


@contextmanager
def out_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`, which takes its place when the block ends, and is removed if it fails.

    Args:
        out: what `refuse_foreign_folder` has allowed.

    Raises:
        OSError: the folder cannot be made.
    """
    partial = out.with_name(f".{out.name}.partial")
    new_parents = [parent for parent in out.absolute().parents if not parent.exists()]
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        earlier = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.replaced")
        if out.exists():
            out.rename(earlier)
        try:
            commit_directory(partial, out)
        except OSError:
            if earlier.exists() and not out.exists():
                earlier.rename(out)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        if error.filename is not None and Path(error.filename) == partial:
            error.filename, error.filename2 = str(out), None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # one that holds something, as after a success, and those around it stay
            for parent in new_parents:
                parent.rmdir()


def refuse_foreign_folder(out: Path, is_ours: Callable[[Path], bool], names: re.Pattern[str], verb: str) -> None:
    """Refuse a folder that holds anything but an earlier result.

    Args:
        out: the folder to make.
        is_ours: whether a folder with files in it is an earlier result.
        names: of the files that such a result has.
        verb: what makes it: `export`.

    Raises:
        BigtrainError: `out` is a link or the working directory, or holds something else.
    """
    if out.is_symlink():
        raise BigtrainError(
            f"{out} is a symbolic link; nothing was written",
            found=f"a link to {out.readlink()}",
            wanted="a new name, or the folder of an earlier " + verb,
            fix="give the folder that it points to, or another name",
        )
    here = Path.cwd()
    if (full := out.resolve()) == here or full in here.parents:
        raise BigtrainError(
            f"{out} is the working directory, or a folder around it; nothing was written",
            found=str(full),
            wanted="a folder that can be replaced as a whole",
            fix="give a new folder, for example model",
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not is_ours(out):
        raise BigtrainError(
            f"{out} holds something that bigtrain did not {verb}; nothing was overwritten",
            fix="choose another folder, or empty this one",
        )
    if others := sorted(path.name for path in out.iterdir() if not path.is_file() or not names.fullmatch(path.name)):
        raise BigtrainError(
            f"{out} holds files beside an earlier {verb}; nothing was overwritten",
            found=", ".join(others[:10]) + (", ..." if len(others) > 10 else ""),
            wanted=f"only what the {verb} wrote",
            fix="move these files away, or choose another folder",
        )
