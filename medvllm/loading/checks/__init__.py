"""Checks of a loaded model: every weight is there and in its place, and the labels mean something."""
