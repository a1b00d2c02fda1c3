"""ErnieM under transformers 5: weight for weight the model of transformers 4.40.2, and padding-free.

Importing this package registers `ernie_m` with transformers' Auto classes.
"""

from importlib.util import find_spec

if find_spec(f"{__name__}.kernels") is None:
    raise ImportError(
        "erniem_fast/kernels is not the folder of kernels: this copy comes from a checkout without symbolic links; "
        "clone again with `git clone -c core.symlinks=true` or install a wheel"
    )

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from .configuration import ErnieMConfig
from .inference.batch_invariance import batch_invariant
from .inference.extraction import information_extraction
from .inference.graphs import GraphedEncoder
from .inference.projections import join_projections
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
from .pretrained import ErnieMPreTrainedModel
from .tokenization import ErnieMTokenizer
from .version import __version__

__all__ = [
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
    "information_extraction",
    "join_projections",
]

AutoConfig.register("ernie_m", ErnieMConfig, exist_ok=True)
AutoTokenizer.register(ErnieMConfig, tokenizer_class=ErnieMTokenizer, exist_ok=True)
for _auto, _model in (
    (AutoModel, ErnieMModel),
    (AutoModelForMaskedLM, ErnieMForMaskedLM),
    (AutoModelForMultipleChoice, ErnieMForMultipleChoice),
    (AutoModelForQuestionAnswering, ErnieMForQuestionAnswering),
    (AutoModelForSequenceClassification, ErnieMForSequenceClassification),
    (AutoModelForTokenClassification, ErnieMForTokenClassification),
):
    _auto.register(ErnieMConfig, _model, exist_ok=True)
del _auto, _model
