"""`bigtrain doctor` where rank 1 differs from the others in what is given after --outlier.

worker.py ARGUMENTS... [--outlier key=value ...]       as `bigtrain doctor ARGUMENTS`

host=NAME         it has another host name, and a launcher of its own
clock=SECONDS     its clock is ahead by this
variable=NAME     it has this environment variable
code=ANYTHING     its source of bigtrain has this hash
over=FOLDER       it has a file system of its own mounted there
late=SECONDS      it comes this much later
silent=CHECK      it does not answer in this check
setting=KEY=VALUE it has this override
"""

import ctypes
import os
import socket
import subprocess
import sys
import time

from bigtrain.cli.main import main
from bigtrain.doctor import agreement, checks, clocks, examine

CLONE_NEWNS = 0x00020000


def become_outlier(name: str, value: str) -> None:
    if name == "host":
        socket.gethostname = lambda: value
        os.environ |= {"GROUP_RANK": "1", "LOCAL_RANK": "0"}
    elif name == "clock":
        clocks._now = lambda: time.time() + float(value)
    elif name == "variable":
        os.environ[value] = "unusual"
    elif name == "code":
        agreement._code = lambda: value
    elif name == "over":
        assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", value], check=True)
    elif name == "late":
        time.sleep(float(value))
    elif name == "silent":
        check = checks.CHECKS[value]
        object.__setattr__(check, "measure", lambda _: time.sleep(600))
        examine.bounded = lambda work, seconds: work()
    elif name == "setting":
        sys.argv.append(value)
    else:
        raise ValueError(name)


arguments, _, changes = " ".join(sys.argv[1:]).partition(" --outlier ")
sys.argv = ["bigtrain", "doctor", *arguments.split()]
if os.environ["RANK"] == "1":
    for each in changes.split():
        become_outlier(*each.split("=", 1))
main()
