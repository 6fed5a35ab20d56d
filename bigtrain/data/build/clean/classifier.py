"""The score of a text by a linear classifier over words and their n-grams, as DCLM selects documents.

Li et al., DataComp-LM: In Search of the Next Generation of Training Sets for Language Models, 2024
(arXiv:2406.11794), section 4.4.

The classifier is one of fastText's (Joulin et al. 2017), and fastText's library asks it.
"""

from __future__ import annotations

import difflib

from bigtrain.base import BigtrainError
from bigtrain.config import ClassifierSettings
from bigtrain.data.build.clean.model_files import opened_fasttext, require_content, require_fasttext
from bigtrain.data.build.clean.text import Rejection, Text
from bigtrain.data.build.rule_models.fasttext_features import one_line
from bigtrain.data.build.rule_models.fasttext_file import LABEL_PREFIX, check_fasttext

RULE = "classifier"


def classifier(text: Text, limits: ClassifierSettings) -> Text | Rejection:
    """Remove documents whose score is below the threshold; the evidence is the score."""
    score = score_of(text.text, limits)
    if score < limits.threshold:
        return Rejection(RULE, f"too low a score of {_bare(limits.label)}", evidence=f"score {score:.4f}")
    return text


def score_of(text: str, limits: ClassifierSettings) -> float:
    """The probability that the classifier gives the label; 0 where it has no feature of the text."""
    assert limits.hash is not None
    model = opened_fasttext(limits.model, limits.hash, RULE)
    labels, scores = model.predict(one_line(text), k=-1)
    wanted = LABEL_PREFIX + _bare(limits.label)
    return next((min(float(score), 1.0) for label, score in zip(labels, scores, strict=True) if label == wanted), 0.0)


def pin_classifier(limits: ClassifierSettings) -> ClassifierSettings:
    """The settings with the hash of the model's content.

    Raises:
        BigtrainError: fastText's library is missing; the file is no such model, has another content than the settings
            say, or does not know the label.
    """
    require_fasttext(RULE)
    content = require_content(limits.model, limits.hash, RULE)
    labels = check_fasttext(limits.model, f"data.sources: the rule {RULE}").labels
    if _bare(limits.label) not in labels:
        nearest = difflib.get_close_matches(_bare(limits.label), labels, n=1)
        raise BigtrainError(
            f"data.sources: the rule {RULE} has a label that {limits.model} does not know",
            found=limits.label,
            wanted=f"one of {', '.join(labels)}"[:500],
            fix=f"set label: {nearest[0] if nearest else labels[0]}",
        )
    return limits.model_copy(update={"hash": content})


def _bare(label: str) -> str:
    return label.removeprefix(LABEL_PREFIX)
