"""`bigtrain doctor` on a rank that may be out of line: what is given after --odd holds for rank 1 alone.

worker.py ARGUMENTS... [--odd key=value ...]       as `bigtrain doctor ARGUMENTS`

host=NAME         it takes itself for another host, with a launcher of its own
clock=SECONDS     its clock is ahead
variable=NAME     an environment variable is set
code=ANYTHING     its source is another one
over=FOLDER       a file system of its own is mounted there
late=SECONDS      it comes so much later
silent=CHECK      it does not answer in a check
setting=KEY=VALUE an override
"""

import ctypes
import os
import socket
import subprocess
import sys
import time

from bigtrain.cli.main import main
from bigtrain.doctor import agreement, clocks, examine

CLONE_NEWNS = 0x00020000


def become_odd(name: str, value: str) -> None:
    if name == "host":
        socket.gethostname = lambda: value
        os.environ |= {"GROUP_RANK": "1", "LOCAL_RANK": "0"}
    elif name == "clock":
        clocks._now = lambda: time.time() + float(value)
    elif name == "variable":
        os.environ[value] = "odd"
    elif name == "code":
        agreement._code = lambda: value
    elif name == "over":
        assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", value], check=True)
    elif name == "late":
        time.sleep(float(value))
    elif name == "silent":
        check = examine.CHECKS[value]
        object.__setattr__(check, "measure", lambda _: time.sleep(600))
        examine.bounded = lambda work, seconds: work()
    elif name == "setting":
        sys.argv.append(value)
    else:
        raise ValueError(name)


arguments, _, odd = " ".join(sys.argv[1:]).partition(" --odd ")
sys.argv = ["bigtrain", "doctor", *arguments.split()]
if os.environ["RANK"] == "1":
    for each in odd.split():
        become_odd(*each.split("=", 1))
main()
