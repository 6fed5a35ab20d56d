"""Conversations from the command line: what the assistant says is learned, and nothing else has a label."""

from __future__ import annotations

import copy
import json
import math

import pytest
import yaml

from tests.system.run_sandbox import RunSandbox, as_json, curve, kill_ranks, small_settings

TEMPLATE = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else -%}{{ message['content'] + '<|im_end|>\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""ChatML, with a mark around what the assistant says."""
COLOURS = {"grass": "green", "the sky": "blue", "blood": "red", "snow": "white", "coal": "black", "a lemon": "yellow"}
ASKED, SAID = "what is the colour of {}", "{} is {}, as everybody knows"


def conversations(number: int) -> list[dict]:
    """Each asks for two colours; the answers follow from the questions."""
    things = list(COLOURS)
    return [
        {
            "messages": [
                {"role": "system", "content": f"conversation {at}"},
                *(
                    message
                    for thing in (things[at % 6], things[(at // 6) % 6])
                    for message in (
                        {"role": "user", "content": ASKED.format(thing)},
                        {"role": "assistant", "content": SAID.format(thing, COLOURS[thing])},
                    )
                ),
            ]
        }
        for at in range(number)
    ]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """A built corpus of conversations, and the settings of a small decoder that learns from it."""
    directory = tmp_path_factory.mktemp("chats")
    (directory / "chats.jsonl").write_text("".join(json.dumps(each) + "\n" for each in conversations(120)))
    (directory / "template.jinja").write_text(TEMPLATE)
    settings = small_settings(directory)
    settings["model"] |= {"vocab_size": 512, "max_position_embeddings": 128}
    settings["objective"] = {"name": "chat"}
    settings["data"] |= {
        "sequence_length": 128,
        "packing": "best_fit",
        "tokenizer": {
            "vocab_size": 512,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "chat_template": str(directory / "template.jinja"),
        },
        "sources": [{"name": "chats", "kind": "chat", "path": str(directory / "chats.jsonl")}],
    }
    settings["train"]["steps"] = 40
    settings["optimizer"] = {"learning_rate": 1e-2}
    settings["checkpoint"] = {"every_steps": 8}
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory, config)
    built = sandbox.bigtrain("data", "build", config)
    assert built.returncode == 0, built.stderr
    return sandbox


@pytest.mark.slow
def test_a_run_of_conversations_learns_what_the_assistant_says(chats, tmp_path):
    """The loss falls, a killed run repeats it bit for bit, and eval, generate and export have the model."""
    status, output = chats.train(1)
    assert status == 0, output
    metrics = chats.metrics()
    losses = [record["loss"] for record in metrics]
    assert losses[0] > 0.8 * math.log(512) and losses[-1] < 1.0, losses
    evaluated = as_json(chats.bigtrain("eval", chats.run, "--json"))["validation"]
    assert evaluated[0]["loss"] < 1.0

    again = copy.deepcopy(yaml.safe_load(chats.config.read_text()))
    again["run_dir"] = str(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(again))
    killed = RunSandbox(tmp_path, tmp_path / "config.yaml")
    training = killed.start_forked(1)
    killed.wait_for_step(12)
    kill_ranks(training)
    assert killed.train(1)[0] == 0
    assert curve(killed.metrics()) == curve(metrics)

    asked = "<|im_start|>system\nconversation 3<|im_end|>\n<|im_start|>user\n" + ASKED.format("snow") + "<|im_end|>\n"
    texts = as_json(
        chats.bigtrain(
            "generate", chats.run, asked + "<|im_start|>assistant\n", "--greedy", "--max-new-tokens", "30", "--json"
        )
    )
    assert texts["completion"].endswith(", as everybody knows")
    exported = chats.bigtrain("export", chats.run, tmp_path / "hf", "--to", "hf")
    assert exported.returncode == 0, exported.stderr
    assert "<|im_start|>" in (tmp_path / "hf" / "chat_template.jinja").read_text()


def test_where_shows_what_the_assistant_says_and_brackets_the_rest(chats):
    """Outside the brackets are the answers with their ends, and nothing else; each is one of the corpus."""
    started = chats.train(1, "train.stop_after=1", f"run_dir={chats.directory / 'shown'}")
    assert started[0] == 75, started[1]
    shown = chats.bigtrain("data", "where", chats.directory / "shown", "--step", "1", "--text")
    assert shown.returncode == 0, shown.stderr
    text = "\n".join(line for line in shown.stdout.splitlines() if not line.startswith("---"))
    assert "\u27e6<|im_start|>system\nconversation" in text
    outside = [part.rpartition("\u27e7")[2] for part in text.split("\u27e6")]
    said = [part for part in outside if part.strip()][:-1]  # the last line is the summary
    answers = {SAID.format(thing, colour) + "<|im_end|>" for thing, colour in COLOURS.items()}
    assert len(said) > 8 and set(said) <= answers, said[:5]
