"""Which model a request means, in protocols whose requests need not name one."""

from typing import Annotated

from fastapi import Depends, Header, Query, Request

from medvllm.server.context import server_of
from medvllm.server.problem import Problem, ProblemError


class ModelChoice:
    """What a request says about its model, besides its body.

    Args:
        http: The request.
        model: A name of the catalogue, in the address.
        x_medvllm_model: The same in a header, for clients with a fixed address.
    """

    def __init__(
        self,
        http: Request,
        model: Annotated[
            str | None, Query(description="A name of the catalogue, unless the body has one.", examples=["my-deid"])
        ] = None,
        x_medvllm_model: Annotated[str | None, Header(description="A name of the catalogue.")] = None,
    ) -> None:
        self._path, self._loaded = http.url.path, server_of(http).config.loaded
        self._address, self._named = model, model or x_medvllm_model

    def name(self, *given: str | None) -> str:
        """Return the model that the body or the address names, or else a header, or else the server's only one.

        Args:
            given: The names in the body, in each of its places.

        Raises:
            ProblemError: The body and the address name several models. Or nothing names one, and the server did not
                load exactly one at its start.
        """
        if name := only_name(*given, self._address) or self._named or _only(self._loaded):
            return name
        loaded = f"several at its start: {', '.join(self._loaded)}" if self._loaded else "none at its start"
        message = (
            f"The request names no model, and the server loaded {loaded}.\n"
            f"Name it in the address, {self._path}?model=NAME, or in the header x-medvllm-model."
        )
        raise ProblemError(Problem(422, "no_model", message, "model"))


def only_name(*given: str | None) -> str | None:
    """Return the model that a request names, wherever it does so; None if nowhere.

    Args:
        given: The names in each place.

    Raises:
        ProblemError: It names several.
    """
    names = set(filter(None, given))
    if len(names) > 1:
        message = "The request names several models, in its address and its body or twice in its body.\nName one."
        raise ProblemError(Problem(422, "ambiguous_model", message, "model"))
    return next(iter(names), None)


def _only(names: tuple[str, ...]) -> str | None:
    return names[0] if len(names) == 1 else None


Choice = Annotated[ModelChoice, Depends()]
