"""ErnieM under transformers 5: weight for weight the model of transformers 4.40.2, and padding-free.

Importing this package registers `ernie_m` with transformers' Auto classes.
"""

from importlib.util import find_spec

if find_spec(f"{__name__}.kernels") is None:
    raise ImportError(
        "erniem_fast/kernels is not the folder of kernels: this copy comes from a checkout without symbolic links; "
        "clone again with `git clone -c core.symlinks=true` or install a wheel"
    )

import transformers
from transformers import AutoConfig, AutoTokenizer

from .auto_map import MODEL_CLASSES, MODEL_TYPE
from .configuration import ErnieMConfig
from .explain import explain
from .inference.batch_invariance import batch_invariant
from .inference.engine import Encoder
from .inference.extraction import information_extraction
from .inference.graphs import GraphedEncoder
from .inference.prepacking import prepack_weights
from .inference.projections import join_projections
from .inference.question_answering import question_answering
from .inference.zero_shot import zero_shot_classification
from .modeling import (
    ErnieMForInformationExtraction,
    ErnieMForMaskedLM,
    ErnieMForMultipleChoice,
    ErnieMForQuestionAnswering,
    ErnieMForSequenceClassification,
    ErnieMForTokenClassification,
    ErnieMModel,
)
from .packing import PackedBatch
from .padding_free import padding_free, restore
from .pretrained import ErnieMPreTrainedModel
from .tokenization import ErnieMTokenizer
from .version import __version__

__all__ = [
    "Encoder",
    "ErnieMConfig",
    "ErnieMForInformationExtraction",
    "ErnieMForMaskedLM",
    "ErnieMForMultipleChoice",
    "ErnieMForQuestionAnswering",
    "ErnieMForSequenceClassification",
    "ErnieMForTokenClassification",
    "ErnieMModel",
    "ErnieMPreTrainedModel",
    "ErnieMTokenizer",
    "GraphedEncoder",
    "PackedBatch",
    "__version__",
    "batch_invariant",
    "explain",
    "information_extraction",
    "join_projections",
    "padding_free",
    "prepack_weights",
    "question_answering",
    "restore",
    "zero_shot_classification",
]

AutoConfig.register(MODEL_TYPE, ErnieMConfig, exist_ok=True)
AutoTokenizer.register(ErnieMConfig, tokenizer_class=ErnieMTokenizer, exist_ok=True)
for _auto_class, _name in MODEL_CLASSES.items():
    getattr(transformers, _auto_class).register(ErnieMConfig, globals()[_name], exist_ok=True)
del _auto_class, _name
