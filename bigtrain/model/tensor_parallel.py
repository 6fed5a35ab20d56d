"""How ranks share the matrices of a block, in Hugging Face's words (Shoeybi et al., 2019, section 3)."""

TENSOR_PARALLEL_PLAN = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
"""Whole heads and inner features each, one sum after attention and one after the feed-forward layer."""
