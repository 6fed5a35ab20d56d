"""One training run, from the settings to the last checkpoint.

::

    settings ─► setup ─► Run ─► loop ──► records   (metrics.jsonl, events.jsonl, the terminal)
                 │                │ ├──► tracking  (Weights & Biases)
                 │                │ ├──► evaluation
                 │                │ └──► checkpoints
    directory, data, model,       │
    engine, newest checkpoint     ├──► guard ──► rewind: back before a spike, its batches left out (decisions.jsonl)
                                  └──► stop: done (0) or stopped on request (75)

`loop` is the screen to read first. `trained` opens what a run left behind, for `eval`, `generate`, `export` and
`report`; `text_model` continues text with it.
"""
