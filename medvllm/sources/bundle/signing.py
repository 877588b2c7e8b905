"""Signatures of bundles, by OpenSSF model signing with an elliptic-curve key. No network is needed.

The signature is a file beside the bundle. This command checks it without medvllm:
`model_signing verify key BUNDLE --signature BUNDLE.sig --public-key KEY`.
"""

import base64
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from medvllm.destination import write_output
from medvllm.errors import DigestMismatchError, MedVLLMError, MissingDependencyError, RequestError


def signature_of(bundle: Path) -> Path:
    """Return the file of a bundle's signature."""
    return bundle.with_name(f"{bundle.name}.sig")


def check_signing_key(key: Path) -> None:
    """Check that a private key can sign a bundle, before the bundle is written.

    Raises:
        RequestError: The key cannot be used.
        MissingDependencyError: The package model-signing is not installed.
    """
    _signer(key)


def sign_bundle(bundle: Path, key: Path) -> Path:
    """Sign a bundle with a private key, and return the file of the signature, beside the bundle."""
    signer = _signer(key)
    with TemporaryDirectory() as folder:
        made = Path(folder) / "signature"
        try:
            signer.sign(bundle, made)
        except Exception as error:  # the libraries raise errors of any kind
            raise RequestError(f"Bundle '{bundle}' cannot be signed with '{key}': {str(error)[:200]}.") from error
        write_output(signature_of(bundle), made.read_bytes())
    return signature_of(bundle)


def verify_signature(bundle: Path, key: Path) -> str:
    """Return the SHA-256 of the bundle that its signature is for.

    Args:
        bundle: The bundle. Its signature is the file beside it.
        key: The public key.

    Raises:
        DigestMismatchError: The bundle has no signature by this key, or was changed since it was signed.
        RequestError: The key cannot be used.
    """
    library, signature = _library(), signature_of(bundle)
    facts: dict[str, Any] = {"path": str(bundle), "files": ()}
    if not os.path.isfile(signature):
        raise DigestMismatchError(
            f"Bundle '{bundle}' has no signature: '{signature}' does not exist.\n"
            "Copy the file that medvllm export --sign wrote.",
            **facts,
        )
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # the libraries raise errors of any kind
        raise _unusable(key, error) from error
    try:
        content = signature.read_bytes()
        with TemporaryDirectory() as folder:  # no other user can replace the file there
            own = Path(folder) / "signature"
            own.write_bytes(content)
            verifier.verify(bundle, own)
        # The signature says which digest it is for. The caller compares it with the bytes that are read next.
        statement = json.loads(base64.b64decode(json.loads(content)["dsseEnvelope"]["payload"]))
        resources = statement["predicate"]["resources"]
        return str(*[resource["digest"] for resource in resources if resource["algorithm"] == "sha256"])
    except Exception as error:
        raise DigestMismatchError(
            f"The signature of bundle '{bundle}' was not made by the key '{key}', or is for other bytes.\n"
            "Nothing was imported. Ask the person who exported it.",
            **facts,
        ) from error


def _signer(key: Path) -> Any:
    try:
        return _library().signing.Config().use_elliptic_key_signer(private_key=key)
    except MedVLLMError:
        raise
    except Exception as error:  # the libraries raise errors of any kind
        raise _unusable(key, error) from error


def _unusable(key: Path, error: Exception) -> RequestError:
    reason = (
        error.strerror if isinstance(error, OSError) else "it is not an unencrypted elliptic-curve key in PEM format"
    )
    return RequestError(
        f"Key '{key}' cannot be used: {reason}.\n"
        "Create one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; its public half: "
        "openssl ec -in key.pem -pubout -out key.pub"
    )


def _library() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise MissingDependencyError(
            "Signatures require the package model-signing.\nInstall it: pip install 'medvllm[signing]'"
        ) from error
    library: ModuleType = model_signing
    return library
