"""What a run has made is used within the bounds of its tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bigtrain.config.data_settings import TokenizerSettings
from bigtrain.config.model_settings import ModelSettings
from bigtrain.data.tokenizer import parse_tokenizer, train_tokenizer, vocabulary_size
from bigtrain.model import build_model
from bigtrain.run import trained


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = (f"the number {number} of many" for number in range(500))
    return parse_tokenizer(train_tokenizer(TokenizerSettings(vocab_size=290), texts))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_text_is_made_of_tokens_that_the_tokenizer_has_though_the_embedding_has_more(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Of an embedding of 512 rows for 290 tokens, nearly half would be drawn from the rows of no token."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = build_model(ModelSettings.model_validate({**shape, "vocab_size": 512, "max_position_embeddings": 64}))
    model.init_weights(0)
    settings = SimpleNamespace(data=SimpleNamespace(tokenizer=TokenizerSettings()))
    opened = trained.TrainedModel(cast(Any, settings), cast(Any, None), model.eval(), tokenizer, torch.device("cpu"))
    drawn: list[Tensor] = []
    real = trained.generate
    monkeypatch.setattr(trained, "generate", lambda *args, **kwargs: drawn.append(real(*args, **kwargs)) or drawn[-1])
    for seed in range(2):
        text = opened.generate("the", max_new_tokens=8, temperature=temperature, top_k=0, top_p=1.0, seed=seed)
        assert isinstance(text, str)
    assert vocabulary_size(tokenizer) == 290
    assert max(int(ids.max()) for ids in drawn) < 290
