"""The whole MiniLM encoder on sentences: their embeddings as JSON, or how similar each is to each as a table."""

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np

from ffn_jax.demo import terminal
from ffn_jax.models import minilm

SENTENCES = (
    "How do I reset my password?",
    "I cannot remember my login details.",
    "A cat is asleep on the sofa.",
    "The kitten naps on the couch.",
    "Backpropagation computes the adjoint of the derivative.",
)
SHOWN = 60  # letters of a sentence


def main(argv: Sequence[str]) -> int:
    """Embeds the sentences and prints their similarities, or JSON; returns 0, or 2 where it cannot."""
    options = _parser().parse_args(argv)
    sentences = options.sentence or list(SENTENCES)
    try:
        checkpoint = minilm.load()
        embeddings = np.asarray(minilm.embed(checkpoint, sentences))
    except (ModuleNotFoundError, ValueError) as error:
        print(f"ffn_jax: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"sentences": sentences, "embeddings": embeddings.tolist()}))
    else:
        print(f"Cosine similarity of sentences, {checkpoint.name}:\n\n{matrix(sentences, embeddings)}")
    return 0


def matrix(sentences: Sequence[str], embeddings: np.ndarray) -> str:
    """The similarity of each sentence to each as a table; `embeddings: (sentences, d_model)` have length 1.

    >>> print(matrix(["a cat", "the cat"], np.array([[1.0, 0.0], [0.6, 0.8]])))
                   1     2
    1  a cat    1.00  0.60
    2  the cat  0.60  1.00
    """
    similarities = similarity(embeddings)
    head = ["", "", *(str(k + 1) for k in range(len(sentences)))]
    rows = [
        [str(k + 1), _shown(sentence), *(f"{s:.2f}" for s in row.round(2) + 0.0)]  # not -0.00
        for k, (sentence, row) in enumerate(zip(sentences, similarities, strict=True))
    ]
    return terminal.table([head, *rows], left=(1,))


def similarity(embeddings: np.ndarray) -> np.ndarray:
    """`(sentences, sentences)`: the dot products of vectors of length 1, in float64.

    >>> similarity(np.array([[1.0, 0.0], [0.6, 0.8]])).tolist()
    [[1.0, 0.6], [0.6, 1.0]]
    """
    wide = np.asarray(embeddings, "float64")
    return wide @ wide.T


def _shown(sentence: str) -> str:
    line = " ".join(sentence.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ffn_jax embed",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Embed sentences with the whole MiniLM encoder and print how similar each is to each.",
        epilog=f"The weights come with:\n    {minilm.HOW_TO_GET}",
    )
    parser.add_argument("sentence", nargs="*", help="sentences of yours; without any, a built-in handful")
    parser.add_argument("--json", action="store_true", help="print the sentences and their embeddings as JSON")
    return parser
