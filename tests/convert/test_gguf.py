"""An exported GGUF file is, for llama.cpp, the model and the tokenizer that were trained."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from bigtrain.base.errors import BigtrainError
from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert.gguf import ARCHITECTURES, context_length, export_gguf
from bigtrain.convert.gguf_quantise import quantise_gguf
from bigtrain.convert.gguf_vocabulary import read_vocabulary
from bigtrain.convert.llama_cpp import LARGEST_DIFFERENCE, TEXTS, compare_tokenizers, compare_with_llama_cpp
from bigtrain.data import BeginOfText, TokenizerContent
from bigtrain.model import build_model
from tests.refusals import assert_refused

END = "<|endoftext|>"
GROUPED = {"num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "llama-biased-tied-wide": {
        "tie_word_embeddings": True, "attention_bias": True, "attention_output_bias": True, "mlp_bias": True,
        "head_dim": 16,
    },
    "llama-linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama-ntk": {"rope_scaling": {"rope_type": "ntk", "factor": 4.0}},
    "llama-yarn": {
        "head_dim": 32, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "attention_factor": 1.5}
    },
    "llama-llama3": {"head_dim": 16, "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
    "llama-mup": {"mup_base_hidden_size": 16, "embedding_multiplier": "sqrt_hidden_size", "attention_multiplier": 0.2},
    "granite": {
        "family": "granite", "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1,
        "logits_scaling": 4.0, **GROUPED,
    },
    "mistral": {"family": "mistral", **GROUPED},
    "gpt2": {"family": "gpt2", "tie_word_embeddings": True},
    "gpt2-untied": {"family": "gpt2", "norm_eps": 1e-3},
    "gpt_neox": {"family": "gpt_neox", "partial_rotary_factor": 0.5},
    "gpt_neox-sequential-tied": {"family": "gpt_neox", "parallel_residual": False, "tie_word_embeddings": True},
    "qwen2": {"family": "qwen2", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, **GROUPED},
    "qwen3": {"family": "qwen3", "head_dim": 16, **GROUPED},
    "olmo2": {"family": "olmo2", "tie_word_embeddings": True, **GROUPED},
    "gemma": {"family": "gemma", "head_dim": 16, "num_key_value_heads": 1},
    "mixtral": {"family": "mixtral", "num_experts": 4, **GROUPED},
    "qwen3_moe": {
        "family": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, **GROUPED
    },
    "gemma2": {"family": "gemma2", "sliding_window": 12, "head_dim": 16, **GROUPED},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _components(require: Any) -> None:
    require("gguf")
    require("llama_cpp")


def shape(name: str, **changes: Any) -> ModelSettings:
    common = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56,
        "vocab_size": 320, "max_position_embeddings": 48, "initializer_range": 0.2,
    }  # fmt: skip
    return ModelSettings.model_validate(common | SHAPES[name] | changes)


def weights_of(settings: ModelSettings) -> dict[str, Tensor]:
    """Weights of which no two are alike, biases and norms included."""
    model = build_model(settings)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    return {
        name: parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters()
    }


def byte_level(use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False)])


# As Meta and Alibaba publish them in tokenizer.json.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
SPLITS: dict[str, tuple[pre_tokenizers.PreTokenizer, bool]] = {
    "gpt-2": (byte_level(True), False),
    "llama-bpe": (split_by(LLAMA3), True),
    "dbrx": (split_by(LLAMA3), False),
    "qwen2": (split_by(QWEN2), False),
    "starcoder": (pre_tokenizers.Sequence([DIGITS, byte_level(True)]), False),
}


def trained_tokenizer(split: str, size: int = 300) -> Tokenizer:
    pre_tokenizer, ignore_merges = SPLITS[split]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, Path(__file__).read_text()] * 3, trainer)
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(trained_tokenizer("gpt-2"), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


def exported(weights: Mapping[str, Tensor], settings: ModelSettings, file: Path, out: Path, **options: Any) -> Path:
    export_gguf(weights, settings, file, out, end_of_text=END, **options)
    return out


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_computes_our_logits_and_chooses_our_tokens(
    name: str, tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = shape(name)
    weights = weights_of(settings)
    file = exported(weights, settings, tokenizer_file, tmp_path / "model.gguf", dtype=torch.float32)
    comparison = compare_with_llama_cpp(file, weights, settings, tokenizer, torch.float32)
    # Its GELU is read from a table of 16 bits.
    assert comparison.difference < (1e-3 if "gelu" in settings.hidden_act else 5e-6)
    assert comparison.greedy_gap == 0  # each token that it chose is the first of ours, after the same ones
    assert len(comparison.tokens) == 24


def test_every_family_that_is_exported_is_in_that_test() -> None:
    assert {shape(name).family for name in SHAPES} == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_self_check_finds_16_bits_equal_and_a_wrong_file_not(
    name: str, dtype: torch.dtype, tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = shape(name)
    weights = weights_of(settings)
    file = exported(weights, settings, tokenizer_file, tmp_path / "model.gguf", dtype=dtype)
    comparison = compare_with_llama_cpp(file, weights, settings, tokenizer, dtype)
    comparison.check(file, dtype)
    assert comparison.difference < LARGEST_DIFFERENCE[dtype] / 5

    rows = weights["layers.1.self_attn.k_proj.weight"]
    swapped = weights | {"layers.1.self_attn.k_proj.weight": rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)}
    with pytest.raises(BigtrainError, match="does not compute what bigtrain computes"):
        compare_with_llama_cpp(file, swapped, settings, tokenizer, dtype).check(file, dtype)


def test_matrices_have_the_type_asked_for_and_vectors_are_float32(tokenizer_file: Path, tmp_path: Path) -> None:
    import gguf

    settings = shape("qwen3")
    weights = weights_of(settings)
    sizes = {}
    for dtype, kind in ((torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")):
        file = exported(weights, settings, tokenizer_file, tmp_path / "model.gguf", dtype=dtype)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
        assert tensors["blk.0.attn_q.weight"].tensor_type.name == tensors["output.weight"].tensor_type.name == kind
        assert tensors["blk.2.attn_q_norm.weight"].tensor_type.name == "F32"
        sizes[kind] = file.stat().st_size
    assert sizes["F16"] == sizes["BF16"] < sizes["F32"]


def test_only_what_is_being_written_is_in_memory(tokenizer_file: Path, tmp_path: Path) -> None:
    settings = shape("llama")
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class FromDisk(Mapping[str, Tensor]):
        def __init__(self) -> None:
            self.weights = weights_of(settings)

        def __getitem__(self, name: str) -> Tensor:
            nonlocal most
            most = max(most, 1 + sum(reference() is not None for reference in alive))
            tensor = self.weights[name].clone()
            alive.append(weakref.ref(tensor))
            return tensor

        def __iter__(self) -> Iterator[str]:
            return iter(self.weights)

        def __len__(self) -> int:
            return len(self.weights)

    exported(FromDisk(), settings, tokenizer_file, tmp_path / "model.gguf", dtype=torch.float32)
    assert len(alive) == len(weights_of(settings)) and most <= 2


def test_where_llama_cpp_has_no_sliding_window_the_context_ends_with_ours(tokenizer_file: Path, tmp_path: Path) -> None:
    import gguf

    assert context_length(shape("gemma2", sliding_window=12)) == 48
    settings = shape("mistral", sliding_window=20)
    file = exported(weights_of(shape("mistral")), settings, tokenizer_file, tmp_path / "model.gguf")
    assert gguf.GGUFReader(file).fields["llama.context_length"].contents() == context_length(settings) == 20


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"qk_norm": "head"}, "llama cannot have this model.qk_norm"),
    ("llama", {"position_embedding": "alibi"}, "llama cannot have this model.position_embedding"),
    ("llama", {"hidden_act": "relu2"}, "llama cannot have this model.hidden_act"),
    ("qwen3", {"logits_scaling": 2.0}, "qwen3 cannot have this model.logits_scaling"),
    ("qwen3", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope_scaling.rope_type"),
    ("qwen3_moe", {"norm_topk_prob": False}, "qwen3moe cannot have this model.norm_topk_prob"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "qwen3moe cannot have this model.mlp_only_layers"),
    ("mixtral", {"router_bias_update_rate": 0.001}, "llama cannot have this model.router_bias_update_rate"),
    ("gpt2", {"head_dim": 16}, "as wide as hidden_size"),
    ("gpt2", {"mlp_bias": False}, "gpt2 cannot have this model.mlp_bias"),
    ("gemma", {"tie_word_embeddings": False}, "no output head of its own"),
    ("gemma2", {"attn_logit_softcapping": None}, "gemma2 cannot have this model.attn_logit_softcapping"),
    ("gemma2", {"num_hidden_layers": 46}, "gemma2 of 46 layers"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], message: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(BigtrainError, match=message):
        exported({}, shape(name, **changes), tokenizer_file, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_family_that_is_not_verified_is_refused_with_those_that_are(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ARCHITECTURES, "gemma")
    with pytest.raises(BigtrainError) as caught:
        exported({}, shape("gemma"), tokenizer_file, tmp_path / "model.gguf")
    assert "family gemma" in str(caught.value) and "olmo2, gemma2" in str(caught.value)


def test_wrong_weights_are_refused_and_training_only_ones_left_out(tokenizer_file: Path, tmp_path: Path) -> None:
    """Wrong weights are refused by name and those of training only are left out."""
    settings = shape("llama")
    weights = weights_of(settings)
    missing = {key: tensor for key, tensor in weights.items() if key != "layers.1.self_attn.v_proj.weight"}
    for wrong, named in (
        (missing, "layers.1.self_attn.v_proj.weight missing"),
        (weights | {"layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}, "layers.9.mlp.up_proj.weight surplus"),
        (weights | {"norm.weight": torch.zeros(7)}, "norm.weight"),
    ):
        with pytest.raises(BigtrainError, match=named):
            exported(wrong, settings, tokenizer_file, tmp_path / "model.gguf")
        assert not list(tmp_path.iterdir())
    looking_ahead = shape("llama", num_nextn_predict_layers=1)
    surplus = weights_of(looking_ahead)
    assert surplus.keys() > weights.keys()
    exported(surplus, looking_ahead, tokenizer_file, tmp_path / "model.gguf")


def test_an_earlier_export_is_replaced_and_another_file_never(tokenizer_file: Path, tmp_path: Path) -> None:
    settings, out = shape("llama"), tmp_path / "model.gguf"
    weights = weights_of(settings)
    exported(weights, settings, tokenizer_file, out, dtype=torch.float32)
    size = out.stat().st_size
    exported(weights, settings, tokenizer_file, out, dtype=torch.float16)
    assert out.stat().st_size < size and list(tmp_path.iterdir()) == [out]
    out.write_bytes(b"a thesis")
    with pytest.raises(BigtrainError, match="did not export"):
        exported(weights, settings, tokenizer_file, out)
    assert out.read_bytes() == b"a thesis"


class Vocabularies:
    """llama.cpp's and our tokenizer for each split, kept for many texts."""

    def __init__(self, folder: Path) -> None:
        import gguf
        import llama_cpp

        from bigtrain.convert.gguf_vocabulary import add_vocabulary

        self.pairs = {}
        for split in SPLITS:
            ours = trained_tokenizer(split, size=600)
            ours.add_tokens([AddedToken("<tool>", normalized=False)])
            (folder / split).mkdir()
            vocabulary = read_vocabulary(saved(ours, folder / split), END, 640)
            assert vocabulary.pre == split
            writer = gguf.GGUFWriter(folder / split / "vocabulary.gguf", "llama")
            add_vocabulary(writer, vocabulary)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            theirs = llama_cpp.Llama(str(folder / split / "vocabulary.gguf"), vocab_only=True, verbose=False)
            ours.encode_special_tokens = True
            self.pairs[split] = theirs, ours


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Vocabularies:
    return Vocabularies(tmp_path_factory.mktemp("vocabularies"))


