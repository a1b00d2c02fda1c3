"""Sentences with a tag for each word, in twelve scripts; written for these tests."""

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def _sentence(line: str) -> tuple[list[str], list[str]]:
    words, tags = [], []
    for item in line.split():
        word, _, tag = item.rpartition("/")
        words.append(word)
        tags.append({"P": "B-PER", "p": "I-PER", "L": "B-LOC", "l": "I-LOC"}.get(tag, "O"))
    return words, tags


SENTENCES = [
    _sentence(line)
    for line in (
        "Ada/P Lovelace/p lived/o in/o London/L ,/o not/o far/o from/o Hyde/L Park/l ./o",
        "Frau/o Müller-Lüdenscheidt/P fährt/o nach/o Bad/L Kreuznach/l ./o",
        "Анна/P Ахматова/p жила/o в/o Санкт-Петербурге/L ./o",
        "Η/o Μαρία/P μένει/o στη/o Θεσσαλονίκη/L ./o",
        "تعيش/o فاطمة/P الزهراء/p في/o الدار/L البيضاء/l ./o",
        "דוד/P בן-גוריון/p גר/o בתל/L אביב/l ./o",
        "सुनीता/P शर्मा/p नई/L दिल्ली/l में/o रहती/o हैं/o ।/o",
        "রবীন্দ্রনাথ/P ঠাকুর/p কলকাতায়/L জন্মগ্রহণ/o করেন/o ।/o",
        "王/P 小明/p 住/o 在/o 北京/L 市/l ，/o 2019/o 年/o 来/o 的/o 。/o",
        "田中/P さん/o は/o 横浜/L に/o 住ん/o で/o い/o ます/o 。/o",
        "김민수/P 씨는/o 부산에/L 살아요/o ./o",
        "สมชาย/P อยู่/o ที่/o เชียงใหม่/L",
        "ნინო/P ცხოვრობს/o თბილისში/L ./o",
        "Zażółć/P 100%/o ﬁnal/o ①②/o Ｔｏｋｙｏ/L \u200b/o İstanbul/L …/o",
    )
]
"""Words and tags of each sentence; the last one holds characters that normalisation changes, or leaves out."""
