"""Requests that concern what each replica has in memory: all of them are asked, and their answers become one."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Response
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Join = Callable[[Mapping[str, bytes]], bytes]  # of the bodies of replicas, by the replica's name


def join_of(method: str, path: str) -> Join | None:
    """Return how the answers of all replicas to a request become one; None if one replica answers it."""
    return next((join for verb, pattern, join in _JOINS if verb == method and re.fullmatch(pattern, path)), None)


def _join_lists(bodies: Mapping[str, bytes]) -> bytes:
    return _written({"models": [model for body in bodies.values() for model in json.loads(body)["models"]]})


def _join_counts(bodies: Mapping[str, bytes]) -> bytes:
    found = [json.loads(body) for body in bodies.values()]
    return _written({**found[0], "models": sum(each["models"] for each in found)})


def _join_states(bodies: Mapping[str, bytes]) -> bytes:
    """Return the state of each version: ready, if it is in the memory of one replica."""
    states: dict[tuple[str, str], Any] = {}
    for body in bodies.values():
        for state in json.loads(body):
            key = state["name"], state["version"]
            if key not in states or state["state"] == "READY":
                states[key] = state
    return _written(sorted(states.values(), key=lambda state: str(state["name"])))


def _join_equal(bodies: Mapping[str, bytes]) -> bytes:
    return next(iter(bodies.values()))


def _join_metrics(bodies: Mapping[str, bytes]) -> bytes:
    """Return the metrics of all replicas, each with the label `replica`."""
    families: dict[str, Metric] = {}
    for replica, body in bodies.items():
        for found in text_string_to_metric_families(body.decode()):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            family.samples += [each._replace(labels={**each.labels, "replica": replica}) for each in found.samples]
    joined = CollectorRegistry()
    joined.register(_Joined(list(families.values())))
    return generate_latest(joined)


class _Joined(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def _written(content: Any) -> bytes:
    return bytes(Response(json.dumps(content, ensure_ascii=False)).body)


_JOINS: tuple[tuple[str, str, Join], ...] = (
    ("GET", "/metrics", _join_metrics),
    ("GET", "/v1/memory|/api/ps", _join_lists),
    ("POST", "/v1/unload", _join_counts),
    ("POST", "/v2/repository/index", _join_states),
    ("POST", "/v2/repository/models/.+/unload", _join_equal),
)
