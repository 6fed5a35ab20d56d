"""`bigtrain compress`: what is left of a model, and that everything which opens a model opens it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings, Settings
from bigtrain.convert import Imported
from bigtrain.data import MicroBatch
from bigtrain.model import Sampling, block_of, build_model, linear_layers
from bigtrain.model.compression.pruning import keep_of_rows
from bigtrain.trained import (
    Compression,
    TextModel,
    compress_run,
    evaluate_run,
    export_run,
    export_run_to_gguf,
    starting_weights,
)
from bigtrain.trained.compression.calibration import InputReader
from bigtrain.trained.compression.layers import change_layers
from bigtrain.trained.compression.narrowing import Narrowing, NarrowShape
from bigtrain.trained.weight_source import weight_source
from tests.convert.helpers import settings_of, shapes, trained, weights_of
from tests.data.helpers import data_settings, jsonl_source, make, sentences, write_jsonl
from tests.model.helpers import packed_batch
from tests.refusals import assert_refused
from tests.trained.helpers import random_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run of a random model of llama's family."""
    directory = tmp_path_factory.mktemp("compress")
    data = data_settings(
        directory / "data", jsonl_source(write_jsonl(directory / "lines.jsonl", sentences(200, 0)), "lines")
    )
    make(data, 320)
    model = settings_of("llama", num_key_value_heads=2)
    random_run(directory, model, data)
    return directory


def record(out: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((out / "compress.json").read_text()))


def loss(path: Path) -> float:
    (source,) = evaluate_run(path, None, with_baselines=False).validation
    return source.loss


WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {"prune": "magnitude", "sparsity": 0.5},
    "of the model": {"prune": "magnitude", "sparsity": 0.5, "scope": "model"},
    "wanda": {"prune": "wanda", "sparsity": 0.5},
    "2:4": {"prune": "wanda", "pattern": (2, 4)},
    "narrow": {"heads": 2, "channels": 24},
    "int8": {"quantise": "int8", "rounding": "nearest"},
    "gptq": {"quantise": "int4", "group_size": 16},
    "all": {"heads": 2, "channels": 24, "prune": "magnitude", "pattern": (2, 4), "quantise": "int4"},
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_opens_a_run_opens_the_compressed_model(way: str, made: Path, tmp_path: Path) -> None:
    """It is evaluated, generates, is exported, starts a new run, and teaches; all with the same weights."""
    out = tmp_path / "out"
    result = compress_run(made / "run", out, Compression(**WAYS[way], calibration_rows=6))
    assert result.step == 7 and result.calibration_rows in (0, 6)
    said = record(out)
    assert len(said["calibration_rows"]) == result.calibration_rows
    assert loss(out) == pytest.approx(loss(made / "run"), abs=1.0) and loss(out) != loss(made / "run")
    sampling = Sampling(temperature=0)
    own = TextModel.open(out).continue_texts(["the"], max_new_tokens=5, sampling=sampling).texts[0].tokens
    export_run(out, tmp_path / "hf", step=None, check=True, report=lambda line: None)
    assert (
        own
        == TextModel.open(tmp_path / "hf").continue_texts(["the"], max_new_tokens=5, sampling=sampling).texts[0].tokens
    )
    source = weight_source(out)
    assert isinstance(source, Imported) and set(source.for_model(source.settings)) == set(source)
    again = compress_run(out, tmp_path / "again", Compression(prune="magnitude", sparsity=0.0))
    assert again.step == 7 and loss(tmp_path / "again") == loss(out)


def test_a_new_run_starts_from_the_compressed_model(made: Path, tmp_path: Path) -> None:
    compress_run(made / "run", tmp_path / "out", Compression(**WAYS["narrow"], calibration_rows=4))
    run = Settings.model_validate(yaml.safe_load((made / "run" / "config.yaml").read_text()))
    model = run.model.model_copy(
        update={"init_from": tmp_path / "out", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
                "intermediate_size": 24}
    )  # fmt: skip
    found = starting_weights(run.model_copy(update={"model": model}))
    assert not found.new and not found.unused
    assert found["layers.0.mlp.up_proj.weight"].shape == (24, 32)


def test_pruning_keeps_the_share_in_each_matrix_or_in_the_model(made: Path, tmp_path: Path) -> None:
    for way, alike in (("magnitude", True), ("of the model", False), ("2:4", True), ("wanda", True)):
        result = compress_run(made / "run", tmp_path / "out", Compression(**WAYS[way], calibration_rows=4))
        assert result.sparsity == 0.5
        shares = set(record(tmp_path / "out")["sparsity"].values())
        assert (shares == {0.5}) is alike


