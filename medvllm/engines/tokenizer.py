"""A fast tokenizer without transformers, with what the reading of texts uses of one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvllm.errors import LoadError
from medvllm.forking import Lock
from medvllm.threads import limit_tokenizers

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding, Tokenizer

_FORK_S = (
    30.0  # seconds that a fork waits for a text to be encoded: the library's own lock would stay locked in a child
)
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

Given = str | Sequence[str] | Sequence[Sequence[str]]


class PlainEncoding(Mapping[str, Any]):
    """What a tokenizer returns: lists by name, and the encoding of each window by its number."""

    def __init__(self, lists: dict[str, Any], encodings: "Sequence[Encoding]") -> None:
        self._lists, self.encodings = lists, encodings

    def __getitem__(self, key: Any) -> Any:
        return self.encodings[key] if isinstance(key, int) else self._lists[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lists)

    def __len__(self) -> int:
        return len(self._lists)

    def word_ids(self, window: int = 0) -> list[int | None]:
        """Return the number of the word of each token; None for special tokens."""
        return self.encodings[window].word_ids

    def sequence_ids(self, window: int = 0) -> list[int | None]:
        """Return for each token the number of its text in a pair; None for special tokens."""
        return self.encodings[window].sequence_ids


class PlainTokenizer:
    """A fast tokenizer that was recorded with an exported model. Threads can share it.

    Its methods and attributes are those of transformers' tokenizers, and do the same. Those that the reading of texts
    does not use are missing.

    Args:
        file: The file of the tokenizer, as the library tokenizers writes it. What it says of truncation and padding is
            ignored.
        facts: What the exporter recorded of the tokenizer.
    """

    is_fast = True
    truncation_side = "right"

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        limit_tokenizers()
        self._setup(Tokenizer.from_file(str(file)), facts)

    def _setup(self, backend: "Tokenizer", facts: Mapping[str, Any]) -> None:
        self.backend_tokenizer, self._facts = backend, facts
        backend.no_truncation()
        backend.no_padding()
        self.model_max_length: int = facts["model_max_length"]
        self.model_input_names: list[str] = list(facts["model_input_names"])
        self.all_special_tokens: list[str] = list(facts["all_special_tokens"])
        for kind in _SPECIAL:
            token = facts["special_tokens"].get(kind)
            setattr(self, f"{kind}_token", token)
            setattr(self, f"{kind}_token_id", None if token is None else backend.token_to_id(token))
        self._lock = Lock(rest_s=_FORK_S)  # guards truncation and the reading of special tokens

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a tokenizer without transformers has no {name!r}")

    def __call__(
        self,
        text: Given,
        text_pair: Given | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        split_special_tokens: bool = False,
        verbose: bool = True,
    ) -> PlainEncoding:
        """Return the tokens of a text or of a batch of texts, as a tokenizer of transformers does."""
        is_words = is_split_into_words
        is_batch = isinstance(text, (list, tuple)) and (
            not is_words or bool(text and isinstance(text[0], (list, tuple)))
        )
        items: Any = text if is_batch else [text]
        if text_pair is not None:
            items = list(zip(items, text_pair if is_batch else [text_pair], strict=True))
        backend = self.backend_tokenizer
        with self._lock:
            self._check_lock()
            if truncation:
                strategy = "longest_first" if truncation is True else truncation
                length = self.model_max_length if max_length is None else max_length
                backend.enable_truncation(length, stride=stride, strategy=strategy)
            elif backend.truncation is not None:
                backend.no_truncation()
            if backend.encode_special_tokens != split_special_tokens:
                backend.encode_special_tokens = split_special_tokens
            made = backend.encode_batch(items, is_pretokenized=is_words, add_special_tokens=add_special_tokens)
        encodings: list[Encoding] = []
        for each in made:
            encodings += [each, *(each.overflowing if return_overflowing_tokens else ())]
        lists: dict[str, Any] = {"input_ids": [each.ids for each in encodings]}
        if "token_type_ids" in self.model_input_names:
            lists["token_type_ids"] = [each.type_ids for each in encodings]
        if return_special_tokens_mask:
            lists["special_tokens_mask"] = [each.special_tokens_mask for each in encodings]
        if not is_batch and not return_overflowing_tokens:
            lists = {name: rows[0] for name, rows in lists.items()}
        return PlainEncoding(lists, encodings)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens a text or a pair gets."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str | None]:
        """Return the names of tokens."""
        return [self.backend_tokenizer.id_to_token(number) for number in ids]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Return the id of a token or of each token; that of the unknown token if the vocabulary lacks it."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.backend_tokenizer.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of the special tokens."""
        found: list[int] = self.convert_tokens_to_ids(self.all_special_tokens)
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens."""
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> "dict[int, AddedToken]":
        """The tokens that were added to the vocabulary, by id."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def add_tokens(self, tokens: "Sequence[AddedToken]") -> int:
        """Add tokens to the vocabulary, and return how many."""
        return self.backend_tokenizer.add_tokens(list(tokens))

    def copy(self) -> "PlainTokenizer":
        """Return a copy that may get further tokens."""
        from tokenizers import Tokenizer

        made = object.__new__(PlainTokenizer)
        with self._lock:
            self._check_lock()
            text = self.backend_tokenizer.to_str()
        made._setup(Tokenizer.from_str(text), self._facts)
        return made

    def _check_lock(self) -> None:
        if self._lock.was_busy:
            raise LoadError(
                "This tokenizer cannot be used in this process: when the process was forked, another thread had been "
                f"encoding with it for more than {_FORK_S:.0f} seconds.\nLoad it again with: registry.clear_cache()"
            )
