"""Everything that is done with a trained model.

checkpoints.py      the checkpoints of a run: list, verify, compare, prune
trained.py          the model of a checkpoint, without the training engine
  evaluation.py       its validation loss
  ngram.py            baselines: unigram and n-gram models
text_model.py       a model that continues text, of a run or a folder
  text_stream.py      from tokens to text that can be shown
  samples.py          continuations of held-out documents
export.py, export_gguf.py, importing.py     Hugging Face and llama.cpp, checked against them
  model_card.py       the README.md of an exported model
"""
