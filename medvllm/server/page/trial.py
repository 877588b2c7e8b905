"""`/try`: ask a model, see the answer, and copy the call."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import ValidationError

from medvllm.errors import MedVLLMError
from medvllm.metadata import ModelMetadata
from medvllm.server.body import StrictRoute
from medvllm.server.context import Server, ServerOf
from medvllm.server.page.actions import Action, actions_of
from medvllm.server.page.call import Call
from medvllm.server.page.form import Form, read_form
from medvllm.server.page.streamed import stream_answer
from medvllm.server.page.view import render_view
from medvllm.server.problem import Problem, ProblemError, log_failure, problem_of
from medvllm.server.rendering import in_words
from medvllm.server.served_runner import VERSION

router = APIRouter(route_class=StrictRoute)

_Name = Annotated[str, Query(max_length=500)]
_Word = Annotated[str, Query(max_length=50)]


@router.get("/try")
async def show_form(http: Request, server: ServerOf, name: _Name = "", action: _Word = "") -> HTMLResponse:
    """Show what can be asked of a model."""
    entry, chosen = await server.look(http, lambda: _choose(server, name, action))
    return _show(http, server, name, entry, chosen, Form({} if chosen is None else chosen.defaults))


@router.post("/try")
async def ask(http: Request, server: ServerOf, name: _Name = "", action: _Word = "") -> Response:
    """Ask a model, and show its answer. If there is none, what was written is still there."""
    form = await read_form(http)
    entry, chosen = await server.look(http, lambda: _choose(server, name, action))
    if chosen is None:
        raise _no_action(entry)
    form = form.filled(chosen.defaults)
    try:
        body = {"model": name, **chosen.body(form)}
        call = Call(_url_of(http), chosen.route, body, chosen.client_call(body), server.config.requires_key)
        if chosen.is_streamed:
            shown = partial(_show, http, server, name, entry, chosen, form, call=call)
            return await stream_answer(chosen, body, http, server, shown)
        answer = await chosen.ask(body, http, server)
    except (ProblemError, MedVLLMError, ValidationError) as error:
        problem = _invalid(error) if isinstance(error, ValidationError) else in_words(problem_of(error), {})
        log_failure(http, error, problem)
        return _show(http, server, name, entry, chosen, form, problem=problem)

    def show() -> HTMLResponse:  # in a thread: a long note has many marks
        assert chosen is not None and chosen.describe is not None
        result = {"version": server.about.get(VERSION), **chosen.describe(body, answer)}
        return _show(http, server, name, entry, chosen, form, result=result, call=call)

    return await server.run(http, show)


def _url_of(http: Request) -> str:
    """Return the address of the server, as the browser has it: a proxy in front may have TLS."""
    origin = http.headers.get("origin", "")
    is_own = urlsplit(origin).netloc == http.headers.get("host")
    return origin if is_own else str(http.base_url).rstrip("/")


def _choose(server: Server, name: str, word: str) -> tuple[ModelMetadata, Action | None]:
    """Return an entry, and the action of a word, or else the first one that it has."""
    entry = server.entry(name)
    actions = actions_of(entry)
    return entry, next((each for each in actions if each.word == word), actions[0] if actions else None)


def _show(
    http: Request,
    server: Server,
    name: str,
    entry: ModelMetadata,
    action: Action | None,
    form: Form,
    *,
    result: Mapping[str, Any] | None = None,
    call: Call | None = None,
    problem: Problem | None = None,
) -> HTMLResponse:
    return render_view(
        http,
        "catalogue",
        "try.html",
        status=200 if problem is None else problem.status,
        headers=None if problem is None else problem.headers(),
        name=name,
        entry=entry,
        actions=actions_of(entry),
        action=action,
        form=form,
        result=result,
        call=call,
        problem=problem,
    )


def _invalid(error: ValidationError) -> Problem:
    """Return the problem of a field that does not fit. Pydantic's own message would repeat the text."""
    field = ".".join(str(part) for part in error.errors()[0]["loc"])
    return Problem(422, "invalid_request", f"{field}: it is out of range, or of another kind.", field)


def _no_action(entry: ModelMetadata) -> ProblemError:
    message = f"The entry of {entry.name!r} has no task that can be tried here."
    return ProblemError(Problem(422, "no_task", message, "model"))
