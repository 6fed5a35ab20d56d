"""What recurrent models are made of.

sequences.py          packed documents as steps: the first token of each, then the second of each
  recurrent_layer.py      a cell over the steps, in one direction or both
    scan.py                   the steps and their gradients
document_attention.py from the states of one document to those of another (Bahdanau et al., 2015; Luong et al., 2015)
characters.py         tokens from their bytes: convolutions and highway layers (Kim et al., 2016)
state_cache.py        the states of the tokens so far, for generation
"""
