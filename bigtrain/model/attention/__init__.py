"""Attention inside packed documents: causal, two-sided, or from one sequence to another.

attention.py              projections and rotation of queries and keys; calls one back-end
    attention_backends.py     which back-end, and the ones that PyTorch has
        flex_attention.py         CUDA: a kernel compiled for the rule (windows, sinks, biases, soft caps)
        cpu_attention.py          CPU with bfloat16 instructions: FlashAttention in C++
        blockwise_attention.py    any CPU, any type: FlashAttention in batched matrix products
relative_attention.py     the same with keys for distances, for one or two streams
    attention_rule.py         which tokens a token sees: the definition that all back-ends share
cache.py                  keys and values of earlier tokens, for generation
"""
