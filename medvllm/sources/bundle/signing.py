"""Signatures of bundles, by OpenSSF model signing with an elliptic-curve key: a file beside the bundle, and no network.

`model_signing verify key BUNDLE --signature BUNDLE.sig --public-key KEY` checks the same without medvllm.
"""

import base64
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from medvllm.destination import write
from medvllm.errors import DigestMismatchError, MedVLLMError, MissingDependencyError, RequestError


def signature_of(bundle: Path) -> Path:
    """Return where a bundle's signature lies."""
    return bundle.with_name(f"{bundle.name}.sig")


def check_signing_key(key: Path) -> None:
    """Raise an error of ours when a bundle could not be signed with a private key: before it is written."""
    _signer(key)


def sign_bundle(bundle: Path, key: Path) -> Path:
    """Write a bundle's signature by a private key beside it, and return it."""
    signer = _signer(key)
    with TemporaryDirectory() as folder:
        made = Path(folder) / "signature"
        try:
            signer.sign(bundle, made)
        except Exception as error:  # of a library beneath it, of any kind
            raise RequestError(f"Bundle '{bundle}' cannot be signed with '{key}': {str(error)[:200]}.") from error
        write(signature_of(bundle), made.read_bytes())
    return signature_of(bundle)


def verify_signature(bundle: Path, key: Path) -> str:
    """Return the SHA-256 that a bundle's signature vouches for.

    DigestMismatchError: it has no signature, or none by this key, or was changed since.
    """
    library, signature = _library(), signature_of(bundle)
    facts: dict[str, Any] = {"path": str(bundle), "files": ()}
    if not os.path.isfile(signature):
        raise DigestMismatchError(
            f"Bundle '{bundle}' has no signature: '{signature}' is not there.\nCopy the file that export --sign wrote.",
            **facts,
        )
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # of a library beneath it, of any kind
        raise _unusable(key, error) from error
    try:
        content = signature.read_bytes()
        with TemporaryDirectory() as folder:  # where nobody puts another in its place
            own = Path(folder) / "signature"
            own.write_bytes(content)
            verifier.verify(bundle, own)
        # What was verified just now says which bytes it is of; those that are read next are compared with it.
        statement = json.loads(base64.b64decode(json.loads(content)["dsseEnvelope"]["payload"]))
        resources = statement["predicate"]["resources"]
        return str(*[resource["digest"] for resource in resources if resource["algorithm"] == "sha256"])
    except Exception as error:
        raise DigestMismatchError(
            f"The signature of bundle '{bundle}' is not by the key '{key}', or is of other bytes.\n"
            "Nothing of it was imported. Ask who exported it.",
            **facts,
        ) from error


def _signer(key: Path) -> Any:
    try:
        return _library().signing.Config().use_elliptic_key_signer(private_key=key)
    except MedVLLMError:
        raise
    except Exception as error:  # of a library beneath it, of any kind
        raise _unusable(key, error) from error


def _unusable(key: Path, error: Exception) -> RequestError:
    reason = error.strerror if isinstance(error, OSError) else "it is no key of an elliptic curve in PEM, unencrypted"
    return RequestError(
        f"Key '{key}' cannot be used: {reason}.\n"
        "Make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; its public half: "
        "openssl ec -in key.pem -pubout -out key.pub"
    )


def _library() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise MissingDependencyError(
            "Signatures need the package model-signing.\nInstall it: pip install 'medvllm[signing]'"
        ) from error
    library: ModuleType = model_signing
    return library
