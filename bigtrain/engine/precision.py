"""What a model computes in."""

import torch

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""By `engine.precision`. Master weights, moments and gradient sums are float32 at all of them."""
