"""Generation on a CPU, side by side: bigtrain, its loop without a cache, and transformers.generate.

    python benchmarks/generate.py [--model quickstart] [--tokens 128] [--repeats 5]

The same random llama weights, the same prompts, greedy, the same number of threads; contestants take turns in one
process. They draw the same tokens in float32, which is checked first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import spread, write_result

from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert.config_json import config_of
from bigtrain.convert.import_hf import read_hf
from bigtrain.model import LanguageModel, Sampling, build_model, generate

PROMPT = 32
"""Tokens of the longest prompt of a batch; the others are shorter by one each."""
BATCHES = (1, 8)
MODELS: dict[str, Any] = {
    "quickstart": {
        "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 1,
        "intermediate_size": 512, "vocab_size": 4096, "max_position_embeddings": 256,
    },
    "llama-30m": {
        "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 1408, "vocab_size": 8192, "max_position_embeddings": 1024,
    },
}  # fmt: skip
CONTESTANTS = {
    "bigtrain": "bigtrain, keys and values cached, prompts packed",
    "uncached": "bigtrain's decoder over the whole text for every token, rows of one length, as it was before",
    "transformers": "transformers.generate, its dynamic cache, prompts padded at the left, attention by SDPA",
}
Contestant = Callable[[list[list[int]], int], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = {}
    for name in args.model:
        for dtype in (torch.float32, torch.bfloat16):
            settings = ModelSettings(family="llama", tie_word_embeddings=True, **MODELS[name])
            models[f"{name} {str(dtype).removeprefix('torch.')}"] = compare(settings, dtype, args)
    result = {
        "load_average": os.getloadavg(), "threads": args.threads, "new_tokens": args.tokens, "prompt": PROMPT,
        "contestants": CONTESTANTS, "models": models,
    }  # fmt: skip
    print(write_result("generate", result, args.out))


@torch.inference_mode()
def compare(settings: ModelSettings, dtype: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    contestants = contestants_of(settings, dtype)
    rows: dict[str, Any] = {"parameters": sum(p.numel() for p in build_model(settings).parameters())}
    for batch in BATCHES:
        prompts = [[(7 * row + 3 * place) % 997 for place in range(PROMPT - row)] for row in range(batch)]
        level = [[(7 * row + 3 * place) % 997 for place in range(PROMPT)] for row in range(batch)]
        if dtype == torch.float32:
            made = [contestants[name](prompts, 16) for name in ("bigtrain", "transformers")]
            assert made[0] == made[1]
            assert contestants["uncached"](level, 16) == contestants["bigtrain"](level, 16)
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(args.repeats):
            for name, contestant in contestants.items():
                start = time.perf_counter()
                made_now = contestant(level if name == "uncached" else prompts, args.tokens)
                rates[name].append(sum(map(len, made_now)) / (time.perf_counter() - start))
        ratios = {
            name: spread([ours / theirs for ours, theirs in zip(rates["bigtrain"], values, strict=True)])
            for name, values in rates.items()
            if name != "bigtrain"
        }
        rows[f"batch {batch}"] = {
            "tokens_per_second": {name: spread(values) for name, values in rates.items()},
            "bigtrain_is_faster_by": ratios,
        }
        said = ", ".join(f"{name} {statistics.median(values):,.0f}" for name, values in rates.items())
        faster = ", ".join(f"{name} {r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for name, r in ratios.items())
        print(f"{settings.hidden_size} wide, {dtype}, batch {batch}: tokens/s {said}; faster than {faster}", flush=True)
    return rows


def contestants_of(settings: ModelSettings, dtype: torch.dtype) -> dict[str, Contestant]:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**config_of(settings))
    config.eos_token_id = config.bos_token_id = None
    theirs = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():  # as initialised, a model repeats itself
        for parameter in theirs.parameters():
            parameter.mul_(3)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        _, weights = read_hf(Path(folder))
        ours = build_model(settings).to(dtype).eval()
        parameters = dict(ours.named_parameters())
        for name, tensor in weights.items():
            parameters[name].data.copy_(tensor)

    def cached(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        made = generate(ours, prompts, max_new_tokens=tokens, sampling=Sampling(temperature=0))
        return [row.tokens for row in made]

    def by_transformers(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        made = theirs.generate(
            torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]),
            attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding]),
            do_sample=False, max_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
        return [row[longest:] for row in made.tolist()]

    return {
        "bigtrain": cached,
        "uncached": lambda prompts, tokens: uncached(ours, prompts, tokens),
        "transformers": by_transformers,
    }


def uncached(model: LanguageModel, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The loop that `bigtrain.model.generate` was before it had a cache, taking the likeliest token."""
    ids = torch.tensor(prompts)
    for _ in range(tokens):
        logits = model.lm_head(model.hidden(ids)[:, -1]).float()
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return [row[len(prompts[0]) :] for row in ids.tolist()]


if __name__ == "__main__":
    main()
