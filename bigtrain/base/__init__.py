"""What every package may use. Nothing here imports another package of bigtrain, or PyTorch.

errors              BigtrainError, the error that a user is meant to read
exit_status         what each exit status means to a launcher
environment         environment variables, each value checked
launched_rank       which rank this process is, whatever started it
streams             standard streams that are closed, full, or of another encoding
launcher_protocol   the environment variables, files and signals between a launcher and its ranks
files               writes a file or a folder whole and durably
open_files          the limit of open files, of which each connection is one
disk_errors         an error about a file as a message; whether a folder can be written
locks               one writer at a time in a folder, also without flock
ranks               what the ranks of a job do together: one message for all, values to rank 0 and from it
rank_tree           the tree of ranks along which they do
records             reads JSON that another person or a later version may have written
home                a user without a name and without a home directory
labels              the label of a position that has none
deferred            names of a package that are imported when they are first asked for
faults              fault injection, for tests and rehearsals (BIGTRAIN_FAULT)
clock               clocks that processes of one machine share
file_names          names of files that were read from a manifest or a listing
safetensors_header  the header of a safetensors file
to_json             results of commands as JSON
format              numbers as a person writes them
version             the version of bigtrain
visible             shows control characters of text that may hold anything
"""

from bigtrain.base.clock import boot_id, boot_seconds, process_seconds, seconds_before_this_process
from bigtrain.base.deferred import deferred
from bigtrain.base.disk_errors import (
    broken_part,
    check_temporary_folder,
    check_writable,
    disk_error,
    explained,
    shows_tracebacks,
)
from bigtrain.base.environment import check_interfaces, machine_name, number_of, text_of, usable_seconds, warn_once
from bigtrain.base.errors import BigtrainError
from bigtrain.base.exit_status import CORRUPTED, CRASHED, DONE, FINAL, HUNG, STOPPED, USAGE, WRONG, describe, of_shell
from bigtrain.base.faults import FAULT, Fault, altered, check_faults, damage, reached
from bigtrain.base.file_names import bare_name
from bigtrain.base.files import (
    TEMPORARY_SUFFIX,
    commit_directory,
    commit_file,
    fsync_directory,
    naming,
    open_temporary,
    temporary_of,
    write_asked_for,
    write_atomically,
)
from bigtrain.base.format import duration, gibibytes, quantity
from bigtrain.base.home import has_home, known_user
from bigtrain.base.labels import BYTE_SYMBOLS, IGNORE_INDEX
from bigtrain.base.launched_rank import LaunchedRank, adopt_rank, launched_rank, store_address
from bigtrain.base.launcher_protocol import (
    DIED,
    LAUNCHER,
    PROGRESS,
    STOP_SIGNALS,
    STORE,
    WARNINGS,
    End,
    handle_stop_signals,
    has_trained,
    ignore_stop_signals,
    launcher_pid,
    mark_of,
    record_death,
    report_end,
    report_progress,
    report_step,
)
from bigtrain.base.locks import FileLock, LockHeldError, flock_if_supported
from bigtrain.base.open_files import open_files_wanted, raise_open_files, require_open_files
from bigtrain.base.rank_tree import Channel, RankTree
from bigtrain.base.ranks import (
    ALONE,
    Ranks,
    cause_of,
    collected,
    collectively,
    first_of,
    gather,
    on_every_rank,
    on_first_rank,
    raise_first,
)
from bigtrain.base.records import STRICT, as_entry, as_record, parse_json, read_json, read_regular
from bigtrain.base.safetensors_header import HeaderEntry, safetensors_header
from bigtrain.base.streams import in_utf8, keep_streams
from bigtrain.base.to_json import to_json
from bigtrain.base.version import __version__
from bigtrain.base.visible import show_controls

__all__ = [
    "ALONE",
    "BYTE_SYMBOLS",
    "CORRUPTED",
    "CRASHED",
    "DIED",
    "DONE",
    "FAULT",
    "FINAL",
    "HUNG",
    "IGNORE_INDEX",
    "LAUNCHER",
    "PROGRESS",
    "STOPPED",
    "STOP_SIGNALS",
    "STORE",
    "STRICT",
    "TEMPORARY_SUFFIX",
    "USAGE",
    "WARNINGS",
    "WRONG",
    "BigtrainError",
    "Channel",
    "End",
    "Fault",
    "FileLock",
    "HeaderEntry",
    "LaunchedRank",
    "LockHeldError",
    "RankTree",
    "Ranks",
    "__version__",
    "adopt_rank",
    "altered",
    "as_entry",
    "as_record",
    "bare_name",
    "boot_id",
    "boot_seconds",
    "broken_part",
    "cause_of",
    "check_faults",
    "check_interfaces",
    "check_temporary_folder",
    "check_writable",
    "collected",
    "collectively",
    "commit_directory",
    "commit_file",
    "damage",
    "deferred",
    "describe",
    "disk_error",
    "duration",
    "explained",
    "first_of",
    "flock_if_supported",
    "fsync_directory",
    "gather",
    "gibibytes",
    "handle_stop_signals",
    "has_home",
    "has_trained",
    "ignore_stop_signals",
    "in_utf8",
    "keep_streams",
    "known_user",
    "launched_rank",
    "launcher_pid",
    "machine_name",
    "mark_of",
    "naming",
    "number_of",
    "of_shell",
    "on_every_rank",
    "on_first_rank",
    "open_files_wanted",
    "open_temporary",
    "parse_json",
    "process_seconds",
    "quantity",
    "raise_first",
    "raise_open_files",
    "reached",
    "read_json",
    "read_regular",
    "record_death",
    "report_end",
    "report_progress",
    "report_step",
    "require_open_files",
    "safetensors_header",
    "seconds_before_this_process",
    "show_controls",
    "shows_tracebacks",
    "store_address",
    "temporary_of",
    "text_of",
    "to_json",
    "usable_seconds",
    "warn_once",
    "write_asked_for",
    "write_atomically",
]
