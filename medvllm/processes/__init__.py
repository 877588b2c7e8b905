"""Which processes hold which models. Each keeps a note where its catalogue is, so that all who share one can see it."""

from medvllm.processes.board import Board, Kept
from medvllm.processes.folder import Folder
from medvllm.processes.note import Note
from medvllm.processes.notes import Holder, Notes, notes, processes

__all__ = ["Board", "Folder", "Holder", "Kept", "Note", "Notes", "notes", "processes"]
