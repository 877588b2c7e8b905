"""Paths as the server knows them, also behind a proxy of Ray Serve that has the server below a prefix."""

from starlette.types import ASGIApp, Receive, Scope, Send


class Unprefixed:
    """Removes the prefix from the path of a request: rights, routes and the names of models follow from the rest.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if prefix := scope.get("root_path", ""):
            scope = {**scope, "path": scope["path"].removeprefix(prefix) or "/", "root_path": ""}
        await self._app(scope, receive, send)