WORDS = st.sampled_from(
    ["don't", "I'VE", " we'll", "1234", " 12", "\r\n", "\n\n", "\t", "  ", "\u00a0", "\u3000", "é", END]
)
ANY_TEXT = st.lists(st.one_of(WORDS, st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=6)), max_size=12)


@pytest.mark.parametrize("split", SPLITS)
@given(pieces=ANY_TEXT)
@example(pieces=[*TEXTS, END, "<tool>", " x<tool> y"])
@settings(max_examples=150)
def test_llama_cpp_cuts_any_text_into_our_tokens(split: str, pieces: list[str], vocabularies: Vocabularies) -> None:
    theirs, ours = vocabularies.pairs[split]
    text = "".join(pieces)
    assert theirs.tokenize(text.encode(), add_bos=True, special=False) == ours.encode(text).ids
    assert theirs.detokenize(ours.encode(text).ids, special=True).decode() == ours.decode(
        ours.encode(text).ids, skip_special_tokens=False
    )


def test_a_text_ends_with_our_token_and_begins_with_none(tokenizer_file: Path, tmp_path: Path) -> None:
    import llama_cpp

    settings = shape("llama")
    file = exported(weights_of(settings), settings, tokenizer_file, tmp_path / "model.gguf")
    theirs = llama_cpp.Llama(str(file), n_ctx=48, verbose=False)
    end = Tokenizer.from_file(str(tokenizer_file)).token_to_id(END)
    assert theirs.token_eos() == theirs.token_bos() == end
    assert theirs.tokenize(END.encode(), add_bos=True, special=True) == [end]


