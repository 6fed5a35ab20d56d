"""The order of the training samples, in closed form: no sample is looked up, listed or stored.

    sample g --skips--> draw --mixture (quotas)--> source, number --shuffle (permutation)--> epoch, sequence

plan.py         the whole way, forwards and backwards, and the identity of a plan
skips.py        ranges of draws that no sample uses
mixture.py      which source a draw is from, by weights that change at typed points or when a source runs out
quotas.py       exact shares of a mixture in integers
shuffle.py      the order of a source's sequences in an epoch, over all of it or over a window of blocks
permutation.py  a keyed permutation of range(n), computed point by point
"""
