"""What a run measures of itself, and where it sends that.

meter           seconds, tokens and model FLOP utilisation of each step
  peak_flops      what counts as 100% of a device
tracking        trackers: Weights & Biases
  wandb_thread    in a thread of its own, so that no outage stops a run
terminal        the log lines of rank 0
"""
