"""An exported adapter is, for `peft` on the exported base, the adapter that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.config import AdapterSettings, ModelSettings
from bigtrain.convert import export_peft
from bigtrain.convert.families import FAMILIES
from bigtrain.model import LanguageModel, Merged, build_model, is_of_adapter
from tests.convert.helpers import (
    OF_BOTH,
    TWO_STREAMS,
    VOCABULARY,
    auto_class,
    exported,
    settings_of,
    trained,
    weights_of,
)
from tests.convert.test_parity import how
from tests.model.helpers import exact_t5

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "gpt_neox": {"attention_bias": True, "attention_output_bias": True, "num_key_value_heads": 4},
    "bert": {"tie_word_embeddings": True},
    "bart": {"tie_word_embeddings": True},
    "t5": {"tie_word_embeddings": True, "logits_scaling": "sqrt_hidden_size"},
    "albert": {"tie_word_embeddings": True, "embedding_size": 16, "num_hidden_groups": 1},
}
"""What a family cannot be without."""
ADAPTED = ["llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "mixtral", "bert", "modernbert", "albert", "bart", "t5"]


def adapted(base: LanguageModel, adapter: AdapterSettings) -> LanguageModel:
    """The base with an adapter of random values, in its type."""
    model = build_model(base.settings, attn_implementation="reference", adapter=adapter)
    model.init_weights(0)
    generator, weights = torch.Generator().manual_seed(5), weights_of(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
            if parameter.requires_grad:  # a magnitude stays above zero
                parameter.add_(torch.rand(parameter.shape, generator=generator), alpha=0.2)
    return model.to(next(base.parameters()).dtype)


def write(base: LanguageModel, model: LanguageModel, adapter: AdapterSettings, out: Path) -> None:
    learned = [name for name, p in model.named_parameters() if p.requires_grad and not is_of_adapter(name)]
    digests = dict.fromkeys(weights_of(base), "0" * 32)
    export_peft(
        weights_of(model), learned, base.settings, adapter, out, base=digests, base_name="base", dtype=torch.float64
    )


def loaded(folder: Path, family: str) -> Any:
    return auto_class(family).from_pretrained(folder, dtype=torch.float64, **how(family)).double().eval()


def merged_model(ours: LanguageModel, adapter: AdapterSettings) -> LanguageModel:
    model = build_model(ours.settings, attn_implementation="reference").double()
    weights = Merged(weights_of(ours), adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def logits(model: Any, ids: torch.Tensor, family: str, *, ours: bool) -> torch.Tensor:
    """Of tokens that an encoder-decoder reads and writes."""
    with torch.no_grad():
        if ours:
            return model.logits(ids, encoder_input_ids=ids.flip(1)) if family in OF_BOTH else model.logits(ids)
        if family in OF_BOTH:
            return model(input_ids=ids.flip(1), decoder_input_ids=ids, use_cache=False).logits
        return model(input_ids=ids).logits


@pytest.mark.parametrize("family", ADAPTED)
@given(
    method=st.sampled_from(["lora", "dora"]),
    targets=st.sampled_from([None, ("*_proj",), ("layers.0.*.k_proj", "*.o_proj"), ("*.v_proj", "*.down_proj")]),
    saved=st.sampled_from([(), ("layers.1.*norm",), ("embed_tokens",)]),
    use_rslora=st.booleans(),
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_peft_computes_the_same_logits(
    family: str,
    method: Any,
    targets: tuple[str, ...] | None,
    saved: tuple[str, ...],
    use_rslora: bool,
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    require: Any,
) -> None:
    """Float64, for LoRA and DoRA, with modules that learn as a whole, and merged by either of the two."""
    require("peft")
    from peft import PeftModel

    chosen = settings_of(family, **SHAPES.get(family, {}))
    if family in ("mixtral", "albert"):  # experts are no linear layers; one block has no second norm
        targets, saved = ("*.q_proj", "*.o_proj"), saved if family == "mixtral" else ()
    if saved == ("layers.1.*norm",) and family in OF_BOTH:
        saved = ("*layers.1.*norm",)
    if saved == ("embed_tokens",) and chosen.tie_word_embeddings:  # refused: see below
        saved = ()
    adapter = AdapterSettings(
        method=method, r=3, lora_alpha=5.0, target_modules=targets, modules_to_save=saved, use_rslora=use_rslora
    )
    base = trained(chosen, torch.float64)
    ours = adapted(base, adapter)
    ids = torch.randint(4, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(2))
    out = tmp_path_factory.mktemp("peft")
    with pytest.MonkeyPatch.context() as monkeypatch:
        exact_t5(monkeypatch)
        exported(base, tokenizer_file, out / "base", dtype=torch.float64)
        write(base, ours, adapter, out / "adapter")
        theirs = loaded(out / "base", family)
        before = logits(theirs, ids, family, ours=False)
        theirs = PeftModel.from_pretrained(theirs, out / "adapter", autocast_adapter_dtype=False).double().eval()
        found = logits(theirs, ids, family, ours=False)
        merged = logits(theirs.merge_and_unload().double(), ids, family, ours=False)
        exported(merged_model(ours, adapter), tokenizer_file, out / "merged", dtype=torch.float64)
        theirs = loaded(out / "merged", family)
        wanted = logits(theirs, ids, family, ours=False)
    assert (wanted - before).abs().max() > 1e-2  # it does something
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(merged, wanted, rtol=1e-9, atol=1e-9)
    exact = logits(ours, ids, family, ours=True)
    torch.testing.assert_close(logits(merged_model(ours, adapter), ids, family, ours=True), exact, rtol=1e-9, atol=1e-9)
    # Angles of transformers' rotary embeddings are float32.
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-5 * exact.abs().max().item())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral", "gpt_neox"])
@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_peft_sees_the_same_virtual_tokens(
    method: Any, family: str, tokenizer_file: Path, tmp_path: Path, require: Any
) -> None:
    """Embeddings, or keys and values: peft's logits on the exported base, with rotated, learned, windowed positions."""
    require("peft")
    from peft import PeftModel

    adapter = AdapterSettings(method=method, num_virtual_tokens=5)
    shape = {"sliding_window": 7} if family == "mistral" else {}
    base = trained(settings_of(family, **shape, **SHAPES.get(family, {})), torch.float64)
    ours = adapted(base, adapter)
    ids = torch.randint(4, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(2))
    exported(base, tokenizer_file, tmp_path / "base", dtype=torch.float64)
    write(base, ours, adapter, tmp_path / "adapter")
    theirs = loaded(tmp_path / "base", family)
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "adapter", autocast_adapter_dtype=False).double().eval()
    wanted = logits(ours, ids, family, ours=True)
    assert (wanted - logits(base, ids, family, ours=True)).abs().max() > 1e-2
    torch.testing.assert_close(
        logits(theirs, ids, family, ours=False)[:, -20:], wanted, rtol=0, atol=2e-5 * wanted.abs().max().item()
    )


