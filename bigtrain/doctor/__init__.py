"""`bigtrain doctor`, the preflight: does a run have what it needs, before it is queued or before its first step?

    the ranks meet            meeting.py: through the launcher's store, which works even where collectives do not
      |
    one check after another   check.py: the ranks measure within a time limit; the leader gathers and assesses
      |                       devices, agreement, host, shape, disks, services, clocks, network
    findings                  finding.py: ok, warning or failed; what was found, what is wanted, how to fix it
      |
    RUN/doctor.json           history.py: what was measured, which the next preflight expects

A check is an entry of `CHECKS` in checks.py; those of fast_checks.py need no PyTorch and no other process. Whatever
goes wrong in a check is a failed check of that name: an exception, a rank that does not answer, a disk that blocks the
process which uses it.
"""

from bigtrain.doctor.examine import DoctorReport, doctor, fast_doctor

__all__ = ["DoctorReport", "doctor", "fast_doctor"]
