"""Runs a task over a large corpus, part by part, so that it can go on after it was stopped."""
