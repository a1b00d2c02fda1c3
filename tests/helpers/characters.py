"""Where tokens lie in a text, found slowly: each token is looked up behind the one before."""

import unicodedata
from collections.abc import Sequence


def spans(text: str, tokens: Sequence[str]) -> list[tuple[int, int]] | None:
    """Characters [start, end) of each token without its "▁"; None where a token is not literally in the text.

    A lone "▁" has none: its span is empty, where the next word begins. Each character is normalised by itself (NFKC),
    so texts that say the same in composed characters only.
    """
    letters, places = [], []
    for place, character in enumerate(text):
        for letter in unicodedata.normalize("NFKC", character):
            letters.append(letter)
            places.append(place)
    line, at, found = "".join(letters), 0, []
    for token in tokens:
        piece = token.replace("▁", "")
        begin = at
        while begin < len(line) and line[begin].isspace():
            begin += 1
        if not line.startswith(piece, begin) or begin == len(line):
            return None
        at = begin + len(piece)
        found.append((places[begin], places[at - 1] + 1 if piece else places[begin]))
    return found
