"""Default target modules for peft: those of BERT, by ErnieM's names."""

import sys

LIKE, TARGETS = {"query", "value"}, ("q_proj", "v_proj")


def register_targets() -> None:
    """Enter ErnieM into peft's tables of default target modules, if peft has been imported.

    Those tables are meant in which BERT has its query and value: LoRA's, and those of the methods like it.
    """
    tables = sys.modules.get("peft.utils.constants")
    for name, table in vars(tables).items() if tables else ():
        if name.endswith("_TARGET_MODULES_MAPPING") and set(table.get("bert", ())) == LIKE:
            table.setdefault("ernie_m", list(TARGETS))
