"""An exported folder is, for `transformers`, the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bigtrain.config.errors import BigtrainError
from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert import compare_with_transformers, export_hf
from bigtrain.convert.families import weight_maps
from bigtrain.convert.hf import hf_tensor
from bigtrain.model import Decoder, build_model

END = "<|endoftext|>"
SHAPES: dict[str, dict[str, Any]] = {
    "llama-tied-grouped": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama-untied-one-key-head": {"num_attention_heads": 4, "num_key_value_heads": 1, "rope_theta": 500000.0},
    "llama-wide-heads": {"num_attention_heads": 4, "head_dim": 16, "norm_eps": 1e-3},
    "gpt2-tied": {"family": "gpt2", "num_attention_heads": 4, "tie_word_embeddings": True},
    "gpt2-untied": {"family": "gpt2", "num_attention_heads": 2, "norm_eps": 1e-3},
}


def shape(name: str) -> ModelSettings:
    common = {
        "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 56, "vocab_size": 320,
        "max_position_embeddings": 48, "initializer_range": 0.2,
    }  # fmt: skip
    return ModelSettings.model_validate(common | SHAPES[name])


def trained(settings: ModelSettings, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model in which no two parameters are alike, biases and norms included."""
    model = build_model(settings)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["def main() -> None: return 1, 2, 3\n"] * 9, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def exported(model: Decoder, tokenizer_file: Path, out: Path, **options: Any) -> Path:
    export_hf(dict(model.named_parameters()), model.settings, tokenizer_file, out, end_of_text=END, **options)
    return out


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_logits_and_gradients_in_float64(
    name: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    ours = trained(shape(name), torch.float64)
    folder = exported(ours, tokenizer_file, tmp_path / "out", dtype=torch.float64)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    input_ids = torch.randint(320, (2, 40), generator=torch.Generator().manual_seed(2))
    input_ids[0, :10] = torch.arange(10)  # special tokens too
    # Their RMSNorm computes in float32, whatever the model's type.
    atol = 1e-5 if ours.settings.family == "llama" else 1e-12
    torch.testing.assert_close(ours.logits(input_ids), theirs(input_ids).logits, rtol=0, atol=atol)

    labels = torch.cat((input_ids[:, 1:], torch.full((2, 1), -100)), dim=1)
    positions, boundaries = torch.arange(40).expand(2, 40), torch.tensor([0, 40, 80], dtype=torch.int32)
    loss = ours(input_ids, labels, positions, boundaries, 40) / 78
    loss.backward()
    their_loss = theirs(input_ids, labels=input_ids).loss
    their_loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
    named = dict(theirs.named_parameters())
    assert {weight.theirs for weight in weight_maps(ours.settings)} == named.keys()
    for weight in weight_maps(ours.settings):
        torch.testing.assert_close(
            hf_tensor(weight, gradients), named[weight.theirs].grad, rtol=1e-5, atol=1e-6, msg=weight.theirs
        )


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_self_check_finds_an_export_equal_and_a_wrong_one_not(
    name: str, dtype: torch.dtype, tokenizer_file: Path, tmp_path: Path
) -> None:
    model = trained(shape(name))
    folder = exported(model, tokenizer_file, tmp_path / "out", dtype=dtype)
    largest = model.logits(torch.arange(48)[None]).abs().max().item()
    assert compare_with_transformers(folder, model) < 1e-4 * largest
    with torch.no_grad():
        model.layers[1].self_attn.k_proj.weight.mul_(1.1)
    assert compare_with_transformers(folder, model) > 1e-3 * largest


def test_default_export_loads_in_bfloat16_and_ends_at_end_of_text(tokenizer_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = exported(trained(shape("llama-tied-grouped")), tokenizer_file, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder)
    end = Tokenizer.from_file(str(tokenizer_file)).token_to_id(END)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == model.config.eos_token_id == end
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape[1] <= 7


@pytest.mark.parametrize("name", ["llama-tied-grouped", "gpt2-tied"])
def test_auto_tokenizer_gives_our_tokens(name: str, tokenizer_file: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = exported(trained(shape(name)), tokenizer_file, tmp_path / "out")
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(tokenizer_file))
    for text in ("def main() -> None:\n    return 12  # ünïcode 漢字 \t x", f"a{END}b", "", "  leading and trailing  "):
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.decode(ours.encode(text).ids) == text
    assert theirs.eos_token == END
    assert theirs.model_max_length == 48
    assert (folder / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()


@pytest.mark.parametrize("name", ["gpt2-untied", "llama-tied-grouped"])
def test_shards_and_one_file_hold_the_same_and_any_order_will_do(
    name: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    model = trained(shape(name))
    one = load_file(exported(model, tokenizer_file, tmp_path / "one") / "model.safetensors")
    out = tmp_path / "many"
    backwards = reversed(list(model.named_parameters()))
    export_hf(backwards, model.settings, tokenizer_file, out, end_of_text=END, shard_bytes=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert sorted(path.name for path in out.glob("*.safetensors")) == files
    many = {key: tensor for file in files for key, tensor in load_file(out / file).items()}
    assert many.keys() == index["weight_map"].keys() == one.keys()
    assert all(torch.equal(many[key], one[key]) for key in one)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    assert compare_with_transformers(out, model) < 1e-3


def test_an_earlier_export_is_replaced_and_a_foreign_folder_never(tokenizer_file: Path, tmp_path: Path) -> None:
    model, out = trained(shape("gpt2-tied")), tmp_path / "out"
    exported(model, tokenizer_file, out, shard_bytes=20_000)
    exported(model, tokenizer_file, out)
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    with pytest.raises(BigtrainError, match="did not export"):
        exported(model, tokenizer_file, foreign)
    assert [path.name for path in foreign.iterdir()] == ["config.json"]


def test_wrong_weights_are_refused_by_name(tokenizer_file: Path, tmp_path: Path) -> None:
    model, out = trained(shape("gpt2-tied")), tmp_path / "out"
    weights = dict(model.named_parameters())
    missing = {key: tensor for key, tensor in weights.items() if key != "layers.1.self_attn.v_proj.bias"}
    surplus = weights | {"layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}
    misshapen = weights | {"norm.weight": torch.zeros(7)}
    for wrong, named in (
        (missing, "layers.1.self_attn.v_proj.bias"),
        (surplus, "layers.9.mlp.up_proj.weight"),
        (misshapen, "norm.weight"),
    ):
        with pytest.raises(BigtrainError) as caught:
            export_hf(wrong, model.settings, tokenizer_file, out, end_of_text=END)
        assert named in str(caught.value)
        assert not out.exists()


def test_a_shape_that_transformers_refuses_is_refused_at_export(tokenizer_file: Path, tmp_path: Path) -> None:
    settings = shape("llama-wide-heads").model_copy(update={"num_attention_heads": 3, "num_key_value_heads": 3})
    with pytest.raises(BigtrainError, match="multiple of num_attention_heads"):
        exported(trained(settings), tokenizer_file, tmp_path / "out")


def test_a_tokenizer_without_the_end_of_text_token_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    model = trained(shape("gpt2-tied"))
    with pytest.raises(BigtrainError, match="no token '</s>'"):
        export_hf(model.named_parameters(), model.settings, tokenizer_file, tmp_path / "out", end_of_text="</s>")
