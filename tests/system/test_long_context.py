"""A run whose samples become longer, and whose rotation is stretched: against transformers, and across resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from bigtrain.config import load_settings
from bigtrain.data import RunData
from bigtrain.engine import learning_rate
from bigtrain.model import build_model
from tests.system.run_sandbox import RunSandbox, curve

BORDER, STEPS = 6, 10
"""The last step of the short samples, and of all."""
LONG = 256
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(scope="module")
def staged(built: RunSandbox, tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """A run of two processes: 8 x 64 tokens a step, and after the border 2 x 256."""
    directory = tmp_path_factory.mktemp("staged")
    settings = yaml.safe_load(built.config.read_text())
    settings["run_dir"] = str(directory / "run")
    settings["model"]["max_position_embeddings"] = LONG
    settings["data"]["phases"] = [
        {"from_tokens": BORDER * 8 * 64, "sequence_length": LONG, "rope_theta": 20000.0, "rope_scaling": YARN}
    ]
    settings["train"]["steps"] = STEPS
    settings["engine"] = {"zero_stage": 2, "precision": "fp32"}
    settings["checkpoint"] = {"every_steps": 3}
    settings["evaluate"] = {"every_steps": BORDER, "max_sequences": 8}
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory, config)
    status, output = sandbox.train(2)
    assert status == 0, output
    assert "from step 7 on steps of 2 x 256 = 512 tokens, in micro-batches of 1 with 1 accumulated" in output
    return sandbox


@pytest.mark.slow
def test_losses_are_those_of_transformers_in_a_plain_loop(staged: RunSandbox, require) -> None:
    """At both lengths, with transformers' own rotation of each: a model of transformers, trained by AdamW on the same
    batches, has the recorded losses and gradient norms."""
    require("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = load_settings(staged.config)
    first = build_model(settings.model)
    first.init_weights(settings.train.seed)
    shape = settings.model
    common = {
        "hidden_size": shape.hidden_size, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 1024, "max_position_embeddings": LONG, "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": True, "attn_implementation": "eager",
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**common, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}))
    stretched = LlamaConfig(**common, rope_parameters={**YARN, "rope_theta": 20000.0})
    model.model.load_state_dict(dict(first.named_parameters()))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.optimizer.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=settings.optimizer.betas,
        eps=settings.optimizer.eps,
    )
    recorded = staged.metrics()
    assert [record["step"] for record in recorded] == list(range(1, STEPS + 1))
    with RunData.open(settings).loader(2, 0, rank=0, world_size=1) as loader:
        for record, batch in zip(recorded, loader, strict=False):
            if record["step"] == BORDER + 1:
                model.model.rotary_emb = LlamaRotaryEmbedding(stretched)
            optimizer.zero_grad()
            loss = 0.0
            for rows in batch.micro_batches:
                positions = torch.as_tensor(rows.position_ids)
                document = (positions == 0).cumsum(-1)
                place = torch.arange(positions.shape[1])
                seen = (document[:, :, None] == document[:, None, :]) & (place[:, None] >= place[None, :])
                mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]
                logits = model(
                    torch.as_tensor(rows.input_ids).long(), position_ids=positions.long(), attention_mask=mask
                ).logits
                labels = torch.as_tensor(rows.labels).long()
                part = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
                (part / batch.label_tokens).backward()
                loss += part.item() / batch.label_tokens
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.optimizer.max_grad_norm)
            rate = learning_rate(record["step"], STEPS, settings.schedule, settings.optimizer.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            assert record["loss"] == pytest.approx(loss, rel=2e-5)
            assert record["grad_norm"] == pytest.approx(norm.item(), rel=2e-3)


@pytest.mark.slow
def test_resumes_in_and_across_stages_change_no_bit(staged: RunSandbox, tmp_path: Path) -> None:
    """A run that stops at the end of the first stage and in the second is the run that never stopped; and so are its
    batches on another number of processes."""
    run = f"run_dir={tmp_path / 'run'}"
    for stop in (BORDER, BORDER + 2, None):
        status, output = staged.train(2, run, *([f"train.stop_after={stop}"] if stop else []))
        assert status == (75 if stop else 0), output
    assert curve(staged.metrics(tmp_path / "run")) == curve(staged.metrics())
    alone = f"run_dir={tmp_path / 'alone'}"
    status, output = staged.train(1, alone)
    assert status == 0, output
    for one, two in zip(staged.metrics(tmp_path / "alone"), staged.metrics(), strict=True):
        assert one["batch_digest"] == two["batch_digest"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_has_the_rotation_of_its_stage(staged: RunSandbox, tmp_path: Path) -> None:
    """An export has the scaling that its weights were trained with. What a phase that is over, or that has begun, says
    of the rotation cannot change; documents are found by step at both lengths."""
    for step, scaled in ((BORDER, None), (STEPS, 4.0)):
        out = tmp_path / f"hf-{step}"
        result = staged.bigtrain("export", staged.run, out, "--to", "hf", "--step", str(step))
        assert result.returncode == 0, result.stderr
        config = json.loads((out / "config.json").read_text())
        rotation = config.get("rope_parameters") or config.get("rope_scaling") or {}
        assert rotation.get("factor") == scaled and config["max_position_embeddings"] == LONG
    status, output = staged.train(1, "data.phases.0.rope_scaling.factor=2", "train.stop_after=10")
    assert status == 1 and "model.rope_scaling.factor: 2.0" in output and "model.rope_scaling.factor: 4.0" in output
    for step in (BORDER, BORDER + 1):
        where = json.loads(staged.bigtrain("data", "where", staged.run, "--step", str(step), "--json").stdout)
        assert where["batch_digest"] == where["recorded_digest"]
        part = where["samples"][0]["documents"][0]
        found = staged.bigtrain("data", "when", staged.run, "--document", part["id"], "--json")
        assert any(each["step"] == step for each in json.loads(found.stdout)["appearances"])
