"""`bigtrain doctor`: is everything there that a run needs, before it is queued, or before its first step?

    the ranks meet            meeting.py: at the launcher's store, which works where collectives do not
      |
    one check after the other check.py: ranks measure within a bound, the leader gathers and judges
      |                       devices, agreement, host, shape, disks, services, clocks, network
    findings                  finding.py: ok, warning or failed; what was found, what was wanted, what to do
      |
    RUN/doctor.json           history.py: what was measured, the expectation of the next time

A check is an entry of `CHECKS` in examine.py. Whatever goes wrong in one is a failed check of that name: an exception,
a rank that does not answer, a disk that holds on to who touches it.
"""

from bigtrain.doctor.examine import CHECKS, Report, doctor

__all__ = ["CHECKS", "Report", "doctor"]
