"""AdamW with parameter groups chosen by name, so that a checkpoint finds each tensor's treatment again by its name."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from bigtrain.config.settings import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2) over all parameters of the model, with two groups.

    Matrices decay, the token embedding among them: as an output projection it is a matrix like any other, and GPT-2,
    Llama and OLMo decay it too. Norms, biases and every other vector do not. A tied embedding is one parameter,
    under the name `named_parameters` gives it first.

    PyTorch's own fused kernel is used on CPU and CUDA: DeepSpeed's Adam has to be compiled at first start.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "name": "decay",
            "params": [parameter for _, parameter in named if parameter.ndim >= 2],
            "weight_decay": settings.weight_decay,
        },
        {
            "name": "no_decay",
            "params": [parameter for _, parameter in named if parameter.ndim < 2],
            "weight_decay": 0.0,
        },
    ]
    return AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True)
