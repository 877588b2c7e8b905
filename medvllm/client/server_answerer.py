"""A server that answers the chunks of a corpus, as `CorpusRun` asks for them."""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from medvllm.client.client import Client
from medvllm.engine.model_runner.corpus_run import NotAnsweredError
from medvllm.engine.model_runner.generation.answers import Piece
from medvllm.engine.model_runner.results import Result
from medvllm.errors import MedVLLMError, ServerError
from medvllm.receipt import Receipt

logger = logging.getLogger(__name__)


class ServerAnswerer:
    """Asks a server.

    Args:
        client: The client of the server.
        model: The name of the model.
        options: Options of the request, such as `engine`.
        operators: What `redact` writes, as it is sent: read here, it would have the keys of this process.
        with_receipt: Whether the last result has a receipt.
        version: If a model in memory can answer, too: the version of the entry that must answer. Whatever goes wrong at
            the server is then a NotAnsweredError, because the model in memory may do better, or raises an error that
            says more.

    Attributes:
        url: The address of the server.
        has_answered: Whether the server has answered.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        *,
        options: Mapping[str, Any],
        operators: Any = None,
        with_receipt: bool = False,
        version: int | None = None,
    ) -> None:
        self._client, self._model, self._options, self._operators = client, model, dict(options), operators
        self._with_receipt, self._is_optional, self._version = with_receipt, version is not None, version
        self.url = client.url
        self.takes_parts = version is None
        self.receipt: Receipt | None = None
        self.has_answered = False

    def streams(self, task: str | None, texts: Sequence[Any]) -> bool:
        """Return whether the answers come piece by piece, if somebody listens. A stream has no receipt."""
        return task == "generate" and not self._with_receipt

    def run(self, task: str | None, texts: Sequence[Any], arguments: Mapping[str, Any]) -> Result:
        """Return the answers of the server."""
        given = {name: value for name, value in arguments.items() if name != "operators"} | self._options
        given |= {} if self._operators is None else {"operators": self._operators}
        found: Result
        try:
            found = self._client.run(task, self._model, texts, with_receipt=self._with_receipt, **given)
            self._check_version(found.version)
        except MedVLLMError as error:
            failure = error
        else:
            self.receipt, self.has_answered = found.receipt, True
            return found
        raise self._not_answered(failure)

    def stream(self, texts: Sequence[Any], arguments: Mapping[str, Any]) -> Generator[Piece]:
        """Yield the answers of the server, piece by piece."""
        failure: MedVLLMError | None = None
        try:
            with closing(
                self._client.generate(self._model, texts, stream=True, **{**arguments, **self._options})
            ) as pieces:
                for piece in pieces:
                    self._check_version(piece.version)
                    self.has_answered = True
                    yield piece
        except MedVLLMError as error:
            failure = error
        if failure is not None:
            raise failure if self.has_answered else self._not_answered(failure)

    def _check_version(self, version: int | None) -> None:
        """Raise ServerError unless all answers come from one version of the model."""
        if self._version is None:
            self._version = version
        if version != self._version:
            raise ServerError(
                f"The server answers with version {version} of model {self._model!r}, and not with {self._version}.\n"
                f"Name the version: {self._model.partition('@')[0]}@{self._version}",
                url=self._client.url,
            )

    def _not_answered(self, failure: MedVLLMError) -> Exception:
        if not self._is_optional:
            return failure
        logger.info("the server at %s did not answer: %s", self._client.url, type(failure).__name__)
        return NotAnsweredError()
