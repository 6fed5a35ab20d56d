"""Files that other tools and people wrote: an import agrees with transformers, or is refused for a reason that is true.

Each test lays one odd file into a folder that is otherwise whole. Whatever it is, nothing but `OUT` is ever written.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bigtrain.base.errors import BigtrainError
from bigtrain.cli.main import app
from bigtrain.convert import Imported, import_hf
from bigtrain.convert.families import FAMILIES as DESCRIPTIONS
from bigtrain.convert.skipped_keys import _ABOUT_FILES, _CLAIMS
from bigtrain.model import Sampling
from bigtrain.trained import TextModel, import_model
from tests.convert.helpers import END, exported, settings_of, trained
from tests.refusals import assert_refused

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each family, which the test leaves as it was."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            model = trained(settings_of(family, num_hidden_layers=1))
            made[family] = exported(
                model, tokenizer_file, tmp_path_factory.mktemp(family) / "there", dtype=torch.float32
            )
        return made[family]

    return folder


@pytest.fixture
def altered(folders: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a folder with other keys in config.json; `...` leaves one out."""

    def make(family: str = "llama", **keys: Any) -> Path:
        there = tmp_path / "there"
        there.mkdir(exist_ok=True)
        for file in folders(family).iterdir():
            (there / file.name).write_bytes(file.read_bytes())
        config = json.loads((there / "config.json").read_text()) | keys
        (there / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
        return there

    return make


def imported(there: Path, ignored: tuple[str, ...] = (), notes: list[str] | None = None) -> Path:
    """Import with the comparison; nothing is left beside the folders, and no OUT where it is refused."""
    out = there.parent / "new" / "out"
    said = [] if notes is None else notes
    try:
        result = import_model(there, out, end_of_text=END, ignored=ignored, check=True, report=said.append)
    except BigtrainError:
        assert not out.parent.exists()
        raise
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert result.largest_logit_difference is not None
    return out


class TestTypes:
    """Weights have the type that they have in the files, whatever config.json says (zero_to_fp32 and FSDP differ)."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize(
        "said",
        [
            {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
            {"dtype": "float16", "torch_dtype": ...},
            {"dtype": ..., "torch_dtype": "float32"},
            {"dtype": ..., "torch_dtype": ...},
            {"dtype": "nonsense", "torch_dtype": "torch.bfloat16"},
            {"dtype": 7, "torch_dtype": {"a": []}},
        ],
    )
    def test_config_json_may_say_any_type(
        self, dtype: torch.dtype, said: dict[str, Any], altered: Callable[..., Path]
    ) -> None:
        there = altered(**said)
        file = there / "model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
        out = imported(there)
        assert Imported(out).dtypes == {dtype}
        for folder in (there, out):
            assert TextModel.open(folder).decoder.embed_tokens.weight.dtype == dtype

    def test_files_of_several_types_are_compared_without_rounding(self, altered: Callable[..., Path]) -> None:
        there = altered()
        file = there / "model.safetensors"
        types = [torch.float16, torch.bfloat16]
        save_file({name: t.to(types[len(name) % 2]) for name, t in load_file(file).items()}, file)
        out = imported(there)
        assert Imported(out).dtypes == set(types)
        assert TextModel.open(there).decoder.embed_tokens.weight.dtype == torch.float32

    def test_weights_that_are_not_finite_are_refused_as_such(self, altered: Callable[..., Path]) -> None:
        there = altered()
        tensors = load_file(there / "model.safetensors")
        tensors["model.norm.weight"][3] = torch.nan
        save_file(tensors, there / "model.safetensors")
        with pytest.raises(BigtrainError, match="not finite"):
            imported(there)


class TestLoading:
    """What config.json says about how a model is loaded or run is not obeyed: no other code, no other host."""

    @pytest.mark.parametrize(
        "keys",
        [
            {"_attn_implementation": "flash_attention_2"},
            {"_attn_implementation": "org/repo"},
            {"attn_implementation": "org/repo:kernel", "_attn_implementation_internal": "org/repo"},
            {"experts_implementation": "org/repo", "_experts_implementation": "x"},
            {"return_dict": False, "torchscript": True, "output_attentions": True, "gradient_checkpointing": True},
            {"_name_or_path": "https://example.invalid/model", "use_cache": False},
        ],
    )
    def test_a_way_to_load_is_not_obeyed(self, keys: dict[str, Any], altered: Callable[..., Path]) -> None:
        imported(altered(**keys))

    def test_an_adapter_or_a_broken_file_beside_the_weights_changes_nothing(self, altered: Callable[..., Path]) -> None:
        there = altered()
        (there / "adapter_config.json").write_text('{"base_model_name_or_path": "org/repo", "peft_type": "LORA"}')
        (there / "generation_config.json").write_text("{")
        (there / "modeling_llama.py").write_text("raise SystemExit(9)")
        (there / "pytorch_model.bin").write_bytes(b"\x80\x04")
        imported(there)

    def test_what_transformers_cannot_load_is_refused_with_its_reason(self, altered: Callable[..., Path]) -> None:
        with pytest.raises(BigtrainError) as caught:
            imported(altered(num_labels="x", id2label=[1]))
        assert_refused(caught, "transformers cannot compute with", fix="--no-check")

    def test_keys_that_transformers_obeys_undeclared_are_refused(self, altered: Callable[..., Path]) -> None:
        for keys in ({"is_causal": False}, {"transformers_weights": "x.bin"}, {"quantization": {"bits": 4}}):
            with pytest.raises(BigtrainError, match=next(iter(keys))):
                imported(altered(**keys), ignored=())
            with pytest.raises(BigtrainError, match="cannot be ignored"):
                imported(altered(**keys), ignored=tuple(keys))


class TestSkippedKeys:
    """Keys that transformers does not read pass where they are true of the model, or by --ignore-key."""

    HARMLESS: ClassVar[dict[str, dict[str, Any]]] = {
        "llama": {
            "is_llama_config": True, "rope_interleaved": False, "qkv_bias": False, "use_qk_norm": False,
            "unsloth_fixed": True, "unsloth_version": "2025.1", "_num_labels": 3, "custom_pipelines": {},
            "transformers.js_config": {"dtype": "q4"}, "sliding_window": None, "use_sliding_window": False,
            "max_window_layers": 24, "shared_expert_intermediate_size": 0, "layer_types": ["full_attention"],
            "rotary_dim": 8, "position_embedding_type": "rope", "resid_pdrop": 0.1, "no_bias": True, "x": None,
        },
        "gpt2": {"n_special": 0, "predict_special_tokens": True, "_num_labels": 1, "output_past": True,
                 "hidden_size": 32, "max_position_embeddings": 48, "use_bias": True},
        "qwen2": {"qkv_bias": True, "num_experts": 0, "use_qk_norm": False},
        "qwen3": {"use_qk_norm": True, "qkv_bias": False},
        "qwen3_moe": {"shared_expert_intermediate_size": 0, "qkv_bias": False, "use_qk_norm": True,
                      "num_local_experts": 4, "layer_types": ["full_attention"]},
        "mistral": {"use_sliding_window": True, "layer_types": ["sliding_attention"], "attention_bias": False},
        "gemma": {"hidden_activation": "gelu_pytorch_tanh", "rope_interleaved": False},
    }  # fmt: skip
    ANOTHER: ClassVar[dict[str, dict[str, Any]]] = {
        "llama": {
            "qkv_bias": True, "use_qk_norm": True, "rope_interleaved": True, "shared_expert_intermediate_size": 1024,
            "sliding_window": 16, "use_sliding_window": True, "layer_types": ["sliding_attention"], "logit_scale": 0.06,
            "clip_qkv": 8.0, "no_rope_layers": [0], "rotary_dim": 4, "alibi": True, "hidden_activation": "relu",
            "use_parallel_residual": True, "num_nextn_predict_layers": 1, "never_heard_of": 1, "use_rope": False,
            "attn_logit_softcapping": 30.0, "tie_weights": True, "rms_norm": False, "layer_norm_eps": 0.1,
        },
        "mistral": {"use_sliding_window": False, "layer_types": ["full_attention"], "attention_bias": True},
        "qwen3_moe": {"shared_expert_intermediate_size": 32, "n_shared_experts": 1, "num_local_experts": 5},
    }  # fmt: skip

    @pytest.mark.parametrize("family", HARMLESS)
    def test_what_is_true_of_the_model_passes_with_a_line(self, family: str, altered: Callable[..., Path]) -> None:
        keys = self.HARMLESS[family]
        notes: list[str] = []
        imported(altered(family, **keys), notes=notes)
        (line,) = (note for note in notes if "skipped, as transformers does" in note)
        known = {name for each in DESCRIPTIONS[family].keys for name in each.names} | DESCRIPTIONS[family].only.keys()
        assert all(f"{key} {json.dumps(value)}" in line for key, value in keys.items() if key not in known)

    @pytest.mark.parametrize("family", ANOTHER)
    def test_what_is_another_models_is_refused_with_its_value(self, family: str, altered: Callable[..., Path]) -> None:
        for key, value in self.ANOTHER[family].items():
            with pytest.raises(BigtrainError) as caught:
                imported(altered(family, **{key: value}))
            assert key in str(caught.value)

    def test_a_key_is_ignored_on_order_and_that_is_recorded(
        self, altered: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The manifest has it, and what opens the folder later shows it."""
        there = altered(never_heard_of=[1], qkv_bias=True, auto_map={"AutoModelForCausalLM": "modeling.Mine"})
        ignored = ("never_heard_of", "qkv_bias", "auto_map")
        options = [part for key in ignored for part in ("--ignore-key", key)]
        out = there.parent / "out"
        result = CliRunner().invoke(app, ["import", str(there), str(out), *options, "--json"])
        assert result.exit_code == 0, result.output
        shown = json.loads(result.stdout)["ignored_keys"]
        assert shown == json.loads((out / "manifest.json").read_text())["ignored_keys"]
        assert shown == {"never_heard_of": [1], "qkv_bias": True, "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
        assert len(Imported(out).notes) == 3
        TextModel.open(out)
        assert "--ignore-key never_heard_of: its config.json said [1]" in caplog.text

    @pytest.mark.parametrize("key", ["rope_theta", "hidden_act", "model_type", "quantization_config", "not_there"])
    def test_what_decides_is_never_ignored(self, key: str, altered: Callable[..., Path]) -> None:
        keys = {"quantization_config": {"bits": 4}} if key == "quantization_config" else {}
        with pytest.raises(BigtrainError, match=f"{key} .*cannot be ignored|has no key {key}"):
            imported(altered(**keys), ignored=(key,))

    @pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt_neox"])
    @given(data=st.data())
    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_keys_give_the_logits_of_transformers_or_a_reason(
        self, family: str, data: st.DataObject, altered: Callable[..., Path]
    ) -> None:
        mapped = {name for each in DESCRIPTIONS.values() for keys in each.keys for name in keys.names}
        own = {name for keys in DESCRIPTIONS[family].keys for name in keys.names}
        keys = st.sampled_from(sorted({*_CLAIMS, *_ABOUT_FILES, *mapped} - own))
        values = st.sampled_from([None, True, False, 0, 1, 4, 32, 48, 0.5, 1e4, "silu", [], {}, ["full_attention"]])
        there = altered(family, **data.draw(st.dictionaries(keys, values, min_size=1, max_size=2)))
        try:
            out = imported(there)
        except BigtrainError as error:
            assert "defect of bigtrain" not in str(error)
        else:
            shutil.rmtree(out.parent)


class TestEnds:
    """Where nothing says which token ends a text, text goes on to the length that is asked for."""

    @pytest.mark.parametrize(
        ("generation", "config", "ends"),
        [
            (None, {"eos_token_id": ..., "bos_token_id": ...}, ()),
            (None, {"eos_token_id": None}, ()),
            (None, {"eos_token_id": [3, 4]}, (3, 4)),
            ("{}", {}, ()),
            ('{"eos_token_id": null}', {}, ()),
            ('{"eos_token_id": []}', {"bos_token_id": None}, ()),
            ('{"eos_token_id": 99999}', {"bos_token_id": 99999}, (99999,)),
            ('{"eos_token_id": -1}', {"bos_token_id": -1}, ()),
            ("{", {"eos_token_id": None}, ()),
            ("[1]", {"eos_token_id": 5}, (5,)),
            ("[" * 100_000, {"eos_token_id": 5}, (5,)),
        ],
    )
    def test_text_goes_on_to_the_length(
        self, generation: str | None, config: dict[str, Any], ends: tuple[int, ...], altered: Callable[..., Path]
    ) -> None:
        there = altered(**config)
        (there / "generation_config.json").unlink()
        if generation is not None:
            (there / "generation_config.json").write_text(generation)
        model = TextModel.open(there)
        assert model.end_of_text == ends
        made = model.continue_texts(["def"], max_new_tokens=6, sampling=Sampling(temperature=0)).texts[0]
        assert len(made.tokens) == 6 or made.tokens[-1] in ends
        if not ends or ends == (99999,):
            assert (made.ended, len(made.tokens)) == ("length", 6)
        imported(there)


def with_header(change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> Callable[[bytes], bytes]:
    """Change the header of a safetensors file."""

    def make(content: bytes) -> bytes:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + (content[8 + length :] if data is None else data)

    return make


NORM = "model.norm.weight"
FORGED: dict[str, Callable[[bytes], bytes]] = {
    "a header longer than the file": lambda c: struct.pack("<Q", 1 << 62) + c[8:],
    "a header of 90 MB that is not there": lambda c: struct.pack("<Q", 90_000_000) + c[8:],
    "no header": lambda c: b"",
    "a header that is no object": lambda c: struct.pack("<Q", 2) + b"[]" + c[8:],
    "a header that is nested deeply": lambda c: struct.pack("<Q", 40_000) + b'{"a":' * 8_000 + c,
    "tensors that overlap": with_header(lambda h: h[NORM].update(data_offsets=h["lm_head.weight"]["data_offsets"])),
    "offsets past the end": with_header(lambda h: h[NORM].update(data_offsets=[1 << 40, (1 << 40) + 128])),
    "offsets below zero": with_header(lambda h: h[NORM].update(data_offsets=[-128, 0])),
    "offsets that turn back": with_header(lambda h: h[NORM]["data_offsets"].reverse()),
    "another type": with_header(lambda h: h[NORM].update(dtype="I32")),
    "a type that is none": with_header(lambda h: h[NORM].update(dtype="F7")),
    "a shape of another size": with_header(lambda h: h[NORM].update(shape=[1 << 40])),
    "a shape below zero": with_header(lambda h: h[NORM].update(shape=[-32])),
    "a shape whose size overflows": with_header(lambda h: h[NORM].update(shape=[1 << 33, 1 << 33])),
    "a tensor too many": with_header(lambda h: h.update(x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
    "a tensor too few": with_header(lambda h: h.pop("lm_head.weight")),
    "no tensors": with_header(dict.clear, b""),
    "a file cut short": lambda c: c[:-1],
    "bytes at the end": lambda c: c + b"\0",
}


class TestDamage:
    """A file that is damaged or forged is one message, before anything is written."""

    @pytest.mark.parametrize("name", FORGED)
    def test_a_forged_header_is_refused(self, name: str, altered: Callable[..., Path]) -> None:
        there = altered()
        file = there / "model.safetensors"
        file.write_bytes(FORGED[name](file.read_bytes()))
        with pytest.raises(BigtrainError):
            imported(there)

    @pytest.mark.parametrize(
        ("keys", "named"),
        [
            ({"hidden_size": "64"}, "hidden_size"),
            ({"hidden_size": None}, "hidden_size"),
            ({"hidden_size": 10**9}, "hidden_size"),
            ({"hidden_size": 32.5}, "hidden_size"),
            ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
            ({"num_hidden_layers": 9000}, "layers"),
            ({"num_hidden_layers": [2]}, "num_hidden_layers"),
            ({"vocab_size": 1 << 62}, "vocab_size"),
            ({"max_position_embeddings": 1 << 62}, "max_position_embeddings"),
            ({"rms_norm_eps": float("nan")}, "eps|JSON|json"),
            ({"rope_parameters": {"rope_theta": float("inf")}, "rope_theta": ...}, "rope_theta|JSON|json|finite"),
            ({"rope_parameters": []}, "rope|hidden|"),
            ({"model_type": ["llama"]}, "model_type"),
            ({"architectures": "LlamaForCausalLM"}, "architectures"),
            ({"architectures": [["LlamaForCausalLM"]]}, "architectures"),
            ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
            ({"a\x1b[2Jb": 1}, "unknown key"),
        ],
    )
    def test_an_odd_value_is_refused_by_its_key(
        self, keys: dict[str, Any], named: str, altered: Callable[..., Path]
    ) -> None:
        with pytest.raises(BigtrainError, match=named) as caught:
            imported(altered(**keys))
        assert "\x1b" not in str(caught.value)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
    def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused_at_once(
        self, name: str, altered: Callable[..., Path]
    ) -> None:
        for make in (os.mkfifo, os.mkdir):
            there = altered()
            file = there / name
            file.unlink(missing_ok=True)
            make(file)
            for use in (imported, TextModel.open):
                with pytest.raises(BigtrainError):
                    use(there)
            file.rmdir() if file.is_dir() else file.unlink()

    @pytest.mark.parametrize(
        "content",
        [
            "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": "x"}', "[" * 100_000,
            "\xff",
            '{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}',
            '{"weight_map": {"model.norm.weight": 3}}',
        ],
    )  # fmt: skip
    def test_an_index_that_is_none_is_refused(self, content: str, altered: Callable[..., Path]) -> None:
        there = altered()
        (there / "model.safetensors.index.json").write_text(content, encoding="latin-1")
        with pytest.raises(BigtrainError):
            imported(there)

    def test_a_tensor_in_two_files_and_weights_twice_are_refused(self, altered: Callable[..., Path]) -> None:
        there = altered()
        tensors = load_file(there / "model.safetensors")
        save_file(tensors, there / "a.safetensors")
        save_file({NORM: tensors[NORM]}, there / "b.safetensors")
        listed = dict.fromkeys(tensors, "a.safetensors")
        index = there / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": listed}))
        with pytest.raises(BigtrainError, match="holds weights twice"):
            imported(there)
        (there / "model.safetensors").unlink()
        imported(there)
        shutil.rmtree(there.parent / "new")
        index.write_text(json.dumps({"weight_map": listed | {NORM: "b.safetensors"}}))
        with pytest.raises(BigtrainError, match="is in two files"):
            imported(there)

    @pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "header"])
    @given(data=st.data())
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_mutation_is_one_message_or_harmless(
        self, name: str, data: st.DataObject, altered: Callable[..., Path]
    ) -> None:
        there = altered()
        file = there / ("model.safetensors" if name == "header" else name)
        content = file.read_bytes()
        start, end = (8, 8 + struct.unpack("<Q", content[:8])[0]) if name == "header" else (0, len(content))
        tree = json.loads(content[start:end])
        mutated = data.draw(mutations(tree))
        text = json.dumps(mutated).encode() if not isinstance(mutated, bytes) else mutated
        file.write_bytes((struct.pack("<Q", len(text)) if name == "header" else b"") + text + content[end:])
        out = there.parent / "out"
        for use in (lambda: import_hf(there, out, end_of_text=END), lambda: TextModel.open(there)):
            try:
                use()
            except BigtrainError as error:
                assert len(str(error)) < 5000


JUNK = st.sampled_from(
    [None, True, -1, 0, 1, 10**9, 1 << 70, 1e400, float("nan"), 0.5, "", "x", "64", "\ud800", [], [None], {}, {"a": 1}]
)


@st.composite
def mutations(draw: st.DrawFn, tree: dict[str, Any]) -> Any:
    """JSON with a value that is another, a key that is left out or new, another kind of document, or bytes changed."""
    kind = draw(st.sampled_from(["value", "value", "value", "inner", "remove", "add", "document", "bytes"]))
    key = draw(st.sampled_from(sorted(tree)))
    if kind == "document":
        return draw(JUNK)
    if kind == "bytes":
        text = bytearray(json.dumps(tree).encode())
        text[draw(st.integers(0, len(text) - 1))] = draw(st.integers(0, 255))
        return bytes(text)
    if kind == "remove":
        return {name: value for name, value in tree.items() if name != key}
    if kind == "add":
        return {**tree, draw(st.sampled_from(["x", "", "\ud800", "lm_head.weight", "rope_scaling"])): draw(JUNK)}
    if kind == "inner" and isinstance(tree[key], dict) and tree[key]:
        inner = draw(st.sampled_from(sorted(tree[key])))
        return {**tree, key: {**tree[key], inner: draw(JUNK)}}
    return {**tree, key: draw(JUNK)}
