"""Default target modules for peft: those of BERT, by ErnieM's names."""

import sys

NAMES = {
    "query": ["q_proj"],
    "key": ["k_proj"],
    "value": ["v_proj"],
    "output.dense": ["out_proj", "linear2"],  # behind the attention and of the feed-forward block
}
"""ErnieM's names of modules, by BERT's."""


def register_targets() -> None:
    """Enter ErnieM into peft's tables of default target modules that BERT is in, if peft has been imported."""
    tables = sys.modules.get("peft.utils.constants")
    for name, table in list(vars(tables).items()) if tables else ():
        modules = table.get("bert") if name.endswith("_MODULES_MAPPING") else None
        if modules and NAMES.keys() >= set(modules):
            table.setdefault("ernie_m", [ours for module in modules for ours in NAMES[module]])
