"""Questions of XQuAD in seven languages."""

import json
from typing import Any

from helpers.paths import ROOT

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (ROOT / "tests" / "golden" / "xquad" / "rows.jsonl").read_text("utf-8").splitlines()
]
"""Rows in SQuAD's form: lang, id, context, question, answers."""
