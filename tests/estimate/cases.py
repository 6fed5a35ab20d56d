"""Workloads and layouts of the tests of the planner's arithmetic."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bigtrain.estimate import Layout, StateBytes, Workload, transformer

ADAM = StateBytes(weights=2, gradients=2, master=4, moments=8)
"""ZeRO's 16 bytes of a parameter (Rajbhandari et al., 2020)."""


def llama_8b(**changes: Any) -> Workload:
    """Llama 3.1 8B."""
    sizes: dict[str, Any] = {
        "layers": 32,
        "hidden": 4096,
        "heads": 32,
        "key_value_heads": 8,
        "feed_forward": 14336,
        "vocabulary": 128256,
        "sequence_length": 8192,
        "states": ADAM,
    }
    return transformer(**sizes | changes)


def gpt(layers: int, hidden: int, heads: int, length: int, vocabulary: int = 51200, **changes: Any) -> Workload:
    """A GPT with dropout as Megatron-LM trains it: biases, LayerNorm, attention that writes its scores to memory."""
    choices: dict[str, Any] = {
        "states": ADAM,
        "gated": False,
        "biases": True,
        "tied": True,
        "positions": length,
        "rms_norms": False,
        "rotary": False,
        "dropout": True,
        "attention_kernel": "fused_softmax",
        "elementwise": "fused",
    }
    return transformer(
        layers=layers,
        hidden=hidden,
        heads=heads,
        feed_forward=4 * hidden,
        vocabulary=vocabulary,
        sequence_length=length,
        **choices | changes,
    )


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Layouts of every kind, of up to some thousands of devices."""
    data = draw(st.sampled_from([1, 2, 8, 64]))
    context = draw(st.sampled_from([1, 2]))
    return Layout(
        data=data,
        tensor=draw(st.sampled_from([1, 2, 8])),
        context=context,
        pipeline=draw(st.sampled_from([1, 2, 4])),
        virtual_stages=draw(st.sampled_from([1, 2])),
        tensor_shares_tokens=draw(st.booleans()),
        zero_stage=draw(st.integers(0, 3)),
        micro_batch_size=draw(st.sampled_from([1, 4])),
        accumulation_steps=draw(st.sampled_from([1, 8])),
        recomputation=draw(st.sampled_from(["none", "scores", "selective", "full", "offloaded"])),
        overlaps_gradients=draw(st.booleans()),
        scatters_gradients=draw(st.booleans()),
    )
