"""The first member of a bundle: which members follow, with size and SHA-256 of each."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from medvllm.sources.digest import Digest

MANIFEST, ENTRIES, LOCK, EXPORT_RECORD = "manifest.json", "entries.toml", "medvllm.lock", "export.json"
MAX_TEXT_BYTES = 64 << 20  # of the manifest, the entries or the lock

_VERSION = 3
_BLOB = re.compile(r"blobs/[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a bundle's manifest says.

    Attributes:
        members: The members between the manifest and the export record, in order, with their digests.
        listings: For each model from a repository, the SHA-256 of its commit's listing.
        branches: For each model that follows a branch or tag, its name.
    """

    members: Mapping[str, Digest]
    listings: Mapping[str, str]
    branches: Mapping[str, str]

    @property
    def blobs(self) -> dict[str, int]:
        """The sizes of the files in the bundle, by SHA-256."""
        return {digest.sha256: digest.size for name, digest in self.members.items() if _BLOB.fullmatch(name)}

    @property
    def total_bytes(self) -> int:
        """The size of all members together."""
        return sum(digest.size for digest in self.members.values())

    def to_json(self) -> bytes:
        """Return the manifest as the content of its member."""
        rows = [{"name": name, "size": digest.size, "sha256": digest.sha256} for name, digest in self.members.items()]
        facts = {
            "version": _VERSION,
            "members": rows,
            "listings": dict(self.listings),
            "branches": dict(self.branches),
        }
        return json.dumps(facts, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Manifest":
        """Return the manifest of a member's content.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: The content is not a manifest.
        """
        facts = json.loads(content)
        if facts.get("version") != _VERSION:
            raise ValueError(f"its version is {facts.get('version')!r:.20}, and this program reads {_VERSION}")
        rows = [(str(row["name"]), Digest(int(row["size"]), str(row["sha256"]))) for row in facts["members"]]
        names = [name for name, _ in rows]
        if names[:2] != [ENTRIES, LOCK] or len(set(names)) != len(names) or not all(map(_BLOB.fullmatch, names[2:])):
            raise ValueError("its manifest lists other members than a bundle has")
        if any(digest.size < 0 for _, digest in rows) or any(digest.size > MAX_TEXT_BYTES for _, digest in rows[:2]):
            raise ValueError("its manifest lists impossible sizes")
        listings = {str(model): str(sha256) for model, sha256 in facts["listings"].items()}
        branches = {str(model): str(branch) for model, branch in facts["branches"].items()}
        for text in (*listings.values(), *branches, *branches.values()):
            text.encode()  # raises an error for half of a surrogate pair
        return cls(dict(rows), listings, branches)
