"""What two processes must have in common so that a name means the same model, with the same answers."""

import hashlib
import json
import os
import sys
from pathlib import Path

import medvllm
from medvllm import settings
from medvllm.catalog.location import TEXTS, location
from medvllm.sources.lock_path import lock_path

# They change no answer.
_WITHOUT_EFFECT = {
    *(settings.DEBUG, settings.API_KEYS, settings.API_KEY, settings.SERVER, settings.HUB_TIMEOUT),
    *(settings.MEMORY_BUDGET, settings.MEMORY_TIMEOUT, settings.MAX_MODELS, settings.KEEP_ALIVE),
    *(settings.MAX_QUEUED_TOKENS, settings.CATALOG, settings.LOCK_FILE),
}
# Variables of other libraries that choose files, devices or kernels.
_PREFIXES = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "PYTORCH_", "CUDA_", "OMP_", "MKL_", "ONEDNN_", "DNNL_")
_NAMES = ("PYTHONPATH", "XDG_CACHE_HOME")


def current_conditions() -> str:
    """Return a digest of this process's version of medvllm, its installation, its catalogue, lock and settings.

    Raises:
        MedVLLMError: A setting cannot be used, or the catalogue cannot be reached.
    """
    catalog, lock = location(TEXTS()), lock_path()
    facts = {
        "version": medvllm.__version__,
        "code": str(Path(medvllm.__file__).resolve()),
        "python": [sys.version, sys.prefix],
        "user": os.geteuid(),
        # The place and the file itself: a catalogue that was replaced is another one.
        "catalog": [str(catalog), _file_of(catalog) if isinstance(catalog, Path) else None],
        "lock": str(lock) if settings.LOCK_FILE() is not None or os.path.lexists(lock) else None,
        "settings": {each.name: str(each()) for each in settings.SETTINGS if each not in _WITHOUT_EFFECT},
        "variables": {
            name: text for name, text in sorted(os.environ.items()) if name.startswith(_PREFIXES) or name in _NAMES
        },
    }
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogateescape")).hexdigest()


def _file_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
