"""Cross-entropy from hidden states, a chunk of rows at a time, so that all logits are never in memory at once.

loss.py              linear_cross_entropy: hidden states, head, labels --> sum of losses
    loss_softmax.py      loss and gradient of a chunk; picks the kernel
    loss_kernel.py       the same as one Triton kernel
    shaping.py           scaling, soft cap and z-loss of the logits
"""
