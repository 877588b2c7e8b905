"""Hidden states of windows -> one vector a text, as sentence-transformers makes it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvllm.engine.model_runner.windows import Window
from medvllm.errors import InputTooLongError, RequestError
from medvllm.facts import PoolingMode
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    import torch

    from medvllm.loading.sentence_modules import Modules


class Pool:
    """Gathers what the tokens of each text give, batch by batch.

    `modes` are joined in their order. The first `skipped` tokens of each text, its prompt's, are left out.

    Of a text in several windows, each token that a window counts is taken once: "mean", "mean_sqrt_len_tokens",
    "weightedmean" and "max" are those of the whole text, "lasttoken" is its last window's last token, and "cls" the
    mean of the windows' first ones.
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
        # Said aloud: a load in another thread changes torch's default dtype for the whole process.
        self._weights = {mode: torch.zeros(texts, 1, dtype=torch.float32) for mode in self._modes}
        self._begin(texts, size)
        self._begins: dict[int, int] = {}  # window -> how many tokens of its text stand before it
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

    def _begin(self, texts: int, size: int) -> None:
        import torch

        self._sums = {mode: torch.zeros(texts, size, dtype=torch.float32) for mode in self._modes}
        if "max" in self._sums:
            self._sums["max"].fill_(float("-inf"))

    def add(self, batch: Sequence[Window], hidden: "torch.Tensor") -> None:
        """Take the hidden states of windows, shape [windows, longest, size]."""
        import torch

        texts, size = self._sums[self._modes[0]].shape
        if hidden.shape[2] != size:  # the config's is not the output's: Reformer's is twice as wide
            self._begin(texts, hidden.shape[2])
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
                chosen = [self._chosen(mode, window) for window in batch]
                weight = torch.tensor([[float(index is not None)] for index in chosen], dtype=torch.float32)
                given = hidden[range(len(batch)), [index or 0 for index in chosen]].cpu() * weight
            else:
                weights = taken * places if mode == "weightedmean" else taken
                given, weight = (hidden * weights.unsqueeze(-1)).sum(1).cpu(), weights.sum(1, keepdim=True).cpu()
            sums.index_add_(0, rows, given)
            self._weights[mode].index_add_(0, rows, weight)

    def vectors(self) -> "torch.Tensor":
        """Return the vectors of all texts."""
        import torch

        made = []
        for mode in self._modes:
            weights = self._weights[mode].clamp(min=1e-9)
            if mode == "max":
                made.append(self._sums[mode])
            else:
                made.append(self._sums[mode] / (weights.sqrt() if mode == "mean_sqrt_len_tokens" else weights))
        return torch.cat(made, dim=1)

    def _chosen(self, mode: PoolingMode, window: Window) -> int | None:
        """Return the place in a window of the one token that the mode takes, None when it takes none of it."""
        length, is_first = len(window.input_ids), self._begins[id(window)] == 0
        if mode == "cls":
            return self._skipped if is_first and self._skipped < length else 0
        is_left_out = is_first and length <= self._skipped
        return None if is_left_out or self._last[window.text] != id(window) else length - 1


def finish(metadata: ModelMetadata, modules: "Modules", vectors: "torch.Tensor") -> "torch.Tensor":
    """Return pooled vectors as the folder's modules and the entry's facts make them."""
    import torch

    behaviour = metadata.behaviour
    vectors = modules.run(metadata.name, vectors, normalize=behaviour.normalize)
    kept = behaviour.truncate_dim
    if kept is not None and kept > vectors.shape[1]:
        raise RequestError(
            f"Model {metadata.name!r} has truncate_dim={kept}, and its vectors have {vectors.shape[1]} numbers.\n"
            f"Register it without truncate_dim, or with at most: truncate_dim={vectors.shape[1]}",
            model=metadata.name,
        )
    vectors = vectors[:, :kept].contiguous()
    return torch.nn.functional.normalize(vectors, dim=1) if behaviour.normalize else vectors
