"""A Hugging Face folder is taken over bit for bit, or refused with the list of what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from bigtrain.base.errors import BigtrainError
from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert import Imported, compare_with_transformers, export_hf, import_hf
from bigtrain.convert.config_json import differences
from bigtrain.convert.families import FAMILIES
from bigtrain.convert.imported import MANIFEST, read_model, write_model
from tests.convert.helpers import END, T5, VOCABULARY, auto_class, exported, settings_of, shapes, trained, weights_of


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("family", FAMILIES)
@given(
    data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), shard_bytes=st.sampled_from([7000, 10**9])
)
@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_round_is_bit_identical_from_either_end(
    family: str, tokenizer_file: Path, data: st.DataObject, dtype: torch.dtype, shard_bytes: int
) -> None:
    model = trained(data.draw(shapes(family)))
    with TemporaryDirectory() as name:
        folder = Path(name)
        there = exported(model, tokenizer_file, folder / "there", dtype=dtype, shard_bytes=shard_bytes)
        found = import_hf(there, folder / "ours", shard_bytes=shard_bytes)
        imported = Imported(folder / "ours")
        assert found.end_of_text == imported.end_of_text == END
        assert differences(model.settings, imported.settings) == {}
        assert_same_bits({k: v.to(dtype) for k, v in weights_of(model).items()}, dict(imported))
        export_hf(
            imported, imported.settings, folder / "ours/tokenizer.json", folder / "back", end_of_text=END, dtype=dtype
        )
        assert_same_bits(tensors_in(there), tensors_in(folder / "back"))
        assert json.loads((folder / "back/config.json").read_text()) == json.loads((there / "config.json").read_text())
        assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saved_is_what_we_compute(family: str, tokenizer_file: Path, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING

    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "n_inner": 40, "max_position_embeddings": 48, "num_key_value_heads": 2, "head_dim": 8,
        "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "bos_token_id": None, "pad_token_id": None, "initializer_range": 0.2, "embedding_size": 12,
        "cls_token_id": None, "sep_token_id": None, "init_std": 0.2, "decoder_start_token_id": 0,
        "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "decoder_attention_heads": 4, "decoder_layers": 3, "d_ff": 40,
        "num_decoder_layers": 3, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 40,
    }  # fmt: skip
    if family == "roberta":
        shape |= {"pad_token_id": 1}
    if family == "xlnet":
        del shape["max_position_embeddings"]  # it has none
    model_type = "t5" if family in T5 else family
    if family == "t5_v1_1":
        shape |= {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
    known = CONFIG_MAPPING[model_type]()
    kept = {key: value for key, value in shape.items() if hasattr(known, key)}
    config = CONFIG_MAPPING[model_type](**kept, eos_token_id=0)
    theirs = auto_class(family).from_config(config)
    if family == "t5_v1_1":  # transformers 5 unties a head only when it loads a file with one
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach() + 0.1)
    there, ours = tmp_path / "there", tmp_path / "ours"
    theirs.save_pretrained(there)
    shutil.copyfile(tokenizer_file, there / "tokenizer.json")
    found = import_hf(there, ours)
    imported = Imported(ours)
    assert found.end_of_text == END  # token 0
    compare_with_transformers(there, imported, found.settings, torch.float32).check(there)
    export_hf(imported, found.settings, tokenizer_file, tmp_path / "back", end_of_text=END, dtype=torch.float32)
    assert_same_bits(tensors_in(there), tensors_in(tmp_path / "back"))


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture
def changed(tokenizer_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """An exported folder with other tensors or other keys of config.json."""

    def make(model: ModelSettings, tensors: Change | None = None, **config: Any) -> Path:
        folder = exported(trained(model), tokenizer_file, tmp_path / "there", dtype=torch.float32)
        if tensors is not None:
            save_file({k: v.contiguous() for k, v in tensors(tensors_in(folder)).items()}, folder / "model.safetensors")
        if config:
            content = json.loads((folder / "config.json").read_text()) | config
            (folder / "config.json").write_text(json.dumps(content))
        return folder

    return make


def renamed(old: str, new: str) -> Change:
    return lambda tensors: {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}


PUBLISHED: dict[str, tuple[dict[str, Any], Change]] = {
    "gpt2 without its prefix": ({"family": "gpt2"}, renamed("transformer.", "")),
    "gpt2 with its masks": (
        {"family": "gpt2"},
        lambda t: renamed("transformer.", "")(t)
        | {"h.0.attn.bias": torch.ones(1, 1, 48, 48), "h.1.attn.masked_bias": torch.tensor(-1e4)},
    ),
    "gpt_neox with its masks and frequencies": (
        {"family": "gpt_neox"},
        lambda t: t
        | {
            "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 48, 48),
            "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e4),
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
        },
    ),
    "gpt_neox with a head of another name": ({"family": "gpt_neox"}, renamed("embed_out", "lm_head")),
    "llama without its prefix": ({"family": "llama"}, renamed("model.", "")),
    "llama with its frequencies": (
        {"family": "llama"}, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    ),
    "a tied head stored twice": (
        {"family": "llama", "tie_word_embeddings": True},
        lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()},
    ),
    "bert of the first files, with its other heads": (
        {"family": "bert"},
        lambda t: renamed("LayerNorm.weight", "LayerNorm.gamma")(renamed("LayerNorm.bias", "LayerNorm.beta")(t))
        | {
            "bert.embeddings.position_ids": torch.arange(48)[None],
            "bert.pooler.dense.weight": torch.ones(32, 32),
            "bert.pooler.dense.bias": torch.ones(32),
            "cls.seq_relationship.weight": torch.ones(2, 32),
            "cls.seq_relationship.bias": torch.ones(2),
        },
    ),
    "roberta with its head stored twice": (
        {"family": "roberta"},
        lambda t: t
        | {
            "lm_head.decoder.weight": t["roberta.embeddings.word_embeddings.weight"].clone(),
            "lm_head.decoder.bias": t["lm_head.bias"].clone(),
        },
    ),
    "albert with its bias in the decoder": (
        {"family": "albert"}, renamed("predictions.bias", "predictions.decoder.bias"),
    ),
    "a tied head of gpt_neox stored twice": (
        {"family": "gpt_neox", "tie_word_embeddings": True},
        lambda t: t | {"embed_out.weight": t["gpt_neox.embed_in.weight"].clone()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_of_published_files_are_understood(name: str, changed: Callable[..., Path], tmp_path: Path) -> None:
    values, change = PUBLISHED[name]
    model = settings_of(**values)
    import_hf(changed(model, change), tmp_path / "ours")
    assert_same_bits(weights_of(trained(model)), dict(Imported(tmp_path / "ours")))


def test_a_bias_of_bert_that_is_there_twice_has_to_be_the_same(changed: Callable[..., Path], tmp_path: Path) -> None:
    there = changed(settings_of("bert"), lambda t: t | {"cls.predictions.decoder.bias": torch.ones(VOCABULARY)})
    with pytest.raises(BigtrainError, match=r"a copy of: cls\.predictions\.decoder\.bias"):
        import_hf(there, tmp_path / "ours")


def test_heads_that_an_encoder_here_lacks_are_left_out_with_a_note(
    changed: Callable[..., Path], tmp_path: Path
) -> None:
    there = changed(settings_of("roberta"), lambda t: t | {"roberta.pooler.dense.weight": torch.ones(32, 32)})
    assert any("roberta.pooler.dense.weight" in note for note in import_hf(there, tmp_path / "ours").notes)


REFUSED: dict[str, tuple[dict[str, Any], Change, str]] = {
    "missing, surplus and misshapen together": (
        {},
        lambda t: {
            **{k: v for k, v in t.items() if "layers.1.mlp.up_proj" not in k},
            "model.norm.weight": torch.ones(7),
            "model.layers.0.self_attn.q_norm.weight": torch.ones(8),
        },
        r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight; 1 surplus: model\.layers\.0\.self_attn\.q_norm\.weight; "
        r"1 misshapen: model\.norm\.weight \[7\] instead of \[32\]",
    ),
    "a layer too many": (
        {},
        lambda t: t | {k.replace("layers.1", "layers.2"): v.clone() for k, v in t.items()},
        r"9 surplus: model\.layers\.2",
    ),
    "one twice": ({}, lambda t: t | {"norm.weight": torch.ones(32)}, r"1 surplus: "),
    "whole numbers": (
        {}, lambda t: t | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, r"model\.norm\.weight I8",
    ),
    "another head though tied": (
        {"tie_word_embeddings": True}, lambda t: t | {"lm_head.weight": torch.ones(VOCABULARY, 32)}, "tied to it",
    ),
    "a head where there is none": (
        {}, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}, r"1 missing: lm_head\.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_tensors_are_refused_all_at_once(name: str, changed: Callable[..., Path], tmp_path: Path) -> None:
    values, change, found = REFUSED[name]
    there = changed(settings_of("llama", **values), change)
    with pytest.raises(BigtrainError, match=found):
        import_hf(there, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_damaged_missing_and_unlisted_files_are_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    there, model = changed(settings_of("llama")), tmp_path / "there/model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BigtrainError, match="is damaged"):
        import_hf(there, tmp_path / "ours")
    model.unlink()
    with pytest.raises(BigtrainError, match="no weights"):
        import_hf(there, tmp_path / "ours")
    (there / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BigtrainError, match=r"pytorch_model\.bin"):
        import_hf(there, tmp_path / "ours")
    model.write_bytes(whole)
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "x": "model.safetensors"}}
    (there / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BigtrainError, match="and the files differ"):
        import_hf(there, tmp_path / "ours")
    for name in ("../secret.safetensors", "/secret.safetensors", "..", "", "a\\b", "a\0b", None):
        (there / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        with pytest.raises(BigtrainError, match=r"model\.safetensors\.index\.json has a path"):
            import_hf(there, tmp_path / "ours")
    with pytest.raises(BigtrainError, match="is no Hugging Face model"):
        import_hf(tmp_path, tmp_path / "ours")


@pytest.mark.parametrize("ids", [None, [0, 1], [], 319])
def test_an_end_of_text_that_is_not_clear_is_asked_for(
    ids: object, changed: Callable[..., Path], tmp_path: Path
) -> None:
    there = changed(settings_of("gpt2"), eos_token_id=ids)
    with pytest.raises(BigtrainError, match="--end-of-text"):
        import_hf(there, tmp_path / "ours")
    with pytest.raises(BigtrainError, match="no token '</s>'"):
        import_hf(there, tmp_path / "ours", end_of_text="</s>")
    assert import_hf(there, tmp_path / "ours", end_of_text=END).end_of_text == END
    assert import_hf(changed(settings_of("gpt2"), eos_token_id=[0]), tmp_path / "ours").end_of_text == END


def test_a_tokenizer_of_another_model_or_none_is_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    there = changed(settings_of("llama", vocab_size=256))
    with pytest.raises(BigtrainError, match="more tokens than the model has embeddings"):
        import_hf(there, tmp_path / "ours")
    (there / "tokenizer.json").unlink()
    with pytest.raises(BigtrainError, match="no tokenizer can be read"):
        import_hf(there, tmp_path / "ours")


def test_an_earlier_import_is_replaced_and_a_foreign_folder_never(changed: Callable[..., Path], tmp_path: Path) -> None:
    there, ours = changed(settings_of("llama")), tmp_path / "ours"
    import_hf(there, ours, shard_bytes=9000)
    import_hf(there, ours)
    assert [path.name for path in ours.glob("*.safetensors")] == ["model.safetensors"]
    with pytest.raises(BigtrainError, match="did not import"):
        import_hf(there, there)
    assert (there / "config.json").is_file()


@pytest.mark.parametrize("file", ["model.safetensors", "model.yaml", "tokenizer.json"])
def test_a_single_changed_byte_is_found_before_it_is_used(
    file: str, changed: Callable[..., Path], tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    import_hf(changed(settings_of("llama")), ours)
    content = bytearray((ours / file).read_bytes())
    content[-5] ^= 1
    (ours / file).write_bytes(content)
    with pytest.raises(BigtrainError, match="is not what was imported"):
        dict(Imported(ours))
    if file == "model.safetensors":  # who asks for a name alone, as ranks that do not read at ZeRO 3, meets no error
        assert all(name in Imported(ours) for name in weights_of(trained(settings_of("llama"))))
    (ours / MANIFEST).unlink()
    with pytest.raises(BigtrainError, match="was not written by `bigtrain import`"):
        Imported(ours)


@pytest.mark.parametrize("name", ["../secret", "..", "", "a\\b", "a\0b"])
def test_an_import_names_no_files_outside_its_folder(name: str, changed: Callable[..., Path], tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    import_hf(changed(settings_of("llama")), ours)
    manifest = json.loads((ours / MANIFEST).read_text())
    manifest["files"][name] = "0" * 32
    (ours / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BigtrainError, match=r"manifest\.json has a path"):
        Imported(ours)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_section_model_is_read_back_as_it_was_written(family: str, tmp_path: Path, data: st.DataObject) -> None:
    model = data.draw(shapes(family))
    write_model(tmp_path / "model.yaml", model, ["a comment"])
    assert read_model(tmp_path / "model.yaml") == model


class TestContinuing:
    """What a run may change about imported weights, and what not."""

    @pytest.fixture
    def imported(self, changed: Callable[..., Path], tmp_path: Path) -> Imported:
        import_hf(changed(settings_of("llama")), tmp_path / "ours")
        return Imported(tmp_path / "ours")

    def test_its_own_section_and_another_name_for_it_are_taken(self, imported: Imported) -> None:
        assert imported.check_model(imported.settings) == []
        assert imported.check_model(settings_of("granite", norm_eps=1e-5, z_loss_coef=1e-4)) == []

    def test_a_longer_context_is_taken_aloud(self, imported: Imported) -> None:
        longer = {"max_position_embeddings": 96, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
        notes = imported.check_model(settings_of("llama", **longer))
        assert [note.split(" is ")[0] for note in notes] == ["model.max_position_embeddings", "model.rope_scaling"]

    @pytest.mark.parametrize(
        "values",
        [{"hidden_size": 64}, {"rope_theta": 1e6}, {"norm_eps": 1e-6}, {"vocab_size": 384}, {"qk_norm": "head"}],
    )
    def test_anything_else_is_refused_with_both_values(self, imported: Imported, values: dict[str, Any]) -> None:
        (key,) = values
        with pytest.raises(BigtrainError) as caught:
            imported.check_model(settings_of("llama", **values))
        assert f"{key} {values[key]}" in str(caught.value.found)
        assert f"{key} {getattr(imported.settings, key)}" in str(caught.value.wanted)

    def test_learned_positions_cannot_grow(self, changed: Callable[..., Path], tmp_path: Path) -> None:
        import_hf(changed(settings_of("gpt2")), tmp_path / "gpt2")
        with pytest.raises(BigtrainError, match="max_position_embeddings 96"):
            Imported(tmp_path / "gpt2").check_model(settings_of("gpt2", max_position_embeddings=96))

    def test_data_of_another_tokenizer_are_refused_and_further_tokens_are_not(
        self, imported: Imported, tokenizer_file: Path, tmp_path: Path
    ) -> None:
        imported.check_tokenizer(tokenizer_file)
        more = Tokenizer.from_file(str(tokenizer_file))
        more.add_special_tokens(["<|more|>"])
        more.save(str(tmp_path / "more.json"))
        imported.check_tokenizer(tmp_path / "more.json")
        content = json.loads(tokenizer_file.read_text())
        content["model"]["vocab"] |= {"a": content["model"]["vocab"]["b"], "b": content["model"]["vocab"]["a"]}
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(BigtrainError, match="not made with the tokenizer"):
            imported.check_tokenizer(tmp_path / "other.json")
