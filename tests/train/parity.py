"""The parity suite's cases, its batches, and the yardstick: one process, float32, no DeepSpeed, no fused kernels."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.config import Settings
from bigtrain.config.families import FAMILIES
from bigtrain.convert import Imported
from bigtrain.model import build_model
from tests import forkserver
from tests.tasks import sections_of_task

STEPS = 16
"""The defects that it has found ("right losses, wrong gradients" in docs/notebook.md) fail it by the second step."""
ROWS, TOKENS, VOCABULARY = 16, 32, 96
VIRTUAL = 3
"""Virtual tokens of an adapter, in front of every document."""
COMPRESSED = {"sparsity": 0.5, "pruning_start": 2, "pruning_end": 12, "weights": "int8", "group_size": 16}
READ = 24
"""Tokens of a row of an encoder-decoder's encoder."""


@dataclass(frozen=True)
class Case:
    """One way of computing the same training."""

    stage: int
    world: int
    accumulation: int = 1
    clip: float = 1.0
    tied: bool = False
    recompute: str = "none"
    precision: str = "fp32"
    family: str = "llama"
    tensor: int = 1
    sequence: int = 1
    offload: str = "none"
    secondary: int = 1
    """Ranks of ZeRO++'s second copy of the weights."""
    ahead: int = 0
    """Modules of multi-token prediction."""
    prefix: bool = False
    """Documents have prefixes that are seen from both sides."""
    drop: float = 0.0
    """Every rate of dropout."""
    task: str = "none"
    """The head of a task in the place of that for tokens."""
    adapter: str = "none"
    """Method of an adapter, which also drops where the model does."""
    base: str = ""
    """adapter: a folder with `weights`, its base, and `data`, with the tokenizer of these; see `base.py`."""
    decay: float = 1.0
    """Of rates from layer to layer."""
    compressed: bool = False
    """Weights are pruned more and more, and rounded to 8 bits."""

    @property
    def name(self) -> str:
        """Only what is not the default."""
        default = Case(0, 0)
        parts = [f"stage{self.stage}", f"world{self.world}"]
        return "-".join(
            parts
            + [
                f"{key}_{value}"
                for key, value in asdict(self).items()
                if key not in ("stage", "world") and value != getattr(default, key)
            ]
        )

    @property
    def micro_batch_size(self) -> int:
        return ROWS * self.tensor * self.sequence // (self.world * self.accumulation)


