"""The key that was probably meant where a key does not exist."""

from __future__ import annotations

from bigtrain.base import BigtrainError
from bigtrain.config.keys import all_keys, find, general, keys_of, nearest_known

OTHER_TOOLS: dict[str, tuple[str, str]] = {
    # Hugging Face Trainer, DeepSpeed, Megatron-LM, nanoGPT: their name -> ours, and how ours differs where it does.
    "max_steps": ("train.steps", ""),
    "train_iters": ("train.steps", ""),
    "num_train_epochs": ("train.tokens", "the length of a run is given in tokens or steps, never in epochs"),
    "train_batch_size": ("train.global_batch_size", ""),
    "batch_size": ("train.global_batch_size", "samples in one optimizer step, over all ranks"),
    "per_device_train_batch_size": ("train.micro_batch_size", ""),
    "train_micro_batch_size_per_gpu": ("train.micro_batch_size", ""),
    "per_device_eval_batch_size": ("evaluate.micro_batch_size", ""),
    "lr": ("optimizer.learning_rate", ""),
    "adam_beta1": ("optimizer.betas", "both in one list"),
    "adam_beta2": ("optimizer.betas", "both in one list"),
    "adam_epsilon": ("optimizer.eps", ""),
    "gradient_clipping": ("optimizer.max_grad_norm", ""),
    "grad_clip": ("optimizer.max_grad_norm", ""),
    "lr_scheduler_type": ("schedule.name", ""),
    "num_warmup_steps": ("schedule.warmup_steps", ""),
    "warmup_ratio": ("schedule.warmup_steps", "given in steps"),
    "min_lr": ("schedule.min_lr_ratio", "given as a share of the peak"),
    "seq_length": ("data.sequence_length", ""),
    "max_seq_length": ("data.sequence_length", ""),
    "block_size": ("data.sequence_length", ""),
    "output_dir": ("run_dir", ""),
    "save_steps": ("checkpoint.every_steps", ""),
    "save_total_limit": ("checkpoint.keep", ""),
    "eval_steps": ("evaluate.every_steps", ""),
    "logging_steps": ("tracking.log_every_steps", ""),
    "report_to": ("tracking.wandb", ""),
    "run_name": ("tracking.name", ""),
    "gradient_checkpointing": ("engine.activation_checkpointing", "none, selective or full"),
    "torch_compile": ("engine.compile", ""),
    "dtype": ("engine.precision", "bf16 or fp32"),
    "torch_dtype": ("engine.precision", "bf16 or fp32"),
    "bf16": ("engine.precision", "`precision: bf16`"),
    "zero_optimization": ("engine.zero_stage", "further keys of DeepSpeed go under engine.deepspeed"),
    "model_type": ("model.family", ""),
    "n_embd": ("model.hidden_size", ""),
    "n_layer": ("model.num_hidden_layers", ""),
    "n_head": ("model.num_attention_heads", ""),
    "n_inner": ("model.intermediate_size", ""),
    "n_positions": ("model.max_position_embeddings", ""),
    "rms_norm_eps": ("model.norm_eps", ""),
    "layer_norm_epsilon": ("model.norm_eps", ""),
}


def unknown_key(path: str, place: str | None = None) -> BigtrainError:
    """The error for a key that does not exist, with the name that was probably meant.

    Args:
        path: the key as it was given, with its section.
        place: where it was given, `file:line` or an override.
    """
    what = f"unknown key {path}" if place is None else f"{place}: unknown key {path}"
    section, _, name = path.rpartition(".")

    if name == "gradient_accumulation_steps":
        return BigtrainError(
            f"{what}: the number of gradient accumulation steps is derived, never typed",
            wanted="train.global_batch_size / (number of processes * train.micro_batch_size)",
            fix="remove it; set train.global_batch_size and train.micro_batch_size",
        )
    if ":" in name:  # `{steps:3}`, which YAML reads as one word
        key, value = name.split(":", 1)
        return BigtrainError(what, wanted=f"{key}: {value}", fix="put a space after the colon")
    if path and find(path) is not None:  # a file with `train.steps: 20` at its top level
        return BigtrainError(what, wanted="sections, one inside the other", fix=f"put `{name}:` under `{section}:`")
    if name in OTHER_TOOLS:
        target, difference = OTHER_TOOLS[name]
        wanted = f"{target} ({difference})" if difference else target
        return BigtrainError(what, wanted=wanted, fix=_move(section, name, target))
    if right := _right_names(section, name):
        return BigtrainError(what, wanted=" or ".join(right), fix=_move(section, name, right[0]))
    around = nearest_known(section)
    return BigtrainError(
        what,
        wanted=f"one of {', '.join(key.name for key in keys_of(around.path))}",
        fix=f"remove it, or see: bigtrain config explain {around.path}".rstrip(),
    )


def _right_names(section: str, name: str) -> list[str]:
    from difflib import get_close_matches

    keys = [key for key in all_keys().values() if key.path]
    here = [key.name for key in keys_of(section)]
    if nearly_here := get_close_matches(name, here, n=1, cutoff=0.9):  # `weight` where there is `weights`
        return [f"{section}.{nearly_here[0]}" if section else nearly_here[0]]
    if same_name := [key.path for key in keys if key.name == name]:
        return same_name
    if close := get_close_matches(name, here, n=1, cutoff=0.6):
        return [f"{section}.{close[0]}" if section else close[0]]
    anywhere = {key.name: key.path for key in keys}
    return [anywhere[close] for close in get_close_matches(name, anywhere, n=1, cutoff=0.75)]


def _move(section: str, name: str, target: str) -> str:
    new_section, _, new_name = target.rpartition(".")
    edits = []
    if new_name != name:
        edits.append(f"rename it to {new_name}")
    if general(new_section) != general(section):
        edits.append(f"move it to section {new_section}" if new_section else "move it to the top level")
    return " and ".join(edits)
