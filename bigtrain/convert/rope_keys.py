"""Rotary positions in config.json: `rope_parameters` since transformers 5, `rope_theta` beside `rope_scaling` before.

Both are written, so that tools of either age read the same; both are read, and must not contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bigtrain.config import ModelSettings
from bigtrain.convert.config_keys import Keys, unreadable
from bigtrain.model import attention_factor, effective_theta, original_context

_OF_TYPE: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "yarn": frozenset({
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    }),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
}  # fmt: skip
"""The keys that each type of scaling reads. transformers skips keys of another type too, with a warning."""


def rope(*, default_theta: float = 10000.0, partial: bool = False) -> Keys:
    """The keys of a family with rotary positions.

    Args:
        default_theta: what transformers takes where none is given.
        partial: only a share of a head's width rotates (gpt_neox, whose older keys have names of their own).
    """
    theta_names = ("rope_theta", "rotary_emb_base") if partial else ("rope_theta",)
    share_names = ("partial_rotary_factor", "rotary_pct") if partial else ("partial_rotary_factor",)

    def write(model: ModelSettings) -> dict[str, Any]:
        scaling, theta = _scaling(model), effective_theta(model)
        share = {"partial_rotary_factor": model.partial_rotary_factor} if partial else {}
        older = {theta_names[-1]: theta} | ({share_names[-1]: model.partial_rotary_factor} if partial else {})
        return {
            "rope_parameters": {"rope_type": "default", "rope_theta": theta, **share, **scaling},
            **older,
            **({"rope_scaling": scaling} if scaling else {}),
        }

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        given = _merged(config, theta_names, share_names)
        share = given.pop("partial_rotary_factor", 0.25 if partial else 1.0)
        if share != 1 and not partial:
            raise unreadable("partial_rotary_factor", share, "1.0, or none: in this family whole heads rotate")
        theta = given.pop("rope_theta", default_theta)
        return {
            "rope_theta": theta,
            "partial_rotary_factor": share,
            "rope_scaling": _read_scaling(given, config["max_position_embeddings"]),
        }

    return Keys(frozenset({"rope_parameters", "rope_scaling", *theta_names, *share_names}), write, read)


def two_ropes(*, global_theta: float, local_theta: float) -> Keys:
    """The keys of modernbert, whose layers with a window have a base of their own.

    Args:
        global_theta: what transformers takes for the other layers where none is given.
        local_theta: the same for those with a window.
    """
    sections = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}

    def write(model: ModelSettings) -> dict[str, Any]:
        theta = effective_theta(model)
        thetas = {"full_attention": theta, "sliding_attention": model.local_rope_theta or theta}
        return {
            "rope_parameters": {
                section: {"rope_type": "default", "rope_theta": theta} for section, theta in thetas.items()
            },
            **{older: thetas[section] for section, older in sections.items()},
        }

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get("rope_scaling") is not None:
            raise unreadable("rope_scaling", config["rope_scaling"], "none: this family has two bases in its place")
        given = config.get("rope_parameters") or {}
        if unknown := given.keys() - sections.keys():
            raise unreadable("rope_parameters", ", ".join(sorted(unknown)), ", ".join(sections))
        defaults = {"full_attention": global_theta, "sliding_attention": local_theta}
        thetas = {}
        for section, older in sections.items():
            inside = given.get(section) or {}
            if inside.get("rope_type", "default") != "default" or inside.keys() - {"rope_type", "rope_theta"}:
                raise unreadable(f"rope_parameters.{section}", inside, "rope_type default, with a rope_theta")
            found = [place[name] for place, name in ((inside, "rope_theta"), (config, older)) if name in place]
            if len(set(found)) > 1:
                raise unreadable(f"the base of {section} stands in two places", found, "the same twice")
            thetas[section] = found[0] if found else defaults[section]
        return {"rope_theta": thetas["full_attention"], "local_rope_theta": thetas["sliding_attention"]}

    return Keys(frozenset({"rope_parameters", "rope_scaling", *sections.values()}), write, read)


def _scaling(model: ModelSettings) -> dict[str, Any]:
    """What `rope_scaling` holds; nothing where frequencies are not stretched."""
    scaling = model.rope_scaling
    if scaling is None or scaling.rope_type == "ntk":
        return {}
    written: dict[str, Any] = {"rope_type": scaling.rope_type, "factor": scaling.factor}
    if scaling.rope_type == "linear":
        return written
    original = original_context(model)
    written["original_max_position_embeddings"] = int(original) if original == int(original) else original
    if scaling.rope_type == "llama3":
        return written | {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    return written | {
        "attention_factor": attention_factor(scaling),
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }


def _merged(config: Mapping[str, Any], theta_names: tuple[str, ...], share_names: tuple[str, ...]) -> dict[str, Any]:
    """Everything that is said about positions, under the names of transformers 5."""
    merged: dict[str, Any] = {}
    outside = {"rope_theta": theta_names, "partial_rotary_factor": share_names}
    said = [(name, config[older]) for name, names in outside.items() for older in names if older in config]
    for section in ("rope_parameters", "rope_scaling"):
        inside = config.get(section) or {}
        said += [("rope_type" if name == "type" else name, value) for name, value in inside.items()]
    for name, value in said:
        if value is None:
            continue
        if merged.setdefault(name, value) != value:
            raise unreadable(f"{name} stands in two places", f"{merged[name]} and {value}", "the same twice")
    return merged


def _read_scaling(given: dict[str, Any], context: int) -> dict[str, Any] | None:
    kind = given.pop("rope_type", "default")
    if kind not in _OF_TYPE:
        raise unreadable("rope_type", kind, ", ".join(_OF_TYPE))
    if unknown := given.keys() - _OF_TYPE[kind]:
        raise unreadable(f"rope_parameters of type {kind}", ", ".join(sorted(unknown)), sorted(_OF_TYPE[kind]))
    if kind == "default":
        return None
    if kind == "linear":
        return {"rope_type": kind, **given}
    if not given.pop("truncate", True):
        raise unreadable("rope_parameters.truncate", False, True)
    m, m_all = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    if kind == "yarn" and m and m_all and "attention_factor" not in given and given["factor"] > 1:
        growth = 0.1 * math.log(given["factor"])
        given["attention_factor"] = (m * growth + 1) / (m_all * growth + 1)
    # Ours defaults to the context divided by the factor, theirs to the context.
    return {"rope_type": kind, "original_max_position_embeddings": context, **given}