def test_the_config_names_modules_of_the_hugging_face_model(tokenizer_file: Path, tmp_path: Path) -> None:
    """One matrix there that is made of three of ours has their adapters in one of a larger rank."""
    adapter = AdapterSettings(method="lora", r=2, lora_alpha=4.0)
    base = trained(settings_of("gpt2", **SHAPES["gpt2"]))
    write(base, adapted(base, adapter), adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["target_modules"] == [f"transformer.h.{layer}.attn.c_attn" for layer in (0, 1)]
    assert set(config["rank_pattern"].values()) == {4} and set(config["alpha_pattern"].values()) == {8.0}
    assert config["fan_in_fan_out"] and config["task_type"] == "CAUSAL_LM"
    origin = json.loads((tmp_path / "out/origin.json").read_text())
    assert origin["base"].keys() == weights_of(base).keys()


@pytest.mark.parametrize(
    ("chosen", "adapter", "message"),
    [
        (settings_of("llama"), AdapterSettings(method="bottleneck"), "peft has no adapter of this kind"),
        (
            settings_of("llama", tie_word_embeddings=True),
            AdapterSettings(method="lora", r=2, modules_to_save=("embed_tokens",)),
            "peft would unbind the head",
        ),
        (settings_of("xlnet", tie_word_embeddings=True), AdapterSettings(method="lora", r=2), "is no linear layer"),
    ],
)
def test_what_peft_has_not_is_refused(
    chosen: ModelSettings, adapter: AdapterSettings, message: str, tmp_path: Path
) -> None:
    base = trained(chosen)
    with pytest.raises(BigtrainError, match=message):
        write(base, adapted(base, adapter), adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_families_of_these_tests_are_all_layouts() -> None:
    """A family in whose layers a matrix of ours is stored in some way is among those that are compared."""
    ways = {module.layout for name in ADAPTED for module in FAMILIES[name].modules}
    assert ways >= {module.layout for name in FAMILIES for module in FAMILIES[name].modules if name not in TWO_STREAMS}
