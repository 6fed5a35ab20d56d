"""A ladder of small runs, which foretells a large one.

ladder        from one target to a law of loss, and back to the target, in this order:
  sizes       smaller models of the target
  design      which of them, and how many tokens for each, so that all of it fits the budget
    budget    operations or hours; two pilots measure how fast this machine is
  tuning      learning rate and batch size, on the smallest
    sweep     a grid, some seeds and a parabola
  rungs       the settings of each run, by rule
    runs      trains what is not trained yet, here or on Slurm
  findings    the law, what it says of the target, and how far it can be trusted

Nothing is remembered but the run directories: a ladder that is started again asks the same questions in the same order,
and what is answered already costs nothing. So an interrupted ladder, and one whose runs are an array of jobs on Slurm,
are the same program.
"""

from bigtrain.trials.ladder.budget import Budget
from bigtrain.trials.ladder.design import LadderOptions
from bigtrain.trials.ladder.ladder import ladder
from bigtrain.trials.ladder.rungs import folder_of as ladder_folder
from bigtrain.trials.ladder.runs import Executor, Here, NotAtAll, OnSlurm

__all__ = ["Budget", "Executor", "Here", "LadderOptions", "NotAtAll", "OnSlurm", "ladder", "ladder_folder"]
