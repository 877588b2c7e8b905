"""A registry whose models and names a page shows, also hostile ones, and what a page says."""

from html.parser import HTMLParser
from pathlib import Path

from medvllm.engine.model_runner import ModelRegistry
from tests.support import decoders
from tests.support.served import registry_of_all_tasks

HOSTILE_NAME = "<script>alert(1)</script>"
HOSTILE_TEXT = "\"'><img src=x onerror=alert(2)></textarea><script>alert(3)</script>{{ 7*7 }}"


def registry_of_pages(folder: Path) -> ModelRegistry:
    """Models of all tasks, a decoder, one of pairs, and one with a hostile name."""
    registry = registry_of_all_tasks(folder)
    decoder = decoders.llama(folder / "decoder")
    registry.register("writer", "clinical", model_path=str(decoder), task="generate")
    inputs = ("premise", "hypothesis")
    registry.register("nli", "clinical", model_path=str(folder / "cls"), task="classify", inputs=inputs)
    registry.register(HOSTILE_NAME, "clinical", model_path=str(folder / "deid"), task="deid", description=HOSTILE_TEXT)
    return registry


class Page(HTMLParser):
    """What a page says, and what in it could run or load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []
        self.inline: list[str] = []
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")
            if name in ("href", "src", "action", "formaction") and value is not None:
                self.links.append(value)
        self._in_script = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.inline.append(data)
        self.text += data
