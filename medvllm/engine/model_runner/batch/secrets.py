"""What a redaction keeps secret, and must be the same in every part and every run of a batch."""

import json
from collections.abc import Mapping
from hashlib import scrypt
from typing import Any

from medvllm.engine.model_runner.redaction.keys import read_key
from medvllm.engine.model_runner.redaction.operators import Operators, parse_operators
from medvllm.errors import RequestError
from medvllm.settings import REDACTION_KEY_FILE

SECRETS = ("key", "seed")  # options of operators


def check_operators(given: Mapping[str, Mapping[str, Any]] | None, *, in_one_process: bool) -> Operators:
    """Return the operators of a redaction.

    Raises:
        RequestError: They cannot be used part by part.
    """
    operators = parse_operators(given)
    if operators.need_all_texts:
        raise RequestError(
            'Surrogates of scope "call" need all texts at once, and a batch answers part by part.\n'
            'Use: "scope": "document", or run them at once: medvllm run NAME --task redact',
            option="operators",
        )
    if operators.draw_keys:
        raise RequestError(
            "Surrogates and shifted dates need a key that each part and each run has: a key that is drawn would be "
            "another one after a restart.\n"
            f"Make one: openssl rand -hex 32 > redaction.key; export {REDACTION_KEY_FILE.name}=$PWD/redaction.key",
            option="operators",
        )
    if operators.have_vault and not in_one_process:
        raise RequestError(
            "Workers would take turns with the vault in any order, and surrogates depend on it.\nUse: --workers 1",
            option="operators",
        )
    return operators


def secret_of(arguments: Mapping[str, Any]) -> str | None:
    """Return what tells whether two runs have the same keys, and tells nothing else; None if they have none."""
    operators = arguments.get("operators")
    if not operators:
        return None
    key = read_key() if parse_operators(operators).use_key_of_settings else None
    secrets = {
        label: {option: given[option] for option in SECRETS if option in given} for label, given in operators.items()
    }
    if key is None and not any(secrets.values()):
        return None
    content = [None if key is None else key.hex(), {label: given for label, given in secrets.items() if given}]
    text = json.dumps(content, sort_keys=True, default=repr).encode()
    return scrypt(text, salt=b"medvllm batch", n=1 << 14, r=8, p=1, dklen=16).hex()
