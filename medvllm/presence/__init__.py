"""Which processes hold which models. Each keeps a note where its catalogue is, so that all who share one can see it."""

from medvllm.presence.board import Board, Kept
from medvllm.presence.folder import Folder
from medvllm.presence.note import Note
from medvllm.presence.notes import Holder, Notes, notes, processes

__all__ = ["Board", "Folder", "Holder", "Kept", "Note", "Notes", "notes", "processes"]
