"""The folder of a run, as files: readable without PyTorch, on a login node, while the run is going on.

directory       which file is where, who owns the folder
json_lines      metrics.jsonl, events.jsonl, decisions.jsonl: written whole lines, read whatever was torn
decisions       what was decided about spikes: which batches the run leaves out
starts          each start of the run: which, when, how it ended
ledger          where the time went, over all starts
  counted_seconds  the training that counts
  start_clock      when this process was started
runs            all runs below a folder
provenance      which documents were in a step
plan_diff       what two runs, or two settings, do differently
data_card       the model card, of the data
"""
