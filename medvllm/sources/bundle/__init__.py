"""Bundles: entries, snapshots and their lock in one tar file, for sites without a network.

The members of the tar file are, in this order: `manifest.json`, `entries.toml`, `medvllm.lock`, `blobs/<SHA-256>` and
`export.json`. All are plain files. The manifest gives the size and SHA-256 of every member except the last, so that
a bundle is read in one pass and nothing in it is trusted unchecked. Equal models give equal bytes up to the last
member, which says who exported them and when.
"""

from medvllm.sources.bundle.contents import Bundle, State
from medvllm.sources.bundle.export_record import ExportRecord
from medvllm.sources.bundle.installing import install_model
from medvllm.sources.bundle.reading import open_bundle, read_bundle
from medvllm.sources.bundle.writing import WrittenBundle, write_bundle

__all__ = [
    "Bundle",
    "ExportRecord",
    "State",
    "WrittenBundle",
    "install_model",
    "open_bundle",
    "read_bundle",
    "write_bundle",
]
