"""The tokenizer against ids that Hugging Face's `tokenizers` 0.23.3 gave for the same vocabulary."""

import pytest

from ffn_jax.models import minilm, wordpiece

REFERENCE = {
    "Hello, world!": [101, 7592, 1010, 2088, 999, 102],
    "Où est l'Été? naïve café": [101, 15068, 9765, 1048, 1005, 3802, 2063, 1029, 15743, 7668, 102],
    "東京へ行く": [101, 1879, 1755, 1675, 1945, 1653, 102],
    "unaffable transformers' GELU": [101, 14477, 20961, 3468, 19081, 1005, 21500, 2226, 102],
    "$5.00 — “quoted” …": [101, 1002, 1019, 1012, 4002, 1517, 1523, 9339, 1524, 1529, 102],
    "İstanbul ẞ 😀": [101, 9960, 1096, 100, 102],
    "tab\there\u200b\u00a0\u0000\ufffd\u0301": [101, 21628, 2182, 102],
    "": [101, 102],
    "x" * 101: [101, 100, 102],
}


@pytest.fixture(scope="module")
def vocabulary():
    try:
        return minilm.load().vocabulary
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("text", REFERENCE)
def test_ids_are_those_of_hugging_face(text, vocabulary):
    assert wordpiece.encode(text, vocabulary) == REFERENCE[text]


def test_vocabulary_without_special_tokens_is_named():
    with pytest.raises(ValueError, match=r"got one without \[SEP\]"):
        wordpiece.encode("a", {"[CLS]": 0, "[UNK]": 1})
