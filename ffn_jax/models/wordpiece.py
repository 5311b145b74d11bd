"""The WordPiece tokenizer of uncased BERT models, from their vocab.txt.

    text -> clean, lower case, no accents -> words and punctuation -> longest pieces in the vocabulary

A word that has no pieces is [UNK]; pieces inside a word begin with "##". Special tokens written out in the text are
read as text.

Source: Wu et al. 2016 (arXiv:1609.08144), section 4.1; Devlin et al. 2018 (arXiv:1810.04805), `tokenization.py`.
"""

import unicodedata
from collections.abc import Mapping
from pathlib import Path

CLS, SEP, UNK = "[CLS]", "[SEP]", "[UNK]"
MAX_WORD = 100  # letters; longer words are [UNK]

# CJK ideographs, which are words by themselves.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def read_vocabulary(path: Path) -> dict[str, int]:
    """The ids of the pieces: vocab.txt has one piece a line, in the order of their ids."""
    return {piece: i for i, piece in enumerate(path.read_text(encoding="utf-8").splitlines())}


def encode(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """The ids of [CLS], the pieces of `text`, and [SEP].

    Raises:
      ValueError: the vocabulary lacks one of the special tokens.

    >>> words = ["[UNK]", "[CLS]", "[SEP]", "feed", "forward", "##s", "-"]
    >>> encode("Feed-Forwards, café", {word: i for i, word in enumerate(words)})
    [1, 3, 6, 4, 5, 0, 0, 2]
    """
    lacking = [token for token in (CLS, SEP, UNK) if token not in vocabulary]
    if lacking:
        raise ValueError(f"encode: expected a vocabulary with {CLS}, {SEP} and {UNK}, got one without {lacking[0]}")
    pieces = [piece for word in split_words(text) for piece in _pieces(word, vocabulary)]
    return [vocabulary[token] for token in (CLS, *pieces, SEP)]


def split_words(text: str) -> list[str]:
    """Words and single punctuation marks, in lower case and without accents.

    >>> split_words("Où est-il?")
    ['ou', 'est', '-', 'il', '?']
    """
    out = []
    for char in text:
        category = unicodedata.category(char)
        if char in "\t\n\r" or category == "Zs":
            out.append(" ")
        elif char in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
            continue
        elif any(low <= ord(char) <= high for low, high in _IDEOGRAPHS):
            out.append(f" {char} ")
        else:
            out.append(char)
    plain = unicodedata.normalize("NFD", "".join(out))
    plain = "".join(char for char in plain if unicodedata.category(char) != "Mn").lower()
    return "".join(f" {char} " if _is_punctuation(char) else char for char in plain).split()


def _is_punctuation(char: str) -> bool:
    ascii_symbol = 33 <= ord(char) <= 126 and not char.isalnum()
    return ascii_symbol or unicodedata.category(char).startswith("P")


def _pieces(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """The longest pieces from the left."""
    pieces: list[str] = []
    start = 0
    while start < len(word) <= MAX_WORD:
        mark = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in vocabulary), None)
        if end is None:
            return [UNK]
        pieces.append(mark + word[start:end])
        start = end
    return pieces or [UNK]
