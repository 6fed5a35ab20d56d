"""Training that is started to find something out; none of it changes the run.

replay          one step of a run again, exactly, with the loss of each document
profile         where the time and the memory of a step go
  trace           the costs in a trace of torch.profiler
verify_resume   kill a run, resume it, and compare
  trial           the runs that this starts
  resave          what their ranks do in another shape
"""

from bigtrain.trials.ladder import Budget, Executor, Here, LadderOptions, NotAtAll, OnSlurm, ladder, ladder_folder
from bigtrain.trials.profile import Profile, profile
from bigtrain.trials.replay import Replay, replay
from bigtrain.trials.resave import resave_and_train
from bigtrain.trials.trial import FOLDER, Launcher
from bigtrain.trials.verify_resume import ResumeTrial, verify_resume

__all__ = [
    "FOLDER",
    "Budget",
    "Executor",
    "Here",
    "LadderOptions",
    "Launcher",
    "NotAtAll",
    "OnSlurm",
    "Profile",
    "Replay",
    "ResumeTrial",
    "ladder",
    "ladder_folder",
    "profile",
    "replay",
    "resave_and_train",
    "verify_resume",
]
