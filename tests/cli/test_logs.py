"""What each rank writes into RUN/logs, and where."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigtrain.observe.terminal import LOGGER, log_to
from bigtrain.rundir.directory import RunDirectory


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    for handler in LOGGER.handlers:
        handler.close()
    LOGGER.handlers.clear()
    LOGGER.propagate = True


def written(tmp_path: Path, rank: int, local_rank: int) -> str | None:
    """What is in the log of a rank after a line of information and a warning; None where there is no file."""
    file = RunDirectory(tmp_path).rank_log(rank)
    log_to(rank, file, local_rank=local_rank)
    logging.getLogger("bigtrain.test").info("a step")
    existed = file.exists()
    logging.getLogger("bigtrain.test").warning("a problem")
    return file.read_text() if existed else None


def test_only_the_first_rank_of_a_machine_writes_what_all_would_say(tmp_path):
    first, other_machine = written(tmp_path, 0, 0), written(tmp_path, 8, 0)
    assert first and other_machine and "a step" in first and "a step" in other_machine
    assert written(tmp_path, 9, 1) is None, "no file before there is a warning"
    text = (tmp_path / "logs" / "rank-00009.log").read_text()
    assert "a problem" in text and "a step" not in text


def test_a_folder_has_the_files_of_256_ranks_at_most(tmp_path):
    directory = RunDirectory(tmp_path)
    folders = [directory.rank_log(rank).parent for rank in range(16_384)]
    assert len(set(folders)) == 64 and max(map(folders.count, set(folders))) == 256
    assert directory.rank_log(255) == tmp_path / "logs" / "rank-00255.log"
    assert directory.rank_log(16_383) == tmp_path / "logs" / "ranks-16128" / "rank-16383.log"
    written(tmp_path, 300, 0)
    assert (tmp_path / "logs" / "ranks-00256" / "rank-00300.log").is_file()


def test_a_disk_that_fails_costs_lines_of_the_log_and_not_the_run(tmp_path, capsys):
    (tmp_path / "logs").write_text("a file where the folder should be")
    log_to(5, RunDirectory(tmp_path).rank_log(5), local_rank=1)
    logging.getLogger("bigtrain.test").warning("a problem")
    with pytest.raises(OSError):
        log_to(0, RunDirectory(tmp_path).rank_log(0))