def cases() -> list[Case]:
    """Every stage at every world size, with the other choices going round so that each meets every stage."""
    found = []
    for i, (stage, world) in enumerate(itertools.product((0, 1, 2, 3), (1, 2, 4))):
        found.append(
            Case(
                stage,
                world,
                accumulation=(1, 4)[(i + stage) % 2],
                clip=(0.3, 0.0)[(i // 2) % 2],
                tied=i % 2 == 1,
                recompute=("none", "selective", "full")[(i + stage) % 3],
                family=("llama", "gpt2")[(i // 3) % 2],
            )
        )
    for stage in (1, 2, 3):
        found.append(Case(stage, 2, precision="bf16", clip=0.3))
        found.append(Case(stage, 2, precision="fp16", clip=0.3, tied=True))
        found.append(Case(stage, 2, offload="cpu", clip=0.3))
    for stage, world, accumulation, family, recompute in (
        (1, 2, 4, "llama", "full"),
        (2, 2, 1, "gpt2", "none"),
        (1, 4, 1, "llama", "none"),
    ):
        tied = family == "llama"
        found.append(
            Case(stage, world, accumulation, clip=0.3, tied=tied, recompute=recompute, tensor=2, family=family)
        )
    for stage, world, accumulation in ((0, 2, 4), (1, 4, 1), (2, 2, 1), (3, 4, 1)):
        found.append(Case(stage, world, accumulation, clip=0.3, tied=stage == 0, recompute="full", sequence=2))
    found.append(Case(1, 4, 1, clip=0.3, recompute="selective", sequence=4, precision="bf16"))
    found.append(Case(1, 2, 4, clip=0.3, precision="bf16", tensor=2))
    found.append(Case(3, 4, clip=0.3, secondary=2))
    for stage, world, accumulation, recompute in ((0, 1, 4, "none"), (2, 4, 1, "selective"), (3, 2, 4, "full")):
        found.append(Case(stage, world, accumulation, 0.3, stage == 3, recompute, family="mixtral", ahead=2))
    found.append(Case(3, 4, clip=0.3, recompute="full", sequence=2, family="mixtral"))
    for stage, world, accumulation, recompute, family in (
        (3, 2, 1, "full", "albert"),
        (2, 2, 4, "selective", "modernbert"),
        (0, 2, 1, "none", "roberta"),
        (1, 2, 1, "none", "bert"),
        (1, 1, 4, "full", "albert"),
        (3, 4, 1, "selective", "bert"),
        (3, 2, 4, "offloaded", "modernbert"),
    ):
        found.append(Case(stage, world, accumulation, 0.3, True, recompute, family=family))
    for stage, world, accumulation, recompute, family in (
        (2, 2, 4, "selective", "t5"),
        (3, 4, 1, "full", "marian"),
        (0, 1, 4, "none", "bart"),
        (1, 4, 1, "none", "t5_v1_1"),
        (3, 2, 1, "none", "t5"),
        (0, 2, 1, "offloaded", "t5"),
        (0, 4, 4, "full", "t5"),
        (1, 1, 1, "full", "t5"),
        (1, 2, 4, "full", "bart"),
        (2, 1, 1, "none", "t5_v1_1"),
        (2, 4, 1, "selective", "bart"),
        (3, 1, 4, "selective", "marian"),
    ):
        tied = FAMILIES[family].get("tie_word_embeddings", family == "t5")
        found.append(Case(stage, world, accumulation, 0.3, tied, recompute, family=family))
    found.append(Case(3, 2, clip=0.3, family="t5_v1_1", precision="bf16"))
    for stage, world, accumulation, recompute, family, tied in (
        (0, 2, 1, "none", "lstm", False),
        (1, 2, 4, "selective", "gru", True),
        (2, 4, 1, "full", "lstm", True),
        (3, 2, 4, "none", "gru", False),
        (3, 4, 1, "full", "lstm", True),
        (3, 2, 1, "full", "bahdanau", False),
        (2, 2, 4, "selective", "luong", True),
    ):
        found.append(Case(stage, world, accumulation, 0.3, tied, recompute, family=family))
    found.append(Case(3, 2, clip=0.3, family="lstm", precision="bf16"))
    found.append(Case(3, 4, clip=0.3, sequence=2, family="bert"))
    found.append(Case(1, 2, clip=0.3, tied=True, tensor=2, family="bert"))
    found.append(Case(2, 2, clip=0.3, tied=True, family="modernbert", precision="bf16"))
    for stage, world, accumulation, recompute in (
        (0, 2, 4, "none"),
        (1, 4, 1, "selective"),
        (2, 2, 1, "full"),
        (3, 4, 1, "full"),
        (3, 1, 4, "offloaded"),
    ):
        found.append(Case(stage, world, accumulation, 0.3, True, recompute, family="xlnet"))
    found.append(Case(2, 2, 4, 0.3, True, "full", family="xlnet", drop=0.1))
    found.append(Case(2, 2, 4, 0.3, False, "full", family="lstm", drop=0.1))
    found.append(Case(3, 2, 1, 0.3, False, "none", family="bahdanau", drop=0.1))
    for stage, world, sequence, recompute in ((0, 1, 1, "full"), (2, 2, 2, "none"), (3, 2, 1, "selective")):
        found.append(Case(stage, world, 1, 0.3, recompute=recompute, sequence=sequence, prefix=True))
    for stage, world, accumulation, recompute, family in (
        (0, 2, 4, "selective", "llama"),
        (1, 1, 4, "none", "bert"),
        (2, 4, 1, "full", "albert"),
        (3, 2, 4, "offloaded", "gpt2"),
    ):
        found.append(Case(stage, world, accumulation, 0.3, True, recompute, family=family, drop=0.1))
    found.append(Case(3, 4, clip=0.3, recompute="full", sequence=2, family="bert", drop=0.1))
    found.append(Case(1, 2, clip=0.3, tied=True, tensor=2, drop=0.1))
    found.append(Case(2, 2, clip=0.3, ahead=2, drop=0.1))
    found.append(Case(1, 2, clip=0.3, tied=True, family="bert", precision="bf16", drop=0.1))
    texts, tokens, answers = TASKS
    for stage, world, accumulation, recompute, family, task in (
        (0, 2, 4, "none", "llama", tokens),
        (1, 1, 4, "full", "bart", texts),
        (1, 4, 1, "none", "modernbert", answers),
        (2, 2, 4, "selective", "bert", texts),
        (2, 4, 1, "full", "xlnet", texts),
        (3, 2, 1, "none", "llama", answers),
        (3, 4, 1, "full", "roberta", tokens),
    ):
        found.append(Case(stage, world, accumulation, 0.1, True, recompute, family=family, task=task))
    found.append(Case(3, 2, 4, 0.1, True, "full", family="roberta", task=texts, drop=0.1))
    found.append(Case(3, 4, clip=0.1, sequence=2, family="bert", task=tokens, drop=0.1))
    found.append(Case(1, 2, clip=0.1, tied=True, tensor=2, task=texts))
    found.append(Case(2, 2, clip=0.1, tied=True, family="bert", task=tokens, precision="bf16"))
    for stage, world, family in ((3, 2, "llama"), (0, 2, "llama"), (1, 2, "bart"), (2, 4, "bert")):
        found.append(Case(stage, world, 1, 0.3, stage < 3, family=family, decay=0.9))
    return found


def state_cases() -> list[Case]:
    """Every way in which state can be cut or lie somewhere else."""
    return [
        Case(0, 2, tied=True, sequence=2),
        Case(1, 1, tied=True),
        Case(1, 2, tied=True, tensor=2),
        Case(1, 2, tied=True, precision="fp16"),
        Case(2, 2, tied=True, offload="cpu"),
        Case(2, 4, tied=True, tensor=2, precision="bf16"),
        Case(3, 2, tied=True, sequence=2, offload="cpu"),
        Case(3, 4, tied=True, secondary=2),
        Case(1, 2, tied=True, drop=0.1),
        Case(3, 2, tied=True, decay=0.9),
    ]


OBJECTIVES = {
    "decoder": "causal",
    "encoder": "masked",
    "encoder_decoder": "denoising",
    "recurrent": "causal",
    "two_stream": "permutation",
    "recurrent_encoder_decoder": "denoising",
}
"""One for each architecture."""


TASKS = ("sequence_classification", "token_classification", "question_answering")
CLASSES = 3


def architecture(family: str) -> str:
    return FAMILIES[family].get("architecture", "decoder")


def settings(case: Case) -> Settings:
    whole_heads = case.family in ("gpt2", "xlnet") or case.adapter != "none"
    mixture = {
        "num_experts": 4, "router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.001,
        "router_bias_update_rate": 0.0 if case.base else 0.01,  # an adapter has no place for biases that move
    }  # fmt: skip
    # Tensor parallelism has whole residual streams alone on each rank.
    no_others = case.tensor > 1 or architecture(case.family).startswith("recurrent")
    labelled = {} if case.task == "none" else sections_of_task(case.task)
    task = {"task_head": case.task, "num_labels": CLASSES if case.task in TASKS[:2] else 0}
    places = ("embedding", "hidden", "final", *(() if no_others else ("attention", "activation")))
    places += () if case.task == "none" else ("classifier",)
    recurrent = {
        "hidden_size": 64, "num_attention_heads": 0, "num_key_value_heads": None, "intermediate_size": 0,
        "initializer_range": 0.2,
    }  # fmt: skip
    of_family: dict[str, dict[str, Any]] = {
        "lstm": recurrent,
        "gru": recurrent,
        "bahdanau": recurrent,
        "luong": recurrent,
        "mixtral": mixture,
        "albert": {"num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 16},
        "modernbert": {"num_hidden_layers": 3, "sliding_window": 8},
        "t5": {"num_decoder_layers": 3},
    }
    return Settings.model_validate(
        {
            "run_dir": "unused",
            "model": {
                "family": case.family,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4 if whole_heads or case.sequence == 4 else 2,
                "intermediate_size": 80,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": TOKENS + (VIRTUAL if case.adapter != "none" else 0),
                "tie_word_embeddings": case.tied,
                "initializer_range": 0.08,
                "num_nextn_predict_layers": case.ahead,
                **task,
                **{f"{place}_dropout": case.drop for place in places},
                **of_family.get(case.family, {}),
                **({"init_from": f"{case.base}/weights"} if case.base else {}),
            },
            "adapter": adapter_of(case),
            "compression": COMPRESSED if case.compressed else {},
            "objective": labelled.get(
                "objective", {"name": "prefix" if case.prefix else OBJECTIVES[architecture(case.family)]}
            ),
            "data": {
                "dir": f"{case.base}/data" if case.base else "unused",
                "tokenizer": {"vocab_size": VOCABULARY, **labelled.get("tokenizer", {})},
                "sources": [{"name": "x", "kind": "python_stdlib"}],
                "sequence_length": TOKENS,
                **labelled.get("data", {}),
            },
            "train": {
                "steps": STEPS,
                "global_batch_size": ROWS,
                "micro_batch_size": case.micro_batch_size,
                "seed": 7,
            },
            "optimizer": {"max_grad_norm": case.clip, "layer_lr_decay": case.decay},
            "engine": {
                "zero_stage": case.stage,
                "precision": case.precision,
                "activation_checkpointing": case.recompute,
                "tensor_parallel_size": case.tensor,
                "sequence_parallel_size": case.sequence,
                "offload_optimizer": case.offload,
                "offload_param": case.offload if case.stage == 3 else "none",
                "zero_hpz_partition_size": case.secondary,
                "attn_implementation": "sdpa" if case.precision == "fp16" else "auto",
            },
        }
    )


def adapter_of(case: Case) -> dict[str, Any]:
    """The section adapter: of every kind of layer some, one layer by none, and a norm that learns as a whole."""
    if case.adapter == "none":
        return {}
    if case.adapter == "bottleneck":
        return {"method": "bottleneck", "bottleneck_size": 8}
    if case.adapter in ("prefix_tuning", "prompt_tuning"):
        return {"method": case.adapter, "num_virtual_tokens": VIRTUAL}
    targets = ["*.q_proj", "*.o_proj", *(["layers.1.*.down_proj"] if case.family != "mixtral" else [])]
    drop = case.drop if architecture(case.family) in ("decoder", "encoder") else 0.0
    return {
        "method": case.adapter, "r": 4, "target_modules": targets, "modules_to_save": ["norm"], "lora_dropout": drop,
    }  # fmt: skip


def rows(step: int, order: str | None = None) -> dict[str, Tensor]:
    """A step's global batch: rows of documents of ragged lengths, the last labels of some rows missing.

    Args:
        step: number of the step.
        order: in which tokens see each other, of `order_of`.
    """
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY // 4, (ROWS, TOKENS + 1), generator=generator)
    starts = torch.rand(ROWS, TOKENS, generator=generator) < 0.12
    starts[:, 0] = True
    labels = tokens[:, 1:].clone()
    labels[:, :-1][starts[:, 1:]] = -100  # no document predicts the next one's first token
    for row in range(0, ROWS, 3):
        labels[row, TOKENS - row :] = -100
    tiers = torch.arange(TOKENS).expand(ROWS, TOKENS)
    positions = tiers - torch.where(starts, tiers, 0).cummax(dim=1).values
    keys = torch.randint(-(2**63), 2**63 - 1, (ROWS,), generator=generator)
    batch = {
        "input_ids": tokens[:, :-1], "labels": labels, "position_ids": positions, "starts": starts, "row_keys": keys,
    }  # fmt: skip
    if order == "prefix":  # of eight tokens, or of a whole document
        batch["labels"] = labels.masked_fill(positions < 7, -100)
        batch["order_ranks"] = positions.clamp(min=7)
    if order == "permutation":
        ranks = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(ROWS)]) - TOKENS // 2
        batch["labels"] = labels.masked_fill(ranks <= 0, -100)
        batch["order_ranks"] = ranks.clamp(min=0)
    return batch


def order_of(case: Case) -> str | None:
    """In which order the tokens of a case see each other, beside what its architecture says."""
    return next(iter(settings(case).objective.orders), None)


def rows_to_read(step: int, starts: Tensor) -> dict[str, Tensor]:
    """What an encoder reads beside those rows: as many documents a row, of other lengths."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, VOCABULARY // 4, (ROWS, READ), generator=generator)
    order = torch.rand(ROWS, READ, generator=generator)
    order[:, 0] = -1.0  # each row starts a document, and a random choice of places the others
    read_starts = order.argsort(dim=1).argsort(dim=1) < starts.sum(dim=1, keepdim=True)
    places = torch.arange(READ).expand(ROWS, READ)
    positions = places - torch.where(read_starts, places, 0).cummax(dim=1).values
    return {"input_ids": tokens, "position_ids": positions, "starts": read_starts}


def batch_for(case: Case, step: int) -> dict[str, Tensor]:
    """A step's global batch for the architecture and the objective of a case."""
    batch = rows(step, order_of(case))
    if case.task != "none":
        batch["labels"] = labels_of_task(case, batch)
        batch.pop("order_ranks", None)
    if architecture(case.family).endswith("encoder_decoder"):
        batch |= {f"encoder_{name}": value for name, value in rows_to_read(step, batch["starts"]).items()}
    return batch


def labels_of_task(case: Case, batch: dict[str, Tensor]) -> Tensor:
    """Classes that follow from a token, or an answer that is a whole document; some documents have none."""
    ids, starts = batch["input_ids"], batch["starts"]
    classes = ids % CLASSES
    ends = torch.cat((starts[:, 1:], torch.ones(ROWS, 1, dtype=torch.bool)), dim=1)
    if case.task == "token_classification":
        return classes.masked_fill(ids % 4 == 0, -100)
    if case.task == "sequence_classification":
        place = starts if architecture(case.family) == "encoder" else ends
        return torch.where(place & (ids % 5 > 0), classes, -100)
    number = starts.flatten().cumsum(0).view_as(starts)
    return torch.where((starts | ends) & (number % 3 > 0), starts + 2 * ends, -100)


def micro_batch(batch: dict[str, Tensor], first: int, last: int) -> dict[str, Any]:
    """What the model's forward takes, of some rows."""
    part: dict[str, Any] = {name: tensor[first:last].contiguous() for name, tensor in batch.items()}
    for side in ("", "encoder_") if "encoder_starts" in part else ("",):
        own: Tensor = part.pop(f"{side}starts")
        starts = own.flatten().nonzero().flatten().to(torch.int32)
        part[f"{side}cu_seqlens"] = torch.cat((starts, torch.tensor([own.numel()], dtype=torch.int32)))
        part[f"{side}max_seqlen"] = own.shape[1]
    return part


def learning_rate(step: int) -> float:
    return 4e-3 / (1 + step / 10)


def plain_loop(case: Case) -> dict[str, list[float]]:
    """The same training in one process: a float32 model with naive attention, PyTorch's AdamW, the whole batch at
    once."""
    what = (
        case.family, case.tied, case.clip, case.sequence == 4, case.ahead, case.drop, case.tensor, case.prefix,
        case.task, case.adapter, case.base, case.decay, case.compressed,
    )  # fmt: skip
    return json.loads(_plain_loop(*what))


@functools.cache
def _plain_loop(
    family: str, tied: bool, clip: float, whole_heads: bool, ahead: int, drop: float, tensor: int, prefix: bool,
    task: str, adapter: str, base: str, decay: float, compressed: bool,
) -> str:  # fmt: skip
    shares = {"sequence": 4 if whole_heads else 1, "tensor": tensor if drop else 1}
    others: dict[str, Any] = {"ahead": ahead, "drop": drop, "prefix": prefix, "task": task, "decay": decay}
    others["compressed"] = compressed
    like = Case(1, 4, clip=clip, tied=tied, family=family, adapter=adapter, base=base, **others, **shares)
    chosen = settings(like)
    torch.set_num_threads(1)
    model = build_model(
        chosen.model, attn_implementation="reference", adapter=chosen.adapter, compression=chosen.compression
    )
    model.init_weights(chosen.train.seed)
    if chosen.model.init_from is not None:
        start_from(Imported(chosen.model.init_from), model)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [parameter],
                "weight_decay": chosen.optimizer.weight_decay if parameter.ndim >= 2 else 0.0,
                "scale": decay ** blocks_to_head(name, family),
            }
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ],
        betas=chosen.optimizer.betas,
        eps=chosen.optimizer.eps,
        foreach=False,
    )
    losses, norms = [], []
    for step in range(STEPS):
        batch = batch_for(like, step)
        model.at_step(step)
        labelled = int((batch["labels"] != -100).sum())
        loss = model(**micro_batch(batch, 0, ROWS)) / labelled
        optimizer.zero_grad()
        loss.backward()
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))
        for parameter in (p for p in model.parameters() if clip and p.requires_grad):
            assert parameter.grad is not None
            parameter.grad *= min(1.0, clip / (float(norm) + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step) * group["scale"]
        optimizer.step()
        for router, load in zip(model.routers().values(), model.auxiliary.take().loads, strict=True):
            router.move(load)
        losses.append(float(loss.detach()))
        norms.append(float(norm))
    return json.dumps({"losses": losses, "norms": norms})


@torch.no_grad()
def start_from(base: Mapping[str, Tensor], model: nn.Module) -> None:
    """The base's weights in a model with an adapter, and the lengths of their rows where it learns these."""
    for name, parameter in model.named_parameters():
        layer, _, part = name.rpartition(".")
        if name in base:
            parameter.copy_(base[name])
        elif part == "lora_magnitude_vector":
            parameter.copy_(base[f"{layer}.weight"].norm(dim=1))


def blocks_to_head(name: str, family: str) -> int:
    """How many blocks of these models lie between a parameter and the head, its own included."""
    start, _, rest = name.removeprefix("encoder.").partition(".")
    blocks, reads = 2, 2 if family == "bart" else 0  # of the decoder, and of the encoder before it
    if start == "layers":
        return blocks - int(rest.partition(".")[0]) + (reads if name.startswith("encoder.") else 0)
    if start.startswith("embed") or start == "relative_attention_bias":
        return blocks + reads + 1
    return blocks + 1 if name.startswith("encoder.") else 0


def launch(jobs: list[dict[str, Any]], world: int, directory: Path) -> list[Any]:
    """The results of jobs for the worker, on so many ranks."""
    (directory / "job.json").write_text(json.dumps(jobs))
    finished = forkserver.torchrun(world, Path(__file__).with_name("parity_worker.py"), directory, timeout=500)
    assert finished.returncode == 0, finished.stdout[-6000:]
    results: list[Any] = json.loads((directory / "result.json").read_text())
    return results
