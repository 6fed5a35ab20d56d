"""The parts that a block of the decoder is made of, beside attention.

embedding.py     token ids --> vectors, and vectors --> loss or logits
positions.py     position embeddings: learned, sinusoidal, rotary (rotary.py), or a bias on scores (ALiBi, T5)
norm.py          RMSNorm and LayerNorm
feed_forward.py  the feed-forward layer; activations.py has its functions
experts.py       a mixture of experts instead; router.py chooses the experts of each token
dropout.py       what training drops, by the address of a row
float8.py        linear layers with 8-bit matrix products
"""
