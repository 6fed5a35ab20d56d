"""An exported folder gives texts the ids, and continues them with the tokens, that the run gives them."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config import DataSettings, ModelSettings, Settings
from bigtrain.convert import export_hf, import_hf, read_vocabulary
from bigtrain.data import BeginOfText, DataTokenizer, TokenizerContent, encode_text, vocabulary_size
from bigtrain.data.format.layout import tokenizer_request, write_record
from bigtrain.data.format.tokenizer import begin_of_text
from bigtrain.model import Decoder, Sampling, Transformer, build_model
from bigtrain.trained.text_model import TextModel
from tests.convert.helpers import weights_of
from tests.data.helpers import data_settings, jsonl_source, make, sentences, write_jsonl
from tests.data.tokenizer_files import BEGIN, END, KINDS, PAD, TEXTS, TOOL, changed, contents

transformers = pytest.importorskip("transformers")

NUMBERS = count()
STARTS = st.sampled_from([(), (BEGIN,), (END,), (BEGIN, PAD)])


@pytest.fixture(scope="module")
def model() -> Decoder:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = build_model(
        ModelSettings.model_validate(
            {**shape, "vocab_size": 320, "max_position_embeddings": 64, "initializer_range": 0.5}
        )
    )
    model.init_weights(0)
    return model.eval()


def exported(model: Transformer, content: TokenizerContent, out: Path, **options: Any) -> Path:
    file = out.with_suffix(".json")
    file.write_bytes(content.to_bytes())
    export_hf(weights_of(model), model.settings, file, out, end_of_text=END, dtype=torch.float32, **options)
    return out


@given(content=contents(), texts=st.lists(TEXTS, min_size=1, max_size=5), start=STARTS, before_prompts=st.booleans())
@example(
    content=changed("unigram", padding=True, truncation=True, begin=[BEGIN], end_is="piece", tool={"rstrip": True}),
    texts=[f"the {END} fox", "", f"a {TOOL}  b"], start=(BEGIN,), before_prompts=True,
)  # fmt: skip
@settings(max_examples=25)
def test_transformers_gives_the_ids_that_generate_gives(
    model: Decoder,
    tmp_path_factory: pytest.TempPathFactory,
    content: TokenizerContent,
    texts: list[str],
    start: tuple[str, ...],
    before_prompts: bool,
) -> None:
    begin = BeginOfText(tuple(content.library.token_to_id(token) for token in start), before_prompts)
    folder = exported(model, content, tmp_path_factory.getbasetemp() / f"{next(NUMBERS)}", begin_of_text=begin)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = content.as_trained(END, begin).for_prompts()
    again = TextModel.open(folder)
    assert theirs.eos_token == END
    assert theirs.bos_token_id == (begin.ids[0] if begin.ids else None)
    for text in texts:
        ids = encode_text(ours, text, add_special_tokens=True)
        assert theirs(text)["input_ids"] == ids
        assert encode_text(again.tokenizer, text, add_special_tokens=True) == ids


def run_settings(
    directory: Path, model: Transformer, content: TokenizerContent, choice: str, **sections: Any
) -> Settings:
    """Settings of a run over a data folder of which only the tokenizer is built."""
    (directory / "tokenizer.json").write_bytes(content.to_bytes())
    values = {
        "dir": str(directory), "sequence_length": 32, "sources": [{"name": "a", "kind": "python_stdlib"}],
        "tokenizer": {"path": str(directory), "end_of_text": END, "begin_of_text": choice},
    }  # fmt: skip
    data = DataSettings.model_validate(values)
    begin = begin_of_text(data.tokenizer, content)
    write_record(directory, {"tokenizer": tokenizer_request(data), "hash": "", "begin_of_text": begin.to_json()})
    rest = {"run_dir": str(directory / "run"), "train": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1}}
    own = {"model": model.settings.model_dump(), "data": data.model_dump()}
    return Settings.model_validate({**rest, **own, **sections})


PROMPTS = ["the quick", f"one {END} two", "fox", ""]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begin", ["own", "end of text", "named", "none"])
def test_a_run_and_its_export_continue_prompts_alike(kind: str, begin: str, model: Decoder, tmp_path: Path) -> None:
    """Greedily, bigtrain with the run and with the folder, and transformers with the folder; from nothing, too."""
    content = changed(kind, padding=True, truncation=True, begin=[BEGIN] if begin in ("own", "none") else None)
    choice = {"own": "auto", "end of text": "auto", "named": PAD, "none": "none"}[begin]
    run = TextModel.in_training(model, run_settings(tmp_path, model, content, choice))
    rule = DataTokenizer.open(tmp_path).begin_of_text
    folder = exported(model, content, tmp_path / "hf", begin_of_text=rule)
    prompts = PROMPTS if begin != "none" else PROMPTS[:-1]
    greedy = {"max_new_tokens": 8, "sampling": Sampling(temperature=0)}
    ours = run.continue_texts(prompts, **greedy).texts  # type: ignore[arg-type]
    again = TextModel.open(folder).continue_texts(prompts, **greedy).texts  # type: ignore[arg-type]
    assert [text.tokens for text in ours] == [text.tokens for text in again]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    no_tokens = list(range(vocabulary_size(run.tokenizer), model.settings.vocab_size))
    for prompt, text in zip(prompts, ours, strict=True):
        given_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        inputs = {"input_ids": given_ids} if given_ids.numel() else {}  # from nothing: bos_token_id of the folder
        made = theirs.generate(**inputs, do_sample=False, max_new_tokens=8, suppress_tokens=no_tokens)[0].tolist()
        assert made[max(given_ids.numel(), 1) :] == text.tokens
    if begin == "none":
        with pytest.raises(BigtrainError, match=r"(?s)no token that begins a text.*another data\.dir"):
            run.encode("")
    else:
        assert run.encode("")[0] == rule.ids[0] == theirs.generation_config.bos_token_id


@pytest.mark.parametrize("beside", ["file", "configuration"])
def test_a_chat_template_is_kept_from_import_to_export(beside: str, model: Decoder, tmp_path: Path) -> None:
    """Nothing that is trained depends on it, and who goes on from the export needs it."""
    template = "{% for message in messages %}{{ message['content'] }}</s>{% endfor %}"
    folder = exported(model, changed("byte_level"), tmp_path / "hf")
    if beside == "file":
        (folder / "chat_template.jinja").write_text(template)
    else:
        configuration = folder / "tokenizer_config.json"
        configuration.write_text(json.dumps({**json.loads(configuration.read_text()), "chat_template": template}))
    import_hf(folder, tmp_path / "imported")
    texts = write_jsonl(tmp_path / "a.jsonl", sentences(9, 0))
    given_one = {"path": str(tmp_path / "imported" / "tokenizer.json"), "end_of_text": END}
    make(data_settings(tmp_path / "data", jsonl_source(texts), tokenizer=given_one))
    tokenizer = tmp_path / "data" / "tokenizer.json"
    export_hf(weights_of(model), model.settings, tokenizer, tmp_path / "out", end_of_text=END)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert theirs.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello</s>"
    assert read_vocabulary(tokenizer, END, 320).chat_template == template


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_an_imported_model_goes_on_with_its_own_begin(
    choice: str, model: Decoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Documents begin with it unless the settings say otherwise, and then a warning names it when the run starts."""
    from bigtrain.trained import starting_weights

    content = changed("unigram", begin=[BEGIN], end_is="piece")
    folder = exported(model, content, tmp_path / "hf", begin_of_text=BeginOfText((3,), before_prompts=True))
    import_hf(folder, tmp_path / "imported")
    (tmp_path / "data").mkdir()
    imported = TokenizerContent.read(tmp_path / "imported" / "tokenizer.json")
    run = run_settings(tmp_path / "data", model, imported, choice)
    run = run.model_copy(update={"model": run.model.model_copy(update={"init_from": tmp_path / "imported"})})
    starting_weights(run)
    assert ("do not begin with <s>" in caplog.text) is (choice == "none")
    assert (TextModel.in_training(model, run).encode("the")[0] == 3) is (choice == "auto")
    assert TextModel.in_training(model, run).encode("") == ([3] if choice == "auto" else [1])


@pytest.mark.slow
@pytest.mark.parametrize("begin", ["own", "end of text"])
def test_lm_eval_begins_texts_as_the_run_does(begin: str, model: Decoder, tmp_path: Path, require: Any) -> None:
    """A continuation of a context, and of nothing, has the log-likelihood that the model gives the run's own ids."""
    require("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    content = changed("byte_level", begin=[BEGIN] if begin == "own" else None)
    run = TextModel.in_training(model, run_settings(tmp_path, model, content, "auto"))
    folder = exported(model, content, tmp_path / "hf", begin_of_text=DataTokenizer.open(tmp_path).begin_of_text)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)
    asked = [("the quick", " brown fox"), ("", "the fox")]
    found = theirs.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in asked], disable_tqdm=True)
    for (context, continuation), (score, _) in zip(asked, found, strict=True):
        before = run.encode(context)
        whole = before + encode_text(run.tokenizer, continuation)
        with torch.no_grad():
            log_p = model.logits(torch.tensor([whole[:-1]]))[0].log_softmax(-1)
        labels = torch.tensor(whole[1:])[:, None]
        assert score == pytest.approx(float(log_p.gather(-1, labels)[len(before) - 1 :].sum()), abs=1e-4)
