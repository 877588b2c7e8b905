"""From a catalogue entry to a verified snapshot: a local folder whose every byte is accounted for."""

from typing import TYPE_CHECKING

from medvllm.lazy_names import lazy_names

if TYPE_CHECKING:
    from medvllm.sources import bundle, hub
    from medvllm.sources.digest import Digest
    from medvllm.sources.fingerprint import Fingerprint
    from medvllm.sources.folder_facts import read_folder_facts
    from medvllm.sources.lock import Lock
    from medvllm.sources.locked_model import FOLDER, Approval, LockedModel
    from medvllm.sources.proof import prove
    from medvllm.sources.resolve import copy_to_home, followed_branch, refresh_revision, resolve_snapshot
    from medvllm.sources.snapshot import Snapshot
    from medvllm.sources.verify import is_locked, verify_files

__all__ = [
    "FOLDER",
    "Approval",
    "Digest",
    "Fingerprint",
    "Lock",
    "LockedModel",
    "Snapshot",
    "bundle",
    "copy_to_home",
    "followed_branch",
    "hub",
    "is_locked",
    "prove",
    "read_folder_facts",
    "refresh_revision",
    "resolve_snapshot",
    "verify_files",
]

__getattr__ = lazy_names(
    __name__,
    {
        "bundle": (),
        "digest": ("Digest",),
        "fingerprint": ("Fingerprint",),
        "folder_facts": ("read_folder_facts",),
        "hub": (),
        "lock": ("Lock",),
        "locked_model": ("FOLDER", "Approval", "LockedModel"),
        "proof": ("prove",),
        "resolve": ("copy_to_home", "followed_branch", "refresh_revision", "resolve_snapshot"),
        "snapshot": ("Snapshot",),
        "verify": ("is_locked", "verify_files"),
    },
)
