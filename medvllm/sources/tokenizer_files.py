"""Which files a tokenizer reads, by the class that transformers 5 chooses. A test compares the tables with it."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Every class reads these.
_ALWAYS = ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
# Read if tokenizer_config.json does not list the added tokens itself.
_LEGACY = ("special_tokens_map.json", "added_tokens.json")
# Read only if there is no tokenizer.json, or the class is written in Python.
_VOCABULARIES = frozenset(
    (
        *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "vocab.bpe", "vocab-src.json", "vocab-tgt.json"),
        *("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "spm_char.model"),
        *("source.spm", "target.spm", "prophetnet.tokenizer", "byte_maps.json", "tekken.json", "tiktoken.model"),
    )
)
_MODEL = re.compile(r"tokenizer\.model(\..+)?|.+\.tiktoken")  # Mistral numbers its versions
# Read by some classes, in addition to a vocabulary or tokenizer.json.
_COMPANIONS = {
    "entity_vocab.json": ("luke", "mluke"),
    "normalizer.json": ("whisper",),
    "dict.txt": ("bartpho",),
    "emoji.json": ("gpt_neox_japanese",),
    "word_shape.json": ("roc_bert",),
    "word_pronunciation.json": ("roc_bert",),
}
# Classes written in Python, without "Tokenizer" and "Fast" in the name.
_SLOW_CLASSES = frozenset(
    (
        *("Bartpho", "BertGeneration", "BertJapanese", "BertTokenizerLegacy", "Bertweet", "BioGpt"),
        *("BlenderbotSmall", "ByT5", "CTRL", "Canine", "Clvp", "Cpm", "CpmAnt", "Dia", "Esm", "FSMT"),
        *("FastSpeech2Conformer", "Flaubert", "GPTNeoXJapanese", "GPTSw3", "M2M100", "Marian", "Mgpstr", "MyT5"),
        *("PLBart", "Perceiver", "Phobert", "Pop2Piano", "ProphetNet", "RoCBert", "Siglip", "Speech2Text"),
        *("SpeechT5", "Tapas", "Vits", "Wav2Vec2CTC", "Wav2Vec2PhonemeCTC", "XLM"),
    )
)
# Model types whose default is such a class.
_SLOW_TYPES = frozenset(
    (
        *("bartpho", "bert-generation", "bert-japanese", "bertweet", "biogpt", "blenderbot-small", "byt5", "canine"),
        *("clvp", "cpm", "cpmant", "ctrl", "data2vec-audio", "dia", "esm", "fastspeech2_conformer", "flaubert"),
        *("fsmt", "gpt-sw3", "gpt_neox_japanese", "hubert", "m2m_100", "marian", "mgp-str", "myt5", "perceiver"),
        *("phobert", "plbart", "pop2piano", "prophetnet", "roc_bert", "siglip", "speech_to_text", "speecht5"),
        *("tapas", "unispeech", "unispeech-sat", "vits", "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer"),
        *("wav2vec2_phoneme", "xlm"),
    )
)


def tokenizer_files(
    names: Collection[str], config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> Iterator[str]:
    """Give the files at the top of a folder that its tokenizer reads.

    Args:
        names: The files of the folder.
        config: The content of config.json.
        tokenizer_config: The content of tokenizer_config.json, empty if there is none.
    """
    yield from (name for name in _ALWAYS if name in names)
    if "added_tokens_decoder" not in tokenizer_config:
        yield from (name for name in _LEGACY if name in names)
    yield from (name for name in names if re.fullmatch(r"additional_chat_templates/[^/]+\.jinja", name))
    if "tokenizer.json" not in names or _is_slow(config, tokenizer_config):
        yield from (name for name in names if name in _VOCABULARIES or _MODEL.fullmatch(name))
    kinds = {str(config.get("model_type")), _plain(config, tokenizer_config).lower()}
    for name, users in _COMPANIONS.items():
        if name in names and ("auto_map" in tokenizer_config or kinds & {*users, *(u.replace("_", "") for u in users)}):
            yield name


def has_vocabulary(names: Collection[str]) -> bool:
    """Return whether the files at the top of a folder hold a vocabulary, and not only settings of a tokenizer."""
    return any(name == "tokenizer.json" or name in _VOCABULARIES or _MODEL.fullmatch(name) for name in names)


def _is_slow(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> bool:
    """Return whether the class may be written in Python. A class of the repository's own may be anything."""
    if "auto_map" in tokenizer_config:
        return True
    plain = _plain(config, tokenizer_config)
    return plain in _SLOW_CLASSES if plain else config.get("model_type") in _SLOW_TYPES


def _plain(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    """Return the name of the tokenizer's class without "Tokenizer" and "Fast", or "" if the files name no class."""
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    return named.removesuffix("Fast").removesuffix("Tokenizer") if isinstance(named, str) else ""
