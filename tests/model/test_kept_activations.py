"""What autograd keeps from the forward pass to the backward pass is what the shapes say, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bigtrain.config import AdapterSettings, ModelSettings
from bigtrain.config.families import FAMILIES
from bigtrain.config.model_settings import DROPOUT_RATES
from bigtrain.model import Computation, activations, build_model, model_shapes
from bigtrain.model.cpu.cpu_kernels import obstacle
from tests.model.kept_bytes import kept_after, saved_bytes
from tests.model.test_shapes import shape_of

ROWS, LENGTH, READ = 2, 16, 24
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NEARLY = {"bahdanau": 0.005, "luong": 0.005, "xlnet": 0.05}
"""Recurrent encoder-decoders keep a few numbers for each document beside those that are counted. PyTorch's attention
copies what it is given for some numbers of rows and not for others, and two streams use it on a CPU."""


def small(family: str, **changes: Any) -> ModelSettings:
    """A model with heads that each back-end takes."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2}
    if FAMILIES[family].get("position_embedding") != "none":
        shape |= {"head_dim": 32, "num_attention_heads": 2, "intermediate_size": 80}
    return shape_of(family, **(shape | changes))


def rows_of(length: int) -> dict[str, Any]:
    """Positions and boundaries of rows that are one document each."""
    ends = torch.arange(0, ROWS * length + 1, length, dtype=torch.int32)
    return {"position_ids": torch.arange(length).repeat(ROWS, 1), "cu_seqlens": ends, "max_seqlen": length}


def batch_of(settings: ModelSettings, drops: bool) -> dict[str, Any]:
    """A packed micro-batch; where only some positions have labels, every fourth has one."""
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)  # all different: see Computation.distinct
    labels = ids % max(settings.logits_of_task, 2)
    if settings.task_head == "question_answering":
        labels = labels + 1
    if settings.architecture in ("encoder", "two_stream") or settings.num_labels:
        labels = labels.masked_fill(ids % 4 > 0, -100)
    batch = {"input_ids": ids, "labels": labels, **rows_of(LENGTH)}
    if settings.reads_pairs:
        read = {"input_ids": torch.arange(ROWS * READ).view(ROWS, READ), **rows_of(READ)}
        batch |= {f"encoder_{name}": value for name, value in read.items()}
    if settings.architecture == "two_stream" and settings.task_head == "none":
        batch["order_ranks"] = ids % 5
    if drops:
        batch["row_keys"] = torch.arange(ROWS)
    return batch


def computation_of(precision: str, attention: str = "auto") -> Computation:
    return Computation("cpu", precision, attention, obstacle() is None, LENGTH, READ)  # type: ignore[arg-type]


def assert_kept(
    settings: ModelSettings,
    precision: str,
    recomputation: str,
    *,
    attention: str = "auto",
    adapter: AdapterSettings | None = None,
    budget: float = 1.0,
) -> None:
    """The formula's bytes are those of the storages that a forward pass leaves alive."""
    model = build_model(
        settings,
        attn_implementation=attention,
        activation_checkpointing=recomputation,
        activation_memory_budget=budget,
        adapter=adapter,
    ).to(DTYPES[precision])
    model.init_weights(0)
    batch = batch_of(settings, settings.drops or (adapter is not None and adapter.lora_dropout > 0))
    known = [*model.parameters(), *model.buffers(), *(each for each in batch.values() if isinstance(each, Tensor))]
    model(**batch)  # what is made once
    measured = sum(size for size, _ in kept_after(lambda: model(**batch), known))
    computation = computation_of(precision, attention)
    labelled = int((batch["labels"] >= 0).sum())
    kept = activations(model_shapes(settings, adapter), computation).kept(recomputation, budget)  # type: ignore[arg-type]
    found = sum(each.bytes(ROWS * LENGTH, read=ROWS * READ, labelled=labelled) for each in kept)
    scalars = 8 * (len(model.routers()) > 0) * 3 + 8 * (settings.num_nextn_predict_layers > 0)  # counted losses
    assert found == pytest.approx(measured, rel=NEARLY.get(settings.family, 0), abs=scalars)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_keeps_what_its_shapes_say(family: str) -> None:
    """Without recomputation in bfloat16, with each mode of recomputation in one of the two precisions."""
    settings = small(family)
    for precision, recomputation in (("bf16", "none"), ("fp32", "selective"), ("bf16", "full")):
        assert_kept(settings, precision, recomputation)


CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped heads": ("llama", {"num_key_value_heads": 1}),
    "all dropout": ("bart", dict.fromkeys(set(DROPOUT_RATES) - {"classifier_dropout"}, 0.1)),
    "dropout between layers": ("lstm", {"embedding_dropout": 0.1, "hidden_dropout": 0.1, "final_dropout": 0.1}),
    "alibi": ("llama", {"position_embedding": "alibi"}),
    "relu2": ("llama", {"hidden_act": "relu2", "gated_mlp": False}),
    "post-norm with full norms of heads": ("olmo2", {"norm_position": "post_residual"}),
    "multi-token prediction": ("llama", {"num_nextn_predict_layers": 2}),
    "experts in some layers": ("mixtral", {"mlp_only_layers": (0,), "norm_topk_prob": False}),
    "classes of texts": ("modernbert", {"task_head": "sequence_classification", "num_labels": 3}),
    "classes of tokens": ("roberta", {"task_head": "token_classification", "num_labels": 3}),
    "answers": ("bert", {"task_head": "question_answering"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_of_the_model_changes_what_is_kept(name: str) -> None:
    family, changes = CHOICES[name]
    for precision, recomputation in (("fp32", "none"), ("bf16", "selective"), ("bf16", "full")):
        assert_kept(small(family, **changes), precision, recomputation)


ADAPTERS = (
    AdapterSettings(method="lora", r=4),
    AdapterSettings(method="lora", r=4, lora_dropout=0.1, target_modules=("*_proj",)),
    AdapterSettings(method="dora", r=4),
    AdapterSettings(method="bottleneck", bottleneck_size=8),
)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda each: f"{each.method}-{each.lora_dropout}")
def test_a_frozen_base_keeps_less(adapter: AdapterSettings) -> None:
    """A matrix that does not learn keeps no input, and nothing is kept before the first layer that learns."""
    for recomputation in ("none", "selective", "full"):
        assert_kept(small("llama"), "bf16", recomputation, adapter=adapter)


@pytest.mark.parametrize("attention", ["sdpa", "blockwise"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_back_end_of_attention_keeps_what_it_is_known_for(attention: str, dropout: float) -> None:
    settings = small("llama", num_key_value_heads=2, attention_dropout=dropout)
    for precision in DTYPES:
        assert_kept(settings, precision, "none", attention=attention)


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.8])
def test_a_budget_keeps_some_products(budget: float) -> None:
    assert_kept(small("llama"), "bf16", "selective", budget=budget)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bart"])
def test_what_is_alive_is_what_autograd_has_saved(family: str) -> None:
    """The measurement of this file, by another way: the hooks that autograd calls with each tensor that it saves."""
    settings = small(family)
    model = build_model(settings).bfloat16()
    model.init_weights(0)
    batch = batch_of(settings, drops=False)
    known = [*model.parameters(), *(each for each in batch.values() if isinstance(each, Tensor))]
    model(**batch)
    alive = sum(size for size, _ in kept_after(lambda: model(**batch), known))
    assert saved_bytes(lambda: model(**batch), known) == alive


LARGE = {
    "llama-8b": {"hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "intermediate_size": 14336},
    "gpt2-xl": {"family": "gpt2", "hidden_size": 1600, "num_hidden_layers": 2, "num_attention_heads": 25,
                "intermediate_size": 6400},
}  # fmt: skip


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
def test_flash_attention_of_cuda_keeps_what_its_shapes_say(
    name: str, recomputation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of published models with 4,096 tokens, as fake tensors: the back-end `varlen`, without a GPU. What is
    around attention is computed as on a CPU."""
    from bigtrain.model.attention import attention_backends

    shape = {"family": "llama", "vocab_size": 1024, "max_position_embeddings": 4096} | LARGE[name]
    settings = ModelSettings.model_validate(shape)
    monkeypatch.setattr(attention_backends, "_obstacle", lambda *_: None)
    with FakeTensorMode():
        with default_type(torch.bfloat16):
            model = build_model(settings, attn_implementation="varlen", activation_checkpointing=recomputation)
        ids = torch.zeros(1, 4096, dtype=torch.int64)
        inputs = {"input_ids": ids, "position_ids": ids, "cu_seqlens": torch.zeros(2, dtype=torch.int32)}
        known = [*model.parameters(), *inputs.values()]
        alive = kept_after(lambda: model.hidden(**inputs, max_seqlen=4096), known)
    computation = Computation("cpu", "bf16", "varlen", length=4096)
    found = activations(model_shapes(settings), computation)
    kept = [each for each in found.kept(recomputation) if not each.what.startswith("head.")]  # type: ignore[arg-type]
    unused = {"labelled"}  # there are no losses here
    wanted = sum(each.bytes(4096) for each in kept if each.what not in unused)
    assert sum(size for size, _ in alive) == pytest.approx(wanted, abs=2 * 32)  # random states of attention


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_tensor_parallelism_divides_what_a_smaller_model_lacks(family: str) -> None:
    """Each of two ranks keeps what a model with half the heads and half the inner width keeps."""
    whole = small(family, num_attention_heads=4, intermediate_size=96)
    half = small(family, num_attention_heads=2, intermediate_size=48)
    for recomputation in ("none", "selective", "full"):
        found = activations(model_shapes(whole), computation_of("bf16", "blockwise")).kept(recomputation)  # type: ignore[arg-type]
        wanted = activations(model_shapes(half), computation_of("bf16", "blockwise")).kept(recomputation)  # type: ignore[arg-type]
        shared = sum(each.bytes(LENGTH, tensor_parallel=2) for each in found)
        assert shared == sum(each.bytes(LENGTH) for each in wanted)


def test_offloading_keeps_no_input_on_the_device() -> None:
    found = activations(model_shapes(small("llama")), computation_of("bf16"))
    full, offloaded = (sum(each.bytes(1) for each in found.kept(mode)) for mode in ("full", "offloaded"))  # type: ignore[arg-type]
    assert full - offloaded == 2 * 64 * 2  # two blocks, 64 channels, two bytes


def test_every_block_keeps_at_most_what_it_has_made() -> None:
    """Selective recomputation under a budget of 0 keeps attention alone, and none keeps all that is needed."""
    found = activations(model_shapes(small("llama")), computation_of("bf16"))
    kept = {budget: sum(each.bytes(8) for each in found.kept("selective", budget)) for budget in (0.0, 0.3, 0.7, 1.0)}
    assert list(kept.values()) == sorted(kept.values())
    assert sum(each.bytes(8) for each in found.kept("full")) < kept[0.0]
