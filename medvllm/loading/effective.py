"""The effective options of a load: what the caller left open, filled in before two loads are compared."""

import json
from dataclasses import replace

from medvllm.loading import config, device
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity, LoadOptions
from medvllm.sources import Snapshot


def filled(metadata: ModelMetadata, stated: LoadOptions) -> LoadOptions:
    """Return `stated` with the rest from the entry, then from the settings; LoadError when the device is not here."""
    options = stated.filled(LoadOptions.stated(metadata.parameters))
    return replace(options, device=device.resolve(options.device or "cpu"))


def identify(metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot) -> Identity:
    """Return the identity of a load: what `options` still leave open is the checkpoint's own."""
    cls = config.model_class(metadata, options, snapshot)
    own = config.read_config(metadata, replace(options, overrides=()), snapshot, cls).to_dict()
    # An override that says what the config says anyway is none.
    overrides = tuple((field, text) for field, text in options.overrides if _json(own.get(field)) != text)
    return Identity(
        metadata.name,
        metadata.version,
        metadata.origin,
        snapshot.identity,
        replace(
            options,
            dtype=options.dtype or snapshot.dtype or "float32",
            revision=snapshot.commit,
            model_class=cls,
            overrides=overrides,
        ),
    )


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=repr)
