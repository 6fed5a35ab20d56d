"""What an encoder-decoder writes of a text is the same in its run, in its export, in an import, and in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.convert import import_hf
from bigtrain.data import DataTokenizer, vocabulary_size
from bigtrain.model import Sampling, build_model
from bigtrain.trained.text_model import TextModel
from tests.convert.helpers import settings_of
from tests.convert.test_tokenizers import exported, run_settings
from tests.data.tokenizer_files import BEGIN, END, PAD, changed

transformers = pytest.importorskip("transformers")

SENTINELS = [f"<extra_id_{number}>" for number in range(3)]
PROMPTS = ["the quick <extra_id_0> fox", "fox", "", "a brown <extra_id_0> jumps <extra_id_1> the"]


@pytest.fixture(params=["t5_v1_1", "marian"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TextModel, Path]:
    """A run of random weights, and its export."""
    objective, start = {"t5_v1_1": ("span_corruption", PAD), "marian": ("denoising", END)}[request.param]
    content = changed("byte_level", begin=[BEGIN]).with_special_tokens([*SENTINELS, "[MASK]"])
    model = build_model(settings_of(request.param, initializer_range=0.4))
    model.init_weights(3)
    with torch.no_grad():  # rows that are alike: a random model of few layers repeats itself
        model.lm_head.weight.mul_(2.0)
    sections = {"objective": {"name": objective, "decoder_start_token": start}}
    settings = run_settings(tmp_path, model, content, "auto", **sections)
    rule = DataTokenizer.open(tmp_path).begin_of_text
    folder = exported(model, content, tmp_path / "hf", begin_of_text=rule, decoder_start=start)
    return TextModel.in_training(model.eval(), settings), folder


def test_a_run_its_export_and_transformers_write_the_same(made: tuple[TextModel, Path], tmp_path: Path) -> None:
    """Greedily, also from an import, and with the ids that transformers' tokenizer gives a text to read."""
    run, folder = made
    import_hf(folder, tmp_path / "imported")
    greedy: dict[str, Any] = {"max_new_tokens": 12, "sampling": Sampling(temperature=0, repetition_penalty=1.5)}
    ours = run.continue_texts(PROMPTS, **greedy).texts
    for other in (folder, tmp_path / "imported"):
        assert TextModel.open(other).continue_texts(PROMPTS, **greedy).texts == ours
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    no_tokens = list(range(vocabulary_size(run.tokenizer), run.decoder.settings.vocab_size))
    for prompt, text in zip(PROMPTS, ours, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert ids[0].tolist() == run.encode(prompt) and ids[0, -1] == tokenizer.eos_token_id
        written = theirs.generate(
            ids, do_sample=False, max_new_tokens=12, repetition_penalty=1.5, suppress_tokens=no_tokens
        )
        assert written[0].tolist() == [run.decoder_start, *text.tokens]
    assert len({tuple(text.tokens) for text in ours}) > 1


def test_sentinels_are_read_and_shown(made: tuple[TextModel, Path]) -> None:
    """One token each in what is read, and part of the text that is written; what ends a text is not."""
    run, _ = made
    first, second = (run.tokenizer.token_to_id(token) for token in SENTINELS[:2])
    assert [run.encode(PROMPTS[3]).count(token) for token in (first, second)] == [1, 1]
    written = [first, *run.encode("fox")[1:-1], second, *run.end_of_text]
    assert run.tokenizer.decode(written, skip_special_tokens=True) == "<extra_id_0>fox<extra_id_1>"
    assert run.shown("fox") == "fox\n"


def test_a_folder_without_a_start_for_its_decoder_is_refused(made: tuple[TextModel, Path], tmp_path: Path) -> None:
    _, folder = made
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        left = {key: value for key, value in config.items() if not key.endswith(("start_token_id", "os_token_id"))}
        (folder / name).write_text(json.dumps(left))
    with pytest.raises(BigtrainError, match="which token an encoder-decoder's texts start with"):
        TextModel.open(folder)
