"""What must stay the same from one run of a batch to the next, so that its parts fit together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from medvllm.engine.model_runner.batch.plan import Plan
from medvllm.engine.model_runner.batch.secrets import SECRETS
from medvllm.engine.model_runner.redaction.operators import parse_operators
from medvllm.facts import Behaviour
from medvllm.receipt import Receipt

FORMAT = 1
_DIGEST, _SIZE = "SHA-256 of the input", "rows per part"


@dataclass(frozen=True)
class Conditions:
    """The first line of a manifest.

    Attributes:
        content: What the line says, as JSON values.
    """

    content: Mapping[str, Any]

    @classmethod
    def of(
        cls, plan: Plan, task: str, arguments: Mapping[str, Any], output: str, receipt: Receipt, secret: str | None
    ) -> "Conditions":
        """Return the conditions of a run.

        Args:
            plan: What is read.
            task: The task.
            arguments: The options of the task.
            output: The format of the parts.
            receipt: What answers.
            secret: Tells whether the keys of a redaction are the same, as `secret_of` says.
        """
        return cls(
            {
                "kind": "batch",
                "format": FORMAT,
                "input": {"files": plan.source.shown_names, "rows": plan.rows, "sha256": plan.digest},
                "parts": len(plan.digests),
                "rows_per_part": plan.size,
                "task": task,
                "options": _options_of(arguments),
                "secrets": secret,
                "output_format": output,
                "model": identity_of(receipt),
                "receipt": receipt.to_dict(),
                **({} if (faker := faker_of(arguments)) is None else {"faker": faker}),
            }
        )

    @property
    def model(self) -> str:
        """The model, as a name that always means it."""
        receipt = self.receipt
        return f"{receipt['name']}@{receipt['version']}" if receipt["origin"] == "stored" else str(receipt["name"])

    @property
    def receipt(self) -> Mapping[str, Any]:
        """What answers, as it was first recorded."""
        given: Mapping[str, Any] = self.content["receipt"]
        return given

    @property
    def receipt_digest(self) -> str:
        """The SHA-256 of the receipt as JSON with sorted keys, as `Receipt.digest`."""
        return sha256(json.dumps(self.receipt, sort_keys=True).encode()).hexdigest()

    def differences(self, now: "Conditions") -> list[str]:
        """Return what is otherwise now, one line each. The names of the files may change, not what they hold."""
        before, after = _comparable(self.content), _comparable(now.content)
        if before[_SIZE] != after[_SIZE]:  # the digest of the input is one of parts
            after[_DIGEST] = before[_DIGEST]
        return _differences(before, after, "now")


def _comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is compared, flat."""
    options = {"keys or seeds of the operators": content["secrets"]}
    for name, value in content["options"].items():
        options[f"option {name}"] = value
    return {
        "rows of the input": content["input"]["rows"],
        _DIGEST: content["input"]["sha256"],
        _SIZE: content["rows_per_part"],
        "task": content["task"],
        **options,
        "output format": content["output_format"],
        **_comparable_model(content["model"]),
        **({"version of Faker": content["faker"]} if "faker" in content else {}),
    }


def _comparable_model(model: Mapping[str, Any]) -> dict[str, Any]:
    libraries = {f"version of {name}": version for name, version in model["libraries"].items()}
    return {f"{name} of the model": value for name, value in model.items() if name != "libraries"} | libraries


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], word: str) -> list[str]:
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name}: {_shown(before.get(name))}, {word} {_shown(after.get(name))}" for name in names]


def differences_of_models(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return in what two models differ, of which `identity_of` says who they are, one line each."""
    return _differences(_comparable_model(first), _comparable_model(other), "on another worker")


def identity_of(receipt: Receipt) -> dict[str, Any]:
    """Return what of a receipt decides the answers. A folder may move, and a lock may approve it later."""
    engine = receipt.engine or {}
    return {
        "name": receipt.name if receipt.origin != "direct" else None,
        "version": receipt.version,
        "SHA-256": receipt.proof.digest,
        "SHA-256 of the tokenizer": receipt.proof.tokenizer_sha256,
        "SHA-256 of the labels": receipt.proof.labels_sha256,
        "load options": receipt.options,
        "facts": {fact: row["value"] for fact, row in receipt.declared.items() if fact in Behaviour._fields},
        "engine": {name: engine[name] for name in ("name", "version", "precision") if name in engine} or None,
        "base": None if receipt.base is None else identity_of(receipt.base),
        "libraries": receipt.libraries,
    }


def faker_of(arguments: Mapping[str, Any]) -> str | None:
    """Return the version of Faker if an operator draws names from it: each version may have others."""
    has_surrogates = "operators" in arguments and parse_operators(arguments["operators"]).have_surrogates
    return version("faker") if has_surrogates else None


def _options_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task as JSON values. What its operators keep secret is left out."""
    options = {name: _to_json(value) for name, value in arguments.items()}
    if isinstance(operators := options.get("operators"), dict):
        options["operators"] = {label: _without_secrets(given) for label, given in operators.items()}
    return options


def _without_secrets(operator: Mapping[str, Any]) -> dict[str, Any]:
    return {option: value for option, value in operator.items() if option not in SECRETS}


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _to_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"
