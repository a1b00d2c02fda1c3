r"""From texts to rows of token ids, one file a step.

samples -> parts -> segmentation -> windows -> encodings
              \______ alignment ______/

Needs no torch.
"""

from .tokenizer import VOCAB_FILES_NAMES, ErnieMTokenizer

__all__ = ["VOCAB_FILES_NAMES", "ErnieMTokenizer"]
