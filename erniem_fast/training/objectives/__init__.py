"""Pre-training objectives: batches of sentences without padding, each an `objective(samples, generator)`.

objective = CAMLM(tokenizer, mask_probability=0.15)
batch = objective(pairs, np.random.default_rng(0))
loss = ErnieMForPreTraining.from_pretrained(name)(**batch).loss
"""

from .base import Objective as Objective
from .btmlm import BTMLM as BTMLM
from .camlm import CAMLM as CAMLM
from .ernie import MLMWithNSP as MLMWithNSP
from .masked_lm import MMLM as MMLM
from .masked_lm import TLM as TLM
from .model import ErnieMForPreTraining as ErnieMForPreTraining
from .rows import Pair as Pair
from .rows import Sentence as Sentence
from .xlm import XLMCLM as XLMCLM
from .xlm import XLMMLM as XLMMLM
from .xlm import XLMTLM as XLMTLM
