"""`medvllm key`: the API keys of servers."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from medvllm.api_keys import DEFAULT_RIGHTS, RIGHTS, ApiKey, Right
from medvllm.cli.output import print_json, print_table, printable
from medvllm.cli.parameters import Json
from medvllm.cli.streams import say
from medvllm.model_registry import registry
from medvllm.quantities import parse_duration

app = typer.Typer(help="Make and revoke the API keys that `medvllm serve` requires.", no_args_is_help=True)

_DAY_S = 86_400
_MAX_S = 100 * 366 * _DAY_S
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="A name for the key, such as radiology-pacs.")]


@app.command("add")
def add(
    name: KeyName,
    right: Annotated[
        list[str] | None,
        typer.Option(help="read, infer or manage. Repeat it for several. By default, read and infer."),
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="DURATION", help="For how long it is valid, as 90d.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="How many requests may be open at once.")] = None,
    max_texts: Annotated[int | None, typer.Option(min=1, help="The most texts of one request.")] = None,
    max_characters: Annotated[int | None, typer.Option(min=1, help="The most characters of one request.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens to read for one request.")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(min=1, help="The largest body of a request, in bytes.")] = None,
) -> None:
    """Make a key and print it. The catalogue keeps its digest only: the key cannot be shown again."""
    given = {
        "max_concurrent": max_concurrent,
        "max_texts": max_texts,
        "max_characters": max_characters,
        "max_tokens": max_tokens,
        "max_body_bytes": max_body_bytes,
    }
    key = registry.catalog.keys.add(
        name,
        rights=_to_rights(right),
        limits={limit: number for limit, number in given.items() if number is not None},
        expires=None if expires is None else _to_moment(expires),
    )
    typer.echo(key)
    say("Clients send it as: Authorization: Bearer KEY. It is not shown again.")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the keys of the catalogue: what they may do, until when, and who made them. The keys are not stored."""
    keys = registry.catalog.keys.list()
    if as_json:
        print_json([{name: value for name, value in vars(key).items() if name != "digest"} for key in keys])
        return
    if not keys:
        say("There are no keys. Make one: medvllm key add NAME")
    columns = ("NAME", "RIGHTS", "LIMITS", "CREATED", "BY", "STATE")
    print_table(columns, [(*_row(key), _state(key)) for key in keys])


@app.command("revoke")
def revoke(name: KeyName) -> None:
    """Refuse a key from now on. Servers notice within two seconds."""
    registry.catalog.keys.revoke(name)
    typer.echo(f"Revoked {printable(name)}.")


def _to_rights(stated: list[str] | None) -> tuple[Right, ...]:
    if unknown := next((right for right in stated or () if right not in RIGHTS), None):
        raise typer.BadParameter(f"{unknown!r} is none of {', '.join(RIGHTS)}", param_hint="--right")
    return tuple(right for right in RIGHTS if right in stated) if stated else DEFAULT_RIGHTS


def _to_moment(text: str) -> datetime:
    """Return the moment that is a duration from now."""
    try:
        days = text.removesuffix("d")
        seconds = float(days) * _DAY_S if days != text else parse_duration(text)
        if not 0 < seconds < _MAX_S:
            raise ValueError
    except ValueError:
        message = f"{text!r} is no duration of up to 100 years, such as 12h or 90d"
        raise typer.BadParameter(message, param_hint="--expires") from None
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _row(key: ApiKey) -> tuple[object, ...]:
    limits = ", ".join(f"{name.removeprefix('max_')}={number}" for name, number in key.limits.items())
    return key.name, ", ".join(key.rights), limits or None, key.created, key.author


def _state(key: ApiKey) -> str:
    if key.revoked:
        return f"revoked {key.revoked}"
    if not key.is_valid:
        return f"expired {key.expires}"
    return "valid" if key.expires is None else f"valid until {key.expires}"
