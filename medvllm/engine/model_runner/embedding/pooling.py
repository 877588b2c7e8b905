"""Pools the hidden states of windows into one vector for each text, as sentence-transformers does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvllm.engine.model_runner.reading.windows import Window
from medvllm.errors import InputTooLongError, RequestError
from medvllm.facts import PoolingMode
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    import torch

    from medvllm.loading.sentence_modules import Modules


class Pooler:
    """Accumulates the hidden states of each text, batch by batch.

    The vectors of several `modes` are concatenated in their order. The first `skipped` tokens of each text, those of
    its prompt, are left out.

    For a text in several windows, each token counts once, in the window that counts it:

    - "mean", "mean_sqrt_len_tokens", "weightedmean" and "max" are those of the whole text.
    - "lasttoken" is the last token of the last window.
    - "cls" is the mean of the first tokens of the windows.
    """

    def __init__(
        self,
        modes: PoolingMode | tuple[PoolingMode, ...],
        windows: Sequence[Window],
        texts: int,
        size: int,
        skipped: int = 0,
    ) -> None:
        import torch

        self._modes = (modes,) if isinstance(modes, str) else modes
        self._skipped = skipped
        # Every dtype is explicit, because a load in another thread changes torch's default dtype.
        self._weights = {mode: torch.zeros(texts, 1, dtype=torch.float32) for mode in self._modes}
        self._reset(texts, size)
        self._begins: dict[int, int] = {}  # window -> how many tokens of its text are before it
        self._last: dict[int, int] = {}  # text -> its last window
        tokens: dict[int, int] = {}
        for window in windows:
            if 0 < tokens.get(window.text, 0) <= skipped:
                raise InputTooLongError(
                    f"The prompt of {skipped:,} tokens leaves no room in a window for text {window.text + 1}.",
                    position=window.text,
                )
            self._begins[id(window)] = tokens.get(window.text, 0)
            self._last[window.text] = id(window)
            tokens[window.text] = tokens.get(window.text, 0) + sum(window.counted)

    def _reset(self, texts: int, size: int) -> None:
        import torch

        self._sums = {mode: torch.zeros(texts, size, dtype=torch.float32) for mode in self._modes}
        if "max" in self._sums:
            self._sums["max"].fill_(float("-inf"))

    def add(self, batch: Sequence[Window], hidden: "torch.Tensor") -> None:
        """Add the hidden states of a batch of windows, of shape [windows, longest window, size]."""
        import torch

        texts, size = self._sums[self._modes[0]].shape
        if hidden.shape[2] != size:  # some outputs are wider than the config says, such as Reformer's
            self._reset(texts, hidden.shape[2])
        stack = torch.nn.utils.rnn.pad_sequence
        counted = stack([torch.tensor(window.counted) for window in batch], batch_first=True).to(hidden)
        begins = torch.tensor([self._begins[id(window)] for window in batch], dtype=torch.float32).to(hidden)
        places = counted.cumsum(1) + begins.unsqueeze(1)  # of each token in its text, from 1
        taken = counted * (places > self._skipped)
        rows = torch.tensor([window.text for window in batch])
        for mode, sums in self._sums.items():
            if mode == "max":
                highest = hidden.masked_fill(taken.unsqueeze(-1) == 0, float("-inf")).amax(1).cpu()
                sums.scatter_reduce_(0, rows.unsqueeze(1).expand_as(highest), highest, "amax")
                continue
            if mode in ("cls", "lasttoken"):
                chosen = [self._choose_token(mode, window) for window in batch]
                weight = torch.tensor([[float(index is not None)] for index in chosen], dtype=torch.float32)
                given = hidden[range(len(batch)), [index or 0 for index in chosen]].cpu() * weight
            else:
                weights = taken * places if mode == "weightedmean" else taken
                given, weight = (hidden * weights.unsqueeze(-1)).sum(1).cpu(), weights.sum(1, keepdim=True).cpu()
            sums.index_add_(0, rows, given)
            self._weights[mode].index_add_(0, rows, weight)

    def vectors(self) -> "torch.Tensor":
        """Return the vectors, of shape [texts, size times number of modes]."""
        import torch

        vectors = []
        for mode in self._modes:
            weights = self._weights[mode].clamp(min=1e-9)
            if mode == "max":
                vectors.append(self._sums[mode])
            else:
                vectors.append(self._sums[mode] / (weights.sqrt() if mode == "mean_sqrt_len_tokens" else weights))
        return torch.cat(vectors, dim=1)

    def _choose_token(self, mode: PoolingMode, window: Window) -> int | None:
        """Return the position of the one token that the mode takes from a window, or None if it takes none."""
        length, is_first = len(window.input_ids), self._begins[id(window)] == 0
        if mode == "cls":
            return self._skipped if is_first and self._skipped < length else 0
        is_left_out = is_first and length <= self._skipped
        return None if is_left_out or self._last[window.text] != id(window) else length - 1


def finish_vectors(metadata: ModelMetadata, modules: "Modules", vectors: "torch.Tensor") -> "torch.Tensor":
    """Return pooled vectors after the modules of the folder and `truncate_dim` and `normalize` of the entry.

    Raises:
        RequestError: `truncate_dim` is larger than the vectors.
    """
    import torch

    behaviour = metadata.behaviour
    vectors = modules.run(metadata.name, vectors, normalize=behaviour.normalize)
    kept = behaviour.truncate_dim
    if kept is not None and kept > vectors.shape[1]:
        raise RequestError(
            f"Model {metadata.name!r} has truncate_dim={kept}, but its vectors have only {vectors.shape[1]} numbers.\n"
            f"Register it without truncate_dim, or with at most: truncate_dim={vectors.shape[1]}",
            model=metadata.name,
        )
    vectors = vectors[:, :kept].contiguous()
    return torch.nn.functional.normalize(vectors, dim=1) if behaviour.normalize else vectors
