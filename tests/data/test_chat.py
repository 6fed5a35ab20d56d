"""Promises of conversations: the ids and the mask of transformers, other forms, cuts at turns, and errors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bigtrain.base import BigtrainError
from bigtrain.config import DataSettings, SourceSettings
from bigtrain.data import open_datasets
from bigtrain.data.build.corpus import read_documents
from bigtrain.data.build.examples import EncodedText, ExampleRules
from bigtrain.data.format.chat_template import ChatTemplate
from bigtrain.data.format.documents import Conversation
from bigtrain.data.format.labels import FIXED_NAMES, LabelScheme
from tests.data.helpers import data_settings, make, sentences
from tests.data.labelled import source_of, stored

END, BEGIN, START, STOP = "<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"

CHATML = """{%- for message in messages -%}
{%- if loop.first and tools %}{{ '<|im_start|>tools\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] }}{% for call in message['tool_calls'] %}{{ '<call>' + call['function']['name'] }}
{{- call['function']['arguments'] | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else -%}
{{ message['content'] + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""In the form of ChatML, with marks, tools and calls of tools."""
PLAIN = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['user', 'assistant', 'system', 'tool'] %}
        {{- raise_exception('no role ' + message['role']) }}
    {%- endif %}
    {{- '### ' + message['role'] | title + ': ' + (message['content'] | trim if message['content'] else '') + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant: ' }}{% endif %}
"""
"""Without marks; what an answer begins with is in one token with the blank before it."""
LAST_ONLY = """{% for message in messages %}{{ message['role'] + ':' }}
{%- if message['thinking'] and loop.last %}{{ '<think>' + message['thinking'] + '</think>' }}{% endif %}
{{- message['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""
"""As models that reason have it: only the last answer has its reasoning, so that a text changes when it goes on."""

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the quick  brown fox?"},
    {"role": "assistant", "content": "Jumps over a lazy dog \u2014 caf\u00e9 \U0001f98a"},
    {"role": "user", "content": "seven wizards\n\nbrew tea"},
    {"role": "assistant", "content": " while the dog\n"},
]
CALLS = [
    {"role": "user", "content": "What is it?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": "dog", "n": 2}}}],
    },
    {"role": "tool", "content": "a dog"},
    {"role": "assistant", "content": "A dog."},
]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@cache
def tokenizer_file() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, BEGIN, START, STOP],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences(50, 0), "### User: a\n### Assistant: Jumps\n"], trainer)
    return tokenizer.to_str()


def folder_of(path: Path, template: str | None) -> Path:
    """The folder of a published tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(tokenizer_file())
    about: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": {"content": STOP},
    }  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(about | {"eos_token": STOP}))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def chats(path: Path, *records: dict[str, Any], **changes: Any) -> SourceSettings:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return source_of("chat", path, **changes)


def chat_settings(
    tmp_path: Path, template: str | None, source: SourceSettings, length: int = 512, **changes: Any
) -> DataSettings:
    given = {"path": str(folder_of(tmp_path / "tokenizer", template)), "end_of_text": END}
    return data_settings(
        tmp_path / "data", source, packing="best_fit", sequence_length=length, tokenizer={**given, **changes}
    )


def built_chats(tmp_path: Path, template: str | None, source: SourceSettings, length: int = 512) -> DataSettings:
    settings = chat_settings(tmp_path, template, source, length)
    make(settings)
    return settings


def test_ids_and_mask_are_those_of_transformers(tmp_path: Path) -> None:
    """Of conversations with tools and without: a document has what transformers gives, and then the end of text."""
    transformers = pytest.importorskip("transformers")
    records = [{"messages": TALK}, {"messages": CALLS, "tools": TOOLS}, {"messages": TALK[1:3]}] * 8
    settings = built_chats(tmp_path, CHATML, chats(tmp_path / "a.jsonl", *records))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    end = theirs.convert_tokens_to_ids(END)
    seen = 0
    for one in stored(settings):
        record = records[one.position]
        wanted = theirs.apply_chat_template(
            record["messages"],
            tools=record.get("tools"),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert 0 < sum(wanted["assistant_masks"]) < len(wanted["input_ids"])
        assert one.ids.tolist() == [*wanted["input_ids"], end]
        assert one.labels.tolist() == [*wanted["assistant_masks"], 0]
        seen += 1
    assert seen == 24


TEXTS = st.text(st.sampled_from("the fox\n  .:\u00e9\u4e2d\U0001f98a\u200d\t'\"{}<|>im_startend"), max_size=20)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_any_texts_have_the_ids_and_mask_of_transformers(turns: list[tuple[str, str]]) -> None:
    transformers = pytest.importorskip("transformers")
    library = Tokenizer.from_str(tokenizer_file())
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library, chat_template=CHATML)
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    wanted = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    segment = ChatTemplate(CHATML, {}).render(Conversation(tuple(messages)), "here")
    encoding = library.encode(segment.text, add_special_tokens=False)
    text = EncodedText(np.array(encoding.ids), np.array(encoding.offsets, np.int64).reshape(-1, 2))
    labels = ExampleRules(LabelScheme("turns", FIXED_NAMES["turns"]), None, None, 1, 1).labelled(segment, text).labels
    assert encoding.ids == wanted["input_ids"]
    assert labels.tolist() == wanted["assistant_masks"]


def test_without_marks_an_answer_is_what_its_message_adds(tmp_path: Path) -> None:
    """The prompt for an answer is no part of it; ids are those of transformers."""
    transformers = pytest.importorskip("transformers")
    settings = built_chats(tmp_path, PLAIN, chats(tmp_path / "a.jsonl", *[{"messages": TALK}] * 20))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    wanted = theirs.apply_chat_template(TALK, tokenize=True, return_dict=True)
    for one in stored(settings):
        assert one.ids.tolist()[:-1] == wanted["input_ids"]
        shown = "".join(
            theirs.decode(token) if label else "|"
            for token, label in zip(one.ids.tolist(), one.labels.tolist(), strict=True)
        )
        # The blank before an answer is in one token with its first letters.
        answers = [part for part in theirs.decode(one.ids[one.labels == 1]).split("\n") if part]
        assert answers == [" Jumps over a lazy dog \u2014 caf\u00e9 \U0001f98a", " while the dog"]
        assert shown.count("|") == sum(one.labels == 0)


def test_a_prompt_ends_where_an_answer_begins() -> None:
    template = ChatTemplate(PLAIN, {"bos_token": BEGIN})
    prompt = template.prompt(Conversation(tuple(TALK[:2])), "here")
    assert prompt == "<s>### System: Be brief.\n### User: the quick  brown fox?\n### Assistant: "
    assert template.render(Conversation(tuple(TALK)), "here").text.startswith(prompt)


def test_marks_and_prefixes_find_the_same_answers() -> None:
    """A template with marks and one without, for the same text: the same spans."""
    unmarked = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}{{ '\\n' }}", "{{ '\\n' }}")
    conversation = Conversation(tuple(TALK))
    with_marks = ChatTemplate(CHATML, {}).render(conversation, "here")
    without = ChatTemplate(unmarked, {}).render(conversation, "here")
    assert with_marks.text == without.text
    # Without marks, the line break after the answer is a part of what the message adds.
    assert [(span.start, span.end) for span in without.spans] == [
        (span.start, span.end + 1) for span in with_marks.spans
    ]


def test_the_form_of_sharegpt_is_the_same_conversation(tmp_path: Path) -> None:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    items = [{"from": names[message["role"]], "value": message["content"]} for message in TALK]
    one, other = read_documents(chats(tmp_path / "a.jsonl", {"messages": TALK}, {"conversations": items}))
    assert one.conversation == other.conversation and one.text == other.text
    (beside,) = read_documents(
        chats(tmp_path / "b.jsonl", {"system": "Be brief.", "conversations": items[1:], "tools": json.dumps(TOOLS)})
    )
    assert beside.conversation == Conversation(tuple(TALK), tuple(TOOLS))
    assert one.text.startswith("Be brief.\nthe quick")


def test_a_long_conversation_ends_after_its_last_answer_that_fits(tmp_path: Path) -> None:
    """It is counted as cut; one whose first answer does not fit is counted as removed."""
    long = [{"role": "user", "content": "the dog " * 60}, {"role": "assistant", "content": "fox"}]
    records = [{"messages": TALK + CALLS[:1] + [{"role": "assistant", "content": "tea " * 40}]}, {"messages": long}]
    settings = built_chats(tmp_path, CHATML, chats(tmp_path / "a.jsonl", *records * 10), length=120)
    funnel = json.loads((settings.dir / "made" / "funnel.json").read_text())
    assert funnel["cut"] == 10 and funnel["train"]["documents"] + funnel["validation"]["documents"] == 10
    assert [(removed["rule"], removed["documents"]) for removed in funnel["removed"]] == [("sequence_length", 10)]
    text = ChatTemplate(CHATML, {}).render(Conversation(tuple(records[0]["messages"])), "here")
    tokenizer = Tokenizer.from_str(tokenizer_file())
    whole = tokenizer.encode(text.text[: text.spans[1].end], add_special_tokens=False).ids
    for one in stored(settings):
        assert one.ids.tolist() == [*whole, tokenizer.token_to_id(END)]
        assert one.position % 2 == 0 and len(one.ids) <= 120 and one.labels[-2] == 1


def test_samples_of_a_conversation_begin_before_its_first_answer(tmp_path: Path) -> None:
    """What a model continues in samples is what was said before the assistant."""
    from bigtrain.trained.samples import _beginning

    settings = built_chats(tmp_path, CHATML, chats(tmp_path / "a.jsonl", *[{"messages": TALK}] * 20))
    (dataset,) = open_datasets(settings, model_vocab_size=512)
    shown = Tokenizer.from_str(tokenizer_file()).decode(_beginning(dataset, 0, 500) or [], skip_special_tokens=False)
    assert shown.endswith("fox?<|im_end|>\n<|im_start|>assistant\n") and shown.startswith("<|im_start|>system")


def test_a_template_of_ones_own_is_kept_with_the_data(tmp_path: Path) -> None:
    """data.tokenizer.chat_template goes before the one beside the tokenizer; another one later is refused."""
    own = tmp_path / "own.jinja"
    own.write_text(CHATML)
    source = chats(tmp_path / "a.jsonl", *[{"messages": TALK}] * 20)
    settings = chat_settings(tmp_path, PLAIN, source, chat_template=str(own))
    make(settings)
    assert (settings.dir / "chat_template.jinja").read_text() == CHATML
    make(settings)
    own.write_text(PLAIN)
    with pytest.raises(BigtrainError, match="another chat_template"):
        make(settings)
    own.unlink()
    with pytest.raises(BigtrainError, match="is not a chat template"):
        make(settings)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": TALK[:2]}, ["a.jsonl:1 has no message of an assistant", "system, user"]),
        ({"messages": []}, ["has no message of an assistant", "none"]),
        ({"text": "a"}, ["a.jsonl:1 has no conversation", "text"]),
        ({"messages": "a"}, ["messages is not a list of messages"]),
        ({"messages": [{"content": "a"}]}, ["without a role"]),
        ({"conversations": [{"from": "nobody", "value": "a"}]}, ["without a role that is known", "nobody", "human"]),
        ({"conversations": [{"from": "gpt", "value": 3}]}, ["without text"]),
        ({"messages": TALK, "tools": ["a"]}, ["tools is not a list of objects"]),
        ({"messages": TALK, "tools": [{"a": float("nan")}]}, ["templates do not take", "ValueError"]),
    ],
)
def test_conversations_without_answers_are_one_message(record: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(BigtrainError) as error:
        list(read_documents(chats(tmp_path / "a.jsonl", record)))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (None, TALK, ["no chat template", "data.tokenizer.chat_template"]),
        ("{% for m in messages %}", TALK, ["not valid Jinja", "line 1"]),
        (PLAIN, [*TALK, {"role": "critic", "content": "no"}], ["no role critic", "document 0 of a.jsonl"]),
        ("{{ strftime_now('%Y') }}", TALK, ["strftime_now", "today's date"]),
        ("{{ messages[0]['content'] }}", TALK, ["writes nothing of the assistant's messages"]),
        ("{{ ''.__class__.__mro__ }}", TALK, ["SecurityError"]),
        (
            LAST_ONLY,
            [*TALK[:2], {**TALK[2], "reasoning": "hm"}, *TALK[3:]],
            ["is not how the whole text begins", "differ at character", "{% generation %}"],
        ),
    ],
    ids=["none", "no jinja", "role", "date", "nothing", "sandbox", "reasoning"],
)
def test_templates_that_do_not_fit_are_one_message(
    template: str | None, messages: Any, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(BigtrainError) as error:
        built_chats(tmp_path, template, chats(tmp_path / "a.jsonl", {"messages": messages}))
    for word in words:
        assert word in str(error.value)
