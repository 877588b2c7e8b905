"""Values of facts in one line of text."""


def one_line(value: object, separator: str) -> object:
    """Return a list or a dict as text in one line, and any other value unchanged."""
    items = [f"{key}={text}" for key, text in value.items()] if isinstance(value, dict) else value
    return separator.join(map(str, items)) if isinstance(items, list) else items
