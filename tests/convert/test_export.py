"""An exported folder loads in `transformers` as it is, and is made whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bigtrain.base.errors import BigtrainError
from bigtrain.convert import compare_with_transformers, export_hf
from bigtrain.trained.text_model import TextModel
from tests.convert.helpers import ENCODERS, END, OF_BOTH, exported, settings_of, trained, weights_of


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_self_check_finds_an_export_equal_and_a_wrong_one_not(
    family: str, dtype: torch.dtype, tokenizer_file: Path, tmp_path: Path
) -> None:
    model = trained(settings_of(family))
    folder = exported(model, tokenizer_file, tmp_path / "out", dtype=dtype)
    same = compare_with_transformers(folder, weights_of(model), model.settings, dtype)
    same.check(folder)
    assert same.greedy_tokens_alike > 0.9 * same.greedy_tokens
    with torch.no_grad():
        model.layers[1].self_attn.k_proj.weight.mul_(1.5)
    other = compare_with_transformers(folder, weights_of(model), model.settings, dtype)
    with pytest.raises(BigtrainError, match="does not compute what bigtrain computes"):
        other.check(folder)


def test_default_export_loads_in_bfloat16_and_ends_at_end_of_text(tokenizer_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = exported(
        trained(settings_of("llama", num_key_value_heads=2, tie_word_embeddings=True)), tokenizer_file, tmp_path / "out"
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    end = Tokenizer.from_file(str(tokenizer_file)).token_to_id(END)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == model.config.eos_token_id == end
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape[1] <= 7


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_auto_tokenizer_gives_our_tokens(family: str, tokenizer_file: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = exported(trained(settings_of(family)), tokenizer_file, tmp_path / "out")
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(tokenizer_file))
    for text in ("def main() -> None:\n    return 12  # ünïcode 漢字 \t x", f"a{END}b", "", "  leading and trailing  "):
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.decode(ours.encode(text).ids) == text
    assert theirs.eos_token == END
    assert theirs.model_max_length == 48
    assert (folder / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_shards_and_one_file_hold_the_same(family: str, tokenizer_file: Path, tmp_path: Path) -> None:
    model = trained(settings_of(family))
    one = load_file(exported(model, tokenizer_file, tmp_path / "one") / "model.safetensors")
    out = tmp_path / "many"
    exported(model, tokenizer_file, out, shard_bytes=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert sorted(path.name for path in out.glob("*.safetensors")) == files
    many = {key: tensor for file in files for key, tensor in load_file(out / file).items()}
    assert many.keys() == index["weight_map"].keys() == one.keys()
    assert all(torch.equal(many[key], one[key]) for key in one)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    compare_with_transformers(out, weights_of(model), model.settings, torch.bfloat16).check(out)


def test_an_earlier_export_is_replaced_and_a_foreign_folder_never(tokenizer_file: Path, tmp_path: Path) -> None:
    model, out = trained(settings_of("gpt2", tie_word_embeddings=True)), tmp_path / "out"
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
    model, out = trained(settings_of("gpt2", tie_word_embeddings=True)), tmp_path / "out"
    weights = weights_of(model)
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
    settings = settings_of("llama", num_attention_heads=3, head_dim=16)
    with pytest.raises(BigtrainError, match="multiple of num_attention_heads"):
        exported(trained(settings), tokenizer_file, tmp_path / "out")


def test_a_roberta_whose_padding_token_is_one_of_texts_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    """transformers would not count it when it counts positions."""
    for offset, token in ((1, "endoftext"), (5, "id position_offset - 1 = 4")):
        model = trained(settings_of("roberta", position_offset=offset))
        with pytest.raises(BigtrainError, match="count the positions") as refused:
            exported(model, tokenizer_file, tmp_path / "out")
        assert token in str(refused.value.found)
    exported(trained(settings_of("roberta", position_offset=320)), tokenizer_file, tmp_path / "out")


@pytest.mark.parametrize("family", sorted(OF_BOTH))
def test_an_encoder_decoder_loads_as_a_model_from_text_to_text(
    family: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    """The self-check finds it equal, and transformers generates from the token that its decoder starts with."""
    from transformers import AutoModelForSeq2SeqLM

    model = trained(settings_of(family))
    out = exported(model, tokenizer_file, tmp_path / "out", dtype=torch.float32, decoder_start="<|padding 1|>")
    compare_with_transformers(out, weights_of(model), model.settings, torch.float32).check(out)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(out)
    assert theirs.config.decoder_start_token_id == theirs.generation_config.decoder_start_token_id == 1
    assert theirs.generate(torch.tensor([[4, 5, 6]]), max_new_tokens=4, do_sample=False)[0, 0] == 1
    with pytest.raises(BigtrainError, match="no token '<pad>'"):
        exported(model, tokenizer_file, tmp_path / "other", decoder_start="<pad>")


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_an_encoder_loads_as_a_masked_language_model(family: str, tokenizer_file: Path, tmp_path: Path) -> None:
    """With the logits that we compute, positions counted by transformers; and it generates no text here."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = trained(settings_of(family))
    folder = exported(model, tokenizer_file, tmp_path / "out", dtype=torch.float32)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("def main() -> None: return 1")["input_ids"]])
    with torch.no_grad():
        theirs = AutoModelForMaskedLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(model.logits(ids), theirs, rtol=1e-4, atol=1e-4)
    assert not (folder / "generation_config.json").exists()
    with pytest.raises(BigtrainError, match="continues no text"):
        TextModel.open(folder)


def test_a_tokenizer_without_the_end_of_text_token_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    model = trained(settings_of("gpt2", tie_word_embeddings=True))
    with pytest.raises(BigtrainError, match="no token '</s>'"):
        export_hf(weights_of(model), model.settings, tokenizer_file, tmp_path / "out", end_of_text="</s>")
