"""Which pre-training objectives the models of each family learn, by the names that a run is told."""

from collections.abc import Collection, Mapping
from typing import Any

from ..auto_map import MODEL_TYPE
from ..files.errors import InputError
from .finetune import head_class
from .objectives import (
    BTMLM,
    CAMLM,
    MMLM,
    TLM,
    XLMCLM,
    XLMMLM,
    XLMTLM,
    ErnieMForPreTraining,
    MLMWithNSP,
    Objective,
)

Objectives = Mapping[str, type[Objective]]
NEXT_SENTENCES = "mlm-nsp"
MASKED_LM: Objectives = {"mmlm": MMLM, "tlm": TLM, "camlm": CAMLM}
"""Of every family with a masked-LM head, but XLM's, which has its own."""
BERT: Objectives = {**MASKED_LM, NEXT_SENTENCES: MLMWithNSP}
CAUSAL_XLM: Objectives = {"clm": XLMCLM}
FAMILIES: Mapping[str, Objectives] = {
    MODEL_TYPE: {**MASKED_LM, "btmlm": BTMLM},
    "bert": BERT,
    "ernie": BERT,
    "xlm": {"mlm": XLMMLM, "tlm": XLMTLM},
}
"""Of the families that learn others, by their model_type."""
NAMES = tuple(dict.fromkeys(name for family in (*FAMILIES.values(), CAUSAL_XLM) for name in family))
"""Of all objectives."""


def objectives_of(config: Any) -> Objectives:
    """Objectives that a model of this configuration learns, by their names."""
    if config.model_type == "xlm" and config.causal:
        return CAUSAL_XLM
    return FAMILIES.get(config.model_type, MASKED_LM)


def check_objectives(config: Any, names: Collection[str]) -> None:
    """Check that a model of this configuration learns all these objectives.

    Raises:
        InputError: it does not, or not in the same run.
    """
    learned = objectives_of(config)
    for name in names:
        if name not in learned:
            kind = f"causal {config.model_type}" if learned is CAUSAL_XLM else config.model_type
            raise InputError(f"--objectives {name!r}: a model of the family {kind} learns {', '.join(learned)}")
    if NEXT_SENTENCES in names and len(names) > 1:
        others = ", ".join(name for name in names if name != NEXT_SENTENCES)
        raise InputError(
            f"--objectives {NEXT_SENTENCES!r}: trains a head of its own, got {others} beside it; expected it alone"
        )


def pretrained_class(config: Any, objectives: Collection[str]) -> Any:
    """Class of a model of this configuration with the head that the objectives train."""
    if config.model_type == MODEL_TYPE:
        return ErnieMForPreTraining
    return head_class(config, "ForPreTraining" if NEXT_SENTENCES in objectives else "ForMaskedLM", config.model_type)


def language_ids(config: Any) -> Mapping[str, int]:
    """Ids of the languages of an XLM model, none where it has no language embeddings.

    Raises:
        InputError: it has such embeddings, and config.json does not name their languages.
    """
    if config.n_langs < 2 or not config.use_lang_emb:
        return {}
    ids: Mapping[str, int] | None = getattr(config, "lang2id", None)
    if not ids:
        raise InputError(
            f"model: config.json has n_langs {config.n_langs}, but no lang2id; expected the id of each language there"
        )
    return ids