def test_embeddings_head_and_norms_are_left_as_they_are(made: Path, tmp_path: Path) -> None:
    compress_run(made / "run", tmp_path / "out", Compression(prune="magnitude", sparsity=0.9))
    before, after = weight_source(made / "run"), Imported(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(record(tmp_path / "out")["sparsity"])
    assert all(block_of(name) and name.endswith("_proj.weight") for name in changed)


def test_integers_take_the_bytes_of_their_bits(made: Path, tmp_path: Path) -> None:
    """Two codes of 4 bits in a byte, and 2 bytes for the scale of each group; in fp32 all else has 4 bytes."""
    for name, bits in (("int8", 8), ("int4", 4)):
        compression = Compression(quantise=cast(Any, name), rounding="nearest", group_size=16)
        result = compress_run(made / "run", tmp_path / name, compression)
        weights = Imported(tmp_path / name)
        matrices = [weights[each].shape for each in record(tmp_path / name)["quantised"]]
        inside = sum(shape.numel() for shape in matrices)
        scales = sum(shape[0] * -(-shape[1] // 16) for shape in matrices)
        assert result.bytes == 4 * (result.parameters - inside) + inside * bits // 8 + 2 * scales


def test_a_changed_byte_of_a_quantised_matrix_is_found(made: Path, tmp_path: Path) -> None:
    compress_run(made / "run", tmp_path / "out", Compression(quantise="int4", rounding="nearest"))
    file = tmp_path / "out" / "model.safetensors"
    content = bytearray(file.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    content[length + header["layers.0.mlp.up_proj.weight.codes"]["data_offsets"][0]] ^= 1
    file.write_bytes(content)
    with pytest.raises(BigtrainError) as caught:
        dict(Imported(tmp_path / "out"))
    assert_refused(caught, "layers.0.mlp.up_proj.weight", found="xxh3")


def test_the_same_rows_are_drawn_again_and_others_by_another_seed(made: Path, tmp_path: Path) -> None:
    """Only rows that the run has read, each once; the weights are the same to the bit."""
    rows = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        compress_run(made / "run", out, Compression(**WAYS["wanda"], calibration_rows=10, seed=seed))
        rows.append(record(out)["calibration_rows"])
    assert rows[0] == rows[1] != rows[2]
    assert len({tuple(row) for row in rows[0]}) == 10
    first, second = (Imported(tmp_path / name) for name in "01")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", [None, "Q8_0", "Q4_0"])
def test_a_compressed_model_is_exported_to_gguf(kind: str | None, made: Path, tmp_path: Path, require: Any) -> None:
    """Quantised by llama.cpp, too; the file with floats in between is gone, and a second export replaces the first."""
    require("gguf")
    require("llama_cpp")
    compress_run(made / "run", tmp_path / "out", Compression(prune="magnitude", pattern=(2, 4)))
    for _ in range(2):
        found = export_run_to_gguf(
            tmp_path / "out", tmp_path / "gguf", step=None, dtype=None, check=True, report=print, quantised=kind
        )
        assert [path.name for path in (tmp_path / "gguf").iterdir()] == ["model.gguf"]
    assert found.dtype == (kind or "float32")
    assert found.bytes == (tmp_path / "gguf" / "model.gguf").stat().st_size
    limit = {None: 1e-3, "Q8_0": 0.05, "Q4_0": 0.5}[kind]
    assert found.logit_difference is not None and found.logit_difference < limit


def batches(settings: ModelSettings, number: int = 3) -> list[MicroBatch]:
    made = []
    for seed in range(number):
        inputs = packed_batch(2, 12, settings.vocab_size, seed)
        made.append(MicroBatch(**inputs, label_tokens=1, input_tokens=24))
    return made


def test_wanda_reads_what_the_pruned_blocks_before_give() -> None:
    """Against hooks on every layer of a model in float64 whose blocks are pruned one by one, weight by weight."""
    shape = settings_of("llama", num_hidden_layers=3)
    model, oracle = (trained(shape, torch.float64) for _ in range(2))
    rows = batches(shape)
    squares: dict[str, Tensor] = {}

    def change(name: str, weight: Tensor, inputs: Any) -> Tensor:
        squares[name] = inputs.squares
        return weight * keep_of_rows(weight.abs() * inputs.squares.sqrt(), 0.5)

    change_layers(linear_layers(model), change, InputReader(model, rows, torch.device("cpu")))
    for number in range(3):
        own = {name: layer for name, layer in linear_layers(oracle).items() if block_of(name) == f"layers.{number}."}
        read: dict[str, list[Tensor]] = {name: [] for name in own}
        handles = [
            layer.register_forward_hook(lambda _, x, y, own=read[name]: own.append(x[0].flatten(0, -2)))
            for name, layer in own.items()
        ]
        for batch in rows:
            oracle(**batch.model_inputs())
        for handle in handles:
            handle.remove()
        for name, layer in own.items():
            norms = torch.cat(read[name]).norm(dim=0)
            assert torch.allclose(squares[name].sqrt(), norms, rtol=1e-10)
            with torch.no_grad():
                for row in layer.weight:
                    lowest = (row.abs() * norms).argsort()[: len(row) // 2]
                    row[lowest] = 0
    for name, layer in linear_layers(model).items():
        assert torch.equal(layer.weight, linear_layers(oracle)[name].weight), name


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert", "gpt_neox", "qwen3", "mixtral", "t5", "bart"])
def test_every_linear_layer_of_a_family_is_measured(family: str) -> None:
    """In the order in which the model computes, an encoder's before a decoder's; each with all tokens that it reads."""
    shape = settings_of(family)
    model = trained(shape, torch.float64)
    rows = batches(shape)
    if shape.architecture == "encoder_decoder":
        parts = {key: value for key, value in rows[0].model_inputs().items() if key != "labels"}
        rows = [replace(batch, others={f"encoder_{key}": value for key, value in parts.items()}) for batch in rows]
    seen: dict[str, int] = {}

    def change(name: str, weight: Tensor, inputs: Any) -> Tensor:
        seen[name] = inputs.tokens
        assert inputs.hessian is not None
        assert torch.allclose(inputs.hessian.diagonal(), inputs.squares, rtol=1e-9)
        return weight

    change_layers(linear_layers(model), change, InputReader(model, rows, torch.device("cpu")), hessians=True)
    assert seen.keys() == linear_layers(model).keys()
    assert all(tokens >= 3 * 12 for tokens in seen.values())
    if shape.architecture == "encoder_decoder":
        assert next(iter(seen)).startswith("encoder.")


NARROW = ["llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "granite", "bert", "modernbert", "albert"]


@settings(max_examples=3, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("family", NARROW)
def test_the_smaller_model_computes_what_the_masked_one_does(family: str, data: st.DataObject) -> None:
    """In float64: columns of zeros, and the matrices without them."""
    full = data.draw(shapes(family))
    of_group = full.num_attention_heads // full.key_value_heads
    shape = NarrowShape(of_group * data.draw(st.integers(1, full.key_value_heads)),
                        data.draw(st.integers(1, full.intermediate_size)))  # fmt: skip
    shape.check(full)
    masked, narrowing = trained(full, torch.float64), Narrowing(shape, full)
    reader = InputReader(masked, batches(full), torch.device("cpu")) if data.draw(st.booleans()) else None
    change_layers(linear_layers(masked), narrowing, reader)
    small = build_model(shape.of(full), attn_implementation="reference").double()
    weights = narrowing.cut(weights_of(masked))
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            assert parameter.shape == weights[name].shape, name
            parameter.copy_(weights[name])
        inputs = batches(full)[0].model_inputs()
        assert torch.allclose(small(**inputs), masked(**inputs), rtol=1e-10)
    if shape.of(full) != full:
        assert sum(w.numel() for w in weights.values()) < sum(w.numel() for w in weights_of(masked).values())


@pytest.mark.parametrize(
    ("family", "changes", "shape", "message"),
    [
        ("olmo2", {}, NarrowShape(2, None), "model.qk_norm"),
        ("t5", {}, NarrowShape(2, None), "model.architecture"),
        ("mixtral", {}, NarrowShape(None, 8), "model.num_experts"),
        ("llama", {"position_embedding": "alibi"}, NarrowShape(2, None), "model.position_embedding"),
        ("llama", {"num_key_value_heads": 2}, NarrowShape(3, None), "number of heads"),
        ("llama", {}, NarrowShape(None, 41), "number of channels"),
        ("llama", {}, NarrowShape(0, None), "number of heads"),
    ],
)
def test_what_no_smaller_model_can_express_is_refused(
    family: str, changes: dict[str, Any], shape: NarrowShape, message: str
) -> None:
    with pytest.raises(BigtrainError) as caught:
        shape.check(settings_of(family, **changes))
    assert_refused(caught, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to compress"),
        ({"prune": "wanda"}, "one amount"),
        ({"prune": "wanda", "sparsity": 0.5, "pattern": (2, 4)}, "one amount"),
        ({"sparsity": 0.5, "quantise": "int8"}, "without a method"),
        ({"prune": "magnitude", "sparsity": 1.0}, "share of the weights"),
        ({"prune": "magnitude", "pattern": (4, 4)}, "pattern"),
        ({"prune": "wanda", "sparsity": 0.5, "scope": "model"}, "--scope model"),
        ({"quantise": "int4", "group_size": 0}, "--group-size"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BigtrainError) as caught:
        compress_run(tmp_path, tmp_path / "out", Compression(**options))
    assert_refused(caught, message)


def test_a_folder_with_other_files_is_not_replaced(made: Path, tmp_path: Path) -> None:
    compression = Compression(prune="magnitude", sparsity=0.5)
    compress_run(made / "run", tmp_path / "out", compression)
    compress_run(made / "run", tmp_path / "out", compression)  # an earlier result is
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(BigtrainError) as caught:
        compress_run(made / "run", tmp_path / "out", compression)
    assert_refused(caught, "nothing was overwritten", found="thesis.txt")


def test_a_step_of_a_folder_without_steps_is_refused(made: Path, tmp_path: Path) -> None:
    compress_run(made / "run", tmp_path / "out", Compression(prune="magnitude", sparsity=0.5))
    with pytest.raises(BigtrainError) as caught:
        evaluate_run(tmp_path / "out", 3, with_baselines=False)
    assert_refused(caught, "without steps", fix="--step")
