"""The tokenizer of a model as one file, checked against the tokenizer that it was made of."""

import json
from pathlib import Path
from typing import Any

from medvllm.engines.export import TOKENIZER
from medvllm.engines.tokenizer import PlainTokenizer
from medvllm.loading.export.graph import NotExportable

_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Synthetic texts with what tokenizers treat in different ways.
_PROBES = (
    "Patient denies chest pain; ALS was ruled out on 3 May.",
    "  Mr. Juan Peña, 64,\tcafé owner:\n\naspirin 75 mg o.d. (St. Mary's)  ",
    "HbA1c 7.2 %, eGFR >60 mL/min/1.73 m²; 北京 患者 ผู้ป่วย 😀 {special} a{special}b",
    "",
    "no fever " * 700,
)


def write_tokenizer(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Write a tokenizer into a folder, and return the facts to read it with.

    Raises:
        NotExportable: It is written in Python, or the file does not give the same tokens.
    """
    if not tokenizer.is_fast:
        raise NotExportable(f"its {type(tokenizer).__name__} is written in Python, and needs transformers")
    # What another call left behind is no part of the tokenizer.
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    facts = describe_tokenizer(tokenizer)
    _check(tokenizer, PlainTokenizer(folder / TOKENIZER, facts))
    return facts


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return what a tokenizer's file does not say."""
    return {
        "class": type(tokenizer).__name__,
        "model_max_length": tokenizer.model_max_length,
        "model_input_names": list(tokenizer.model_input_names),
        "all_special_tokens": list(map(str, tokenizer.all_special_tokens)),
        "special_tokens": {
            kind: str(token) for kind in _KINDS if (token := getattr(tokenizer, f"{kind}_token", None)) is not None
        },
    }


def _check(tokenizer: Any, plain: PlainTokenizer) -> None:
    """Raise NotExportable unless both tokenizers read the probes in the same way."""
    special = (*tokenizer.all_special_tokens, "")[0]
    texts: list[Any] = [text.replace("{special}", str(special)) for text in _PROBES]
    limit = tokenizer.model_max_length
    windows: dict[str, Any] = {"max_length": limit, "return_overflowing_tokens": True}
    words = [text.split() or [""] for text in texts]
    for splits in (True, False):
        common: dict[str, Any] = {"split_special_tokens": splits, "return_special_tokens_mask": True, "verbose": False}
        calls: list[tuple[Any, dict[str, Any]]] = [
            ((texts,), common | {"add_special_tokens": False}),
            ((texts,), common | windows | {"truncation": True, "stride": 1}),
            ((texts[:2], texts[2:4]), common),
            ((words,), common | windows | {"truncation": True, "stride": 1, "is_split_into_words": True}),
        ]
        room = limit - tokenizer.num_special_tokens_to_add(pair=True)
        if room > 2 + len(tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"]):
            calls.append((([texts[0]], [texts[4]]), common | windows | {"truncation": "only_second", "stride": 1}))
        for given, options in calls:
            one, two = tokenizer(*given, **options), plain(*given, **options)
            fields = set(two)
            if any(one[field] != two[field] for field in fields) or fields ^ set(one) - {"attention_mask"} - _LEFT:
                raise NotExportable("its tokenizer gives other tokens without transformers")
            for window in range(len(two["input_ids"])):
                same = one[window].offsets == two[window].offsets and one.word_ids(window) == two.word_ids(window)
                if not same or one.sequence_ids(window) != two.sequence_ids(window):
                    raise NotExportable("its tokenizer gives other offsets without transformers")
    ids = list(range(min(len(plain.get_vocab()), 2000)))
    if tokenizer.convert_ids_to_tokens(ids) != plain.convert_ids_to_tokens(ids):
        raise NotExportable("its tokenizer has other names for tokens without transformers")
    if any(tokenizer.decode([number]) != plain.decode([number]) for number in ids):
        raise NotExportable("its tokenizer has other texts for tokens without transformers")
    for name in ("all_special_ids", "unk_token_id", "pad_token_id", "mask_token_id", "cls_token_id", "sep_token_id"):
        if getattr(tokenizer, name, None) != getattr(plain, name):
            raise NotExportable(f"its tokenizer has another {name} without transformers")
    for pair in (False, True):
        if tokenizer.num_special_tokens_to_add(pair=pair) != plain.num_special_tokens_to_add(pair=pair):
            raise NotExportable("its tokenizer adds other special tokens without transformers")


_LEFT = {"overflow_to_sample_mapping"}  # what nobody reads
