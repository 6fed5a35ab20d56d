"""A folder made by transformers, or exported for it, generates the tokens that transformers generates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import TokenizerSettings
from bigtrain.convert import import_hf
from bigtrain.data.format.tokenizer import train_tokenizer
from bigtrain.model import Sampling, generate
from bigtrain.trained.text_model import TextModel

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": SHAPE | {"sliding_window": 6},
    "gemma2": SHAPE | {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "qwen3_moe": SHAPE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
PROMPTS = ["the number 1 of", "many of the number of many 27", "n", ""]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, as `save_pretrained` writes it, with a tokenizer that begins every text with a token."""
    path: Path = tmp_path_factory.mktemp(request.param)
    texts = (f"the number {number} of many" for number in range(500))
    tokenizer = Tokenizer.from_str(train_tokenizer(TokenizerSettings(vocab_size=290), texts).decode())
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    config = transformers.AutoConfig.for_model(
        request.param, vocab_size=290, bos_token_id=end, eos_token_id=end, pad_token_id=None, **KINDS[request.param]
    )
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = [end, 7]
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_greedy_tokens_are_those_of_transformers_generate(folder: Path) -> None:
    """For prompts of different lengths in one batch, which transformers pads at the left; with a penalty, too."""
    ours = TextModel.open(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), padding_side="left")
    fast.pad_token = "<|endoftext|>"
    batch = fast(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    assert theirs.dtype == ours.decoder.embed_tokens.weight.dtype == torch.float32
    for penalty in (1.0, 1.3):
        wanted = theirs.generate(
            **batch, do_sample=False, max_new_tokens=24, repetition_penalty=penalty, pad_token_id=0
        )[:, batch["input_ids"].shape[1] :]
        made = ours.continue_texts(
            PROMPTS, max_new_tokens=24, sampling=Sampling(temperature=0, repetition_penalty=penalty)
        ).texts
        for row, text in zip(wanted.tolist(), made, strict=True):
            assert text.tokens == row[: len(text.tokens)]
            assert text.ended == ("end_of_text" if text.tokens[-1] in ours.end_of_text else "length")
            assert len(text.tokens) == 24 or text.ended == "end_of_text"
        assert len({tuple(text.tokens) for text in made}) > 1


def test_an_imported_folder_generates_the_same(folder: Path, tmp_path: Path) -> None:
    import_hf(folder, tmp_path / "imported")
    prompts = [[1, 2, 3], [40]]
    made = (
        generate(TextModel.open(path).decoder, prompts, max_new_tokens=8, sampling=Sampling(seed=2))
        for path in (folder, tmp_path / "imported")
    )
    assert next(made) == next(made)
    assert TextModel.open(tmp_path / "imported").encode("the") == TextModel.open(folder).encode("the")


def test_a_folder_has_no_steps_and_needs_its_tokenizer(folder: Path) -> None:
    with pytest.raises(BigtrainError, match="one model, without steps"):
        TextModel.open(folder, step=3)
    tokenizer = folder / "tokenizer.json"
    tokenizer.rename(folder / "aside")
    try:
        with pytest.raises(BigtrainError, match="no tokenizer can be read"):
            TextModel.open(folder)
    finally:
        (folder / "aside").rename(tokenizer)


def changed_folder(folder: Path, out: Path, **files: dict[str, Any]) -> Path:
    """A copy in which keys of JSON files are changed; None removes a key."""
    shutil.copytree(folder, out)
    for name, changes in files.items():
        path = out / f"{name}.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return out


def greedily(folder: Path, prompts: list[str], tokens: int = 24) -> list[list[int]]:
    """What transformers generates, from one prompt at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)["input_ids"]
        inputs = {"input_ids": ids} if ids.numel() else {}
        made = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)[0].tolist()
        found.append(made[max(ids.numel(), 1) :])
    return found


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_what_else_a_tokenizer_file_holds_changes_no_prompt(folder: Path, tmp_path: Path) -> None:
    """Padding and truncation, as fine-tuning leaves them; an `add_bos_token` that tokenizer.json outranks; as
    transformers reads them, also after an import. Dropout, which would make each text another, is off."""
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.enable_padding(direction="left", length=30)
    saved.enable_truncation(3)
    content = json.loads(saved.to_str())
    noisy = changed_folder(folder, tmp_path / "noisy", tokenizer=content)
    assert [TextModel.open(noisy).encode(prompt) for prompt in PROMPTS] == [
        TextModel.open(folder).encode(prompt) for prompt in PROMPTS
    ]
    prompts = PROMPTS[:-1]
    made = TextModel.open(noisy).continue_texts(prompts, max_new_tokens=24, sampling=Sampling(temperature=0)).texts
    assert [text.tokens for text in made] == greedily(noisy, prompts)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "bos_token": "<|endoftext|>"}
    (noisy / "tokenizer_config.json").write_text(json.dumps(about))
    plain = TextModel.open(noisy)
    made = plain.continue_texts(prompts, max_new_tokens=24, sampling=Sampling(temperature=0)).texts
    assert [text.tokens for text in made] == greedily(noisy, prompts)
    import_hf(noisy, tmp_path / "imported", end_of_text="<|endoftext|>")
    assert TextModel.open(tmp_path / "imported").encode("the") == plain.encode("the")
    content["model"]["dropout"] = 0.9
    (noisy / "tokenizer.json").write_text(json.dumps(content))
    assert TextModel.open(noisy).encode(PROMPTS[1]) == plain.encode(PROMPTS[1])


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_without_an_end_of_text_a_text_goes_on_to_its_length(folder: Path, tmp_path: Path) -> None:
    """Neither config.json nor generation_config.json names a token that ends or begins a text, as transformers."""
    nothing = {"eos_token_id": None, "bos_token_id": None}
    endless = changed_folder(folder, tmp_path / "endless", config=nothing, generation_config=nothing)
    model = TextModel.open(endless)
    assert (model.end_of_text, model.beginning) == ((), None)
    made = model.continue_texts(PROMPTS, max_new_tokens=24, sampling=Sampling(temperature=0)).texts
    assert [(len(text.tokens), text.ended) for text in made] == [(24, "length")] * len(PROMPTS)
    assert [text.tokens for text in made] == greedily(endless, PROMPTS)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"generation_config": {"eos_token_id": "</s>"}}, "eos_token_id in"),
        ({"generation_config": {"eos_token_id": [[1]]}}, "eos_token_id in"),
        ({"generation_config": {"eos_token_id": True}}, "eos_token_id in"),
        ({"config": {"bos_token_id": 1.5}}, "bos_token_id in"),
    ],
)
def test_odd_ids_in_a_folder_are_one_error(
    folder: Path, files: dict[str, dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BigtrainError, match=message):
        TextModel.open(changed_folder(folder, tmp_path / "odd", **files))
    (tmp_path / "odd" / "generation_config.json").write_text("[]")  # as transformers does, config.json is read
    if "config" not in files:
        assert TextModel.open(tmp_path / "odd").end_of_text == (0,)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_token_that_the_model_has_no_embedding_of_is_refused(folder: Path, tmp_path: Path) -> None:
    """The post-processor puts an id before a text that is beyond the vocabulary."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"]["<|endoftext|>"]["ids"] = [4096]
    odd = changed_folder(folder, tmp_path / "odd", tokenizer=content)
    with pytest.raises(BigtrainError, match=r"(?s)no embedding.*id 4096.*below 290"):
        TextModel.open(odd).encode("the")
