"""The speed of a run, and where its metrics and log lines go.

meter           seconds, tokens and model FLOP utilisation (MFU) of each step
  peak_flops      the FLOP/s that count as 100%
tracking        the tracker: Weights & Biases
  wandb_thread    its thread, so that no outage stops a run
terminal        the log, in a file for each rank and on the terminal of rank 0
"""
