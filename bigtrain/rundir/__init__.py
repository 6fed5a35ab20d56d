"""The files of a run directory. They can be read without PyTorch, on a login node, while the run is training.

directory       where each file is, and which job may write
json_lines      metrics.jsonl, events.jsonl, decisions.jsonl: whole lines are written, torn ones are skipped
decisions       which batches the run leaves out after a spike
starts          each start of the run: which, when, how it ended
ledger          where the time of the run went, over all starts
  counted_seconds  the training that counts
  start_clock      when this process was started
runs            all runs below a folder
provenance      which documents were in a step
plan_diff       from which step on two runs train on other data
data_card       what the run was trained on, as a document
"""