def other(**changes: Any) -> Tokenizer:
    content = json.loads(trained_tokenizer("gpt-2").to_str())
    for key, value in changes.items():
        (content["model"] if key in content["model"] else content)[key] = value
    return Tokenizer.from_str(json.dumps(content))


def with_tool(**flags: bool) -> Tokenizer:
    tokenizer = trained_tokenizer("gpt-2")
    tokenizer.add_tokens([AddedToken("<tool>", **flags)])
    return tokenizer


def beginning_with(*tokens: str, name: str = "gpt-2") -> Tokenizer:
    """A tokenizer that puts tokens before a text, with what llama.cpp is not to be told: padding and dropout."""
    tokenizer = trained_tokenizer(name)
    tokenizer.model.dropout = 0.5
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(3)
    tokenizer.post_processor = processors.TemplateProcessing(
        " ".join([*tokens, "$A"]), special_tokens=[(token, tokenizer.token_to_id(token)) for token in set(tokens)]
    )
    return tokenizer


@pytest.mark.parametrize("begin", ["own", "end of text", "none"])
def test_llama_cpp_puts_before_a_text_what_a_run_does(begin: str, tmp_path: Path) -> None:
    """The token that begins a text where the tokenizer has one. Else a text from nothing begins with end-of-text."""
    import llama_cpp

    settings = shape("llama")
    tokenizer = saved(beginning_with("!", name="llama-bpe"), tmp_path)
    mark, end = (Tokenizer.from_file(str(tokenizer)).token_to_id(token) for token in ("!", END))
    rule = {
        "own": BeginOfText((mark,), before_prompts=True),
        "end of text": BeginOfText((end,), before_prompts=False),
        "none": BeginOfText(),
    }[begin]
    file = exported(weights_of(settings), settings, tokenizer, tmp_path / "model.gguf", begin_of_text=rule)
    theirs = llama_cpp.Llama(str(file), n_ctx=48, verbose=False)
    assert theirs.token_bos() == (mark if begin == "own" else end)
    ours = TokenizerContent.read(tokenizer).as_trained(END, rule).for_prompts()
    for text in ("a", *TEXTS[:2], f"x{END}y"):
        assert theirs.tokenize(text.encode(), add_bos=True, special=True) == ours.encode(text).ids
    assert (ours.encode("a").ids[0] == mark) is (begin == "own")
    compare_tokenizers(theirs, ours)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda: Tokenizer(models.WordPiece({"a": 0, END: 1}, unk_token="a")), "only byte-level BPE"),
        (lambda: other(byte_fallback=True), "only byte-level BPE"),
        (lambda: with_tool(lstrip=True), "in other places"),
        (lambda: beginning_with(END, "a"), "at most one token before a text"),
        (lambda: other(normalizer=json.loads(normalizers.Lowercase().__getstate__())), "does not change text"),
        (lambda: other(ignore_merges=True), "no name for how"),
        (lambda: other(pre_tokenizer={"type": "Whitespace"}), "no name for how"),
        (lambda: other(pre_tokenizer=json.loads(split_by(r"\w+").__getstate__())), "no name for how"),
        (lambda: other(pre_tokenizer=json.loads(pre_tokenizers.ByteLevel(True).__getstate__())), "no name for how"),
        (lambda: trained_tokenizer("gpt-2", size=400), "more tokens than the model's vocabulary"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(changed: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BigtrainError, match=message):
        read_vocabulary(saved(changed(), tmp_path), END, 320)


def test_a_tokenizer_without_the_end_of_text_token_is_refused(tokenizer_file: Path) -> None:
    with pytest.raises(BigtrainError, match="no token '</s>'"):
        read_vocabulary(tokenizer_file, "</s>", 320)


def test_the_self_check_finds_a_tokenizer_that_is_another(
    tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = shape("llama")
    weights = weights_of(settings)
    file = exported(weights, settings, tokenizer_file, tmp_path / "model.gguf", dtype=torch.float32)
    with pytest.raises(BigtrainError, match="into other tokens"):
        compare_with_llama_cpp(file, weights, settings, trained_tokenizer("qwen2"), torch.float32)


BITS = {"Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K_S": 5.5, "Q4_K_S": 4.5, "Q4_0": 4.5, "Q3_K_S": 3.4375}
"""A weight in a block of each type, with its share of the block's scales (ggml-common.h)."""


@pytest.mark.parametrize("kind", BITS)
def test_llama_cpp_s_quantiser_makes_the_type_that_is_asked_for(
    kind: str, tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Matrices whose rows divide into blocks of 256 have it, their numbers are near ours, and it computes as we do."""
    import gguf
    from gguf.quants import dequantize

    settings = shape("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    weights = weights_of(settings)
    floats = exported(weights, settings, tokenizer_file, tmp_path / "floats.gguf", dtype=torch.float32)
    quantise_gguf(floats, tmp_path / "small.gguf", kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    up = tensors["blk.0.ffn_up.weight"]
    assert up.tensor_type.name == kind.removesuffix("_S")
    assert up.n_bytes * 8 / up.n_elements == BITS[kind]
    numbers, ours = torch.from_numpy(dequantize(up.data, up.tensor_type)), weights["layers.0.mlp.up_proj.weight"]
    error = float((numbers - ours).norm() / ours.norm())
    assert error < 2.0 ** -(BITS[kind] - 2.5)
    found = compare_with_llama_cpp(tmp_path / "small.gguf", weights, settings, tokenizer, torch.float32)
    assert found.difference < 16 * error  # a random model's sharp attention makes more of it than a trained one's


def test_a_type_that_llama_cpp_cannot_make_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    """Nothing is left of the attempt."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(BigtrainError) as caught:
        quantise_gguf(tmp_path / "broken.gguf", tmp_path / "out.gguf", "Q4_K_M")
    assert_refused(caught, "Q4_K_M", fix="--gguf-type")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]
