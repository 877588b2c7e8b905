"""What a runner can do with a model: one function a task, from texts to results."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from medvllm import progress
from medvllm.engine.model_runner.pooling import Pool, finish
from medvllm.engine.model_runner.prompts import choose, token_count
from medvllm.engine.model_runner.spans import Span, Word, decode, scheme_of
from medvllm.engine.model_runner.windows import Coverage, Window, check_texts, split
from medvllm.errors import InputTooLongError, RequestError
from medvllm.registry import Lease

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = {"cpu": 1024}  # padded tokens of a batch: on a CPU, small batches of like lengths beat large ones
DEVICE_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Embeddings:
    """Vectors of texts: float32 on the CPU, one row a text, and what of each text they cover, its prompt included."""

    vectors: "torch.Tensor"
    coverage: list[Coverage]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record a text, as JSON has it."""
        rows = zip(self.vectors.tolist(), self.coverage, strict=True)
        return [vars(coverage) | {"vector": vector} for vector, coverage in rows]


@dataclass(frozen=True)
class Fill:
    """A word piece for a gap, and the model's probability for it."""

    token: str
    score: float


@dataclass(frozen=True)
class Tags:
    """The spans of one text, in its order, and what of it they cover."""

    spans: list[Span]
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the text, as JSON has it."""
        return vars(self.coverage) | {"spans": [vars(span) for span in self.spans]}


def embed(
    lease: Lease, texts: Iterable[str], *, prompt_name: str | None = None, prompt: str | None = None
) -> Embeddings:
    """Return a vector for each text, as the entry and a sentence-transformers folder say; else the mean of its tokens.

    A text longer than the model is read in overlapping windows, each of its tokens counted once. `prompt` is put in
    front of each text, or the one that is known as `prompt_name`; else the one of the entry's role, or the default one.
    """
    import torch

    behaviour, modules, encoder = lease.metadata.behaviour, lease.modules, lease.model.base_model
    chosen = choose(lease, prompt_name, prompt)
    windows, coverage = split(lease.tokenizer, [chosen + text for text in check_texts(texts)], behaviour.long_input)
    skipped = token_count(lease.tokenizer, chosen) if behaviour.include_prompt is False else 0
    pool = Pool(behaviour.pooling or "mean", windows, len(coverage), encoder.config.hidden_size, skipped)
    for batch in progress.of_items("Running", _batches(windows, str(lease.model.device))):
        inputs = _padded(lease, [window.input_ids for window in batch])
        with torch.inference_mode():
            pool.add(batch, encoder(**inputs).last_hidden_state.float())
    return Embeddings(finish(lease.metadata, modules, pool.vectors()), coverage)


def fill_mask(lease: Lease, texts: Iterable[str], *, top_k: int = 5) -> list[list[list[Fill]]]:
    """Return for each text, for each of its gaps, the `top_k` likeliest word pieces, the likeliest first.

    A gap is written as [MASK] or as the tokenizer's own mask. InputTooLongError: the model cannot take a text whole.
    """
    import torch

    if type(top_k) is not int or top_k < 1:
        raise RequestError(f"top_k must be a whole number above 0, not {top_k!r}.", top_k=top_k)
    tokenizer, model = lease.tokenizer, lease.model
    if not type(model).__name__.endswith("ForMaskedLM") or tokenizer.mask_token_id is None:
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(model).__name__}, which fills no gaps.\n"
            "If its checkpoint has the head: model_class='transformers:AutoModelForMaskedLM'",
            model=lease.metadata.name,
        )
    marked = [text.replace("[MASK]", str(tokenizer.mask_token)) for text in check_texts(texts)]
    windows: list[Window] = []
    for position, text in enumerate(marked):
        ids = tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > tokenizer.model_max_length:
            raise InputTooLongError(
                f"Text {position + 1} has {len(ids):,} tokens; the model takes {tokenizer.model_max_length:,}.",
                limit=tokenizer.model_max_length,
                position=position,
            )
        if tokenizer.mask_token_id not in ids:
            raise RequestError(f"Text {position + 1} has no gap to fill.\nWrite the gap as: [MASK]", position=position)
        windows.append(Window(position, ids, [1] * len(ids)))
    results: list[list[list[Fill]]] = [[] for _ in marked]
    for batch in progress.of_items("Running", _batches(windows, str(model.device))):
        inputs = _padded(lease, [window.input_ids for window in batch])
        with torch.inference_mode():
            logits = model(**inputs).logits.float()
        for row, window in enumerate(batch):
            gaps = [i for i, token in enumerate(window.input_ids) if token == tokenizer.mask_token_id]
            scores, tokens = logits[row, gaps].softmax(-1).topk(min(top_k, logits.shape[-1]))
            results[window.text] = [
                [Fill(str(tokenizer.decode([token])).strip(), score) for token, score in zip(ids, values, strict=True)]
                for ids, values in zip(tokens.tolist(), scores.tolist(), strict=True)
            ]
    return results


def tag(lease: Lease, texts: Iterable[str]) -> list[Tags]:
    """Return the spans that the model finds in each text; a word has the label of its first piece.

    A text longer than the model is read in overlapping windows. RequestError: the model is no tagger.
    """
    import torch

    model, behaviour = lease.model, lease.metadata.behaviour
    if not is_tagger(model):
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(model).__name__}, which finds no spans.\n"
            "Taggers are listed with: medvllm list --task ner",
            model=lease.metadata.name,
        )
    labels: dict[int, str] = model.config.id2label
    windows, coverage = split(lease.tokenizer, check_texts(texts), behaviour.long_input, offsets=True)
    pieces: list[list[tuple[int, Word]]] = [[] for _ in coverage]
    for batch in progress.of_items("Running", _batches(windows, str(model.device))):
        inputs = _padded(lease, [window.input_ids for window in batch])
        with torch.inference_mode():
            scores, classes = model(**inputs).logits.float().softmax(-1).max(-1)
        for window, row, chosen in zip(batch, scores.tolist(), classes.tolist(), strict=True):
            for i, word in enumerate(window.words):
                if word is not None and window.counted[i]:
                    pieces[window.text].append((word, Word(*window.offsets[i], labels[chosen[i]], row[i])))
    scheme = behaviour.label_scheme or scheme_of(labels.values())
    return [Tags(decode(_joined(found), scheme), covered) for found, covered in zip(pieces, coverage, strict=True)]


def is_tagger(model: Any) -> bool:
    """Return whether a model labels tokens."""
    return type(model).__name__.endswith("ForTokenClassification")


TASKS: dict[str, Callable[..., Any]] = {"embed": embed, "fill-mask": fill_mask, "ner": tag, "deid": tag}


def _joined(pieces: list[tuple[int, Word]]) -> Iterator[Word]:
    """Give the words of a text in order: each with its first piece's label, to the end of its last."""
    for _, group in groupby(sorted(pieces, key=lambda piece: piece[1].start), key=lambda piece: piece[0]):
        first, *more = (word for _, word in group)
        yield first._replace(end=more[-1].end if more else first.end)


def _batches(windows: list[Window], device: str) -> list[list[Window]]:
    """Return the windows in batches of like lengths, each within the device's budget of padded tokens."""
    budget = BATCH_TOKENS.get(device, DEVICE_BATCH_TOKENS)
    batches: list[list[Window]] = []
    for window in sorted(windows, key=lambda window: -len(window.input_ids)):
        if not batches or len(batches[-1][0].input_ids) * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(window)
    return batches


def _padded(lease: Lease, rows: list[list[int]]) -> "dict[str, torch.Tensor]":
    """Return `input_ids` and `attention_mask` on the model's device, shape [rows, longest]."""
    padding = lease.tokenizer.pad_token_id
    ids = _stack(rows, padding if isinstance(padding, int) else 0)
    mask = _stack([[1] * len(row) for row in rows])
    return {"input_ids": ids.to(lease.model.device), "attention_mask": mask.to(lease.model.device)}


def _stack(rows: list[list[int]], padding: int = 0) -> "torch.Tensor":
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
