"""How the labels of a word's pieces become the label of the word."""

from collections.abc import Iterator
from typing import Literal, get_args

from medvllm.engine.model_runner.tagging.spans import LabelledWord
from medvllm.engine.model_runner.tagging.tagged_text import TaggedText
from medvllm.engine.model_runner.tagging.words import Word

Aggregation = Literal["first", "any", "max", "average", "simple"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)

# Scores that are closer than this are equal: batches of other sizes round differently.
_ROUNDING = 1e-5


def label_by(aggregation: str, tagged: TaggedText) -> Iterator[LabelledWord]:
    """Yield the labelled words of a text. Words without pieces have no label, and are left out.

    Args:
        aggregation: How pieces become words:
            first: the label of the first piece.
            any: the label of the first piece that is part of an entity, if there is one.
            max: the label of the piece with the highest score; of an entity, if scores are equal.
            average: the label with the highest mean of its scores over the pieces.
            simple: each piece has its own label, so that a word may be cut.
        tagged: What the model says of the text.
    """
    words = tagged.parts if aggregation == "simple" and tagged.given is None else tagged.words
    for word in words:
        if word.pieces:
            yield _label(aggregation, tagged, word)


def _label(aggregation: str, tagged: TaggedText, word: Word) -> LabelledWord:
    marks, classes = tagged.labels.marks, tagged.classes
    if aggregation == "average":
        mean = tagged.probabilities[list(word.pieces)].mean(0)
        chosen, score = int(mean.argmax()), float(mean.max())
        return LabelledWord(word.start, word.end, marks[chosen], score, word.crossed, word.number)
    piece = word.pieces[0]
    labelled = [each for each in word.pieces if marks[classes[each]]]
    scores = {each: float(tagged.probabilities[each, classes[each]]) for each in word.pieces}
    if aggregation == "max":
        highest = max(scores.values()) - _ROUNDING
        best = [each for each in word.pieces if scores[each] >= highest]
        piece = next((each for each in best if each in labelled), best[0])
    elif aggregation in ("any", "simple") and labelled:
        piece = labelled[0]
    return LabelledWord(word.start, word.end, marks[classes[piece]], scores[piece], word.crossed, word.number)
