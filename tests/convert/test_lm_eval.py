"""lm-eval-harness scores an exported folder as our own model would: a local task, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert import export_hf
from bigtrain.model import Decoder, build_model

pytestmark = pytest.mark.slow
END = "<|endoftext|>"
QUESTIONS = [
    {"question": "def add(a, b):\n    return", "choices": [" a + b", " a - b", " None"], "answer": 0},
    {"question": "for i in", "choices": [" range(10):", " 漢字"], "answer": 0},
    {"question": "import", "choices": [" os", " sys", " json", " re"], "answer": 2},
]
TEXTS = ["def main() -> None:\n    print('hello')\n", "x = 1\n" * 8]
TASKS = {
    "local_choice": """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
""",
    "local_perplexity": """
task: local_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
""",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def model() -> Decoder:
    settings = ModelSettings(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=56,
        vocab_size=320, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    model = build_model(settings)
    model.init_weights(0)
    return model


@pytest.fixture(scope="module")
def results(
    model: Decoder, tokenizer: Tokenizer, require: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the command in docs/guides/gguf.md writes: metrics by task under `results`, and the samples of each task."""
    require("lm_eval")
    require("transformers")
    folder = tmp_path_factory.mktemp("lm_eval")
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    export_hf(weights, model.settings, folder / "tokenizer.json", folder / "hf", end_of_text=END, dtype=torch.float32)
    for name, rows in (("questions", QUESTIONS), ("texts", [{"text": text} for text in TEXTS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(task.format(folder=folder))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "2",
        "--model_args", f"pretrained={folder / 'hf'},dtype=float32", "--include_path", str(folder / "tasks"),
        "--tasks", ",".join(TASKS), "--log_samples", "--output_path", str(folder / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    written: dict[str, Any] = json.loads(next((folder / "out").rglob("results_*.json")).read_text())
    for name in TASKS:
        lines = next((folder / "out").rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()
        written[name] = sorted((json.loads(line) for line in lines), key=lambda sample: sample["doc_id"])
    return written


def log_likelihood(model: Decoder, tokenizer: Tokenizer, context: str, continuation: str) -> float:
    """log p(continuation | context), in nats."""
    before = tokenizer.encode(context).ids if context else [tokenizer.token_to_id(END)]
    whole = (before if not context else []) + tokenizer.encode(context + continuation).ids
    with torch.no_grad():
        log_p = model.logits(torch.tensor([whole[:-1]]))[0].log_softmax(-1)
    labels = torch.tensor(whole[1:])[:, None]
    return float(log_p.gather(-1, labels)[len(before) - 1 :].sum())


def test_choices_have_our_log_likelihoods(results: dict[str, Any], model: Decoder, tokenizer: Tokenizer) -> None:
    right = 0
    for sample, asked in zip(results["local_choice"], QUESTIONS, strict=True):
        ours = [log_likelihood(model, tokenizer, asked["question"], choice) for choice in asked["choices"]]
        theirs = [float(response[0][0]) for response in sample["resps"]]
        assert theirs == pytest.approx(ours, abs=1e-4)
        right += ours.index(max(ours)) == asked["answer"]
    assert results["results"]["local_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_a_text_has_our_perplexity(results: dict[str, Any], model: Decoder, tokenizer: Tokenizer) -> None:
    ours = sum(log_likelihood(model, tokenizer, "", text) for text in TEXTS)
    per_byte = -ours / sum(len(text.encode()) for text in TEXTS) / torch.tensor(2.0).log().item()
    assert results["results"]["local_perplexity"]["bits_per_byte,none"] == pytest.approx(per_byte, rel=1e-5)
