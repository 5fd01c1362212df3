"""Networks of a job, in the process that asks or in actors which hold them for all workers.

``network(step, make, ...)`` is what a step writes. In one process, and on machines without GPUs, it
is the network itself. Where a job serves the step it is a ``Served``, which sends each call to an
actor and waits; the worker's CPU is free for other units meanwhile. What comes back is bit for bit
what the network says of the same arguments, so rows do not depend on it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from pipelines.engine.staging import InfrastructureError

LOOK = "?"  # before a name: what an attribute is, not what a call gives

_desks: dict[str, Any] = {}
"""In a worker: the actor that takes the calls of a step."""


class Served:
    """A network that actors hold. methods: those that may be called; it can be called itself, and
    any other name is looked up once.

    What the network raises is raised. InfrastructureError where it cannot be made, RuntimeError
    where an actor died of these arguments. It may outlive its job in a worker: then it goes to the
    desk of the next one, or makes the network here.
    """

    def __init__(
        self, step: str, make: Callable[..., Any], arguments: Any, methods: tuple[str, ...]
    ) -> None:
        self._step, self._make, self._arguments = step, make, arguments
        self._methods = methods

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask("__call__", arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._methods:
            return lambda *arguments, **named: self._ask(name, arguments, named)
        self.__dict__[name] = found = self._ask(LOOK + name, (), {})
        return found

    def _ask(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        desk = _desks.get(self._step)
        if desk is None:
            return call(self._make(*self._arguments), name, arguments, named)
        import ray

        about, given = pickle.dumps((self._make, self._arguments)), ray.put((arguments, named))
        try:
            (answer,) = ray.get(desk.ask.remote(about, name, [given]))
            said, found = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise RuntimeError(str(error.cause or error)) from None
        if said == "stop":
            raise InfrastructureError(found)
        if said == "error":
            raise found
        return deepcopy(found)  # arrays of the object store are read-only, and lie there until then


def call(thing: Any, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What a method gives, or, for a name after ``LOOK``, an attribute."""
    if name.startswith(LOOK):
        return getattr(thing, name.removeprefix(LOOK))
    return getattr(thing, name)(*arguments, **named)


def network(
    step: str, make: Callable[..., Any], *arguments: Any, methods: tuple[str, ...] = ()
) -> Any:
    """What ``make(*arguments)`` gives, here or in the actors of a step.

    make: a function or class of a module, with arguments that can be compared; a function may keep
    what it made.
    """
    if step not in _desks:
        return make(*arguments)
    return Served(step, make, arguments, methods)


def with_desks(
    desks: Mapping[str, Any], run: Callable[[dict[str, str]], dict[str, str]]
) -> Callable[[dict[str, str]], dict[str, str]]:
    """``run`` in a worker whose calls of networks go to these desks, and no others."""

    def served(item: dict[str, str]) -> dict[str, str]:
        _use(desks)
        return run(item)

    return served


def _use(desks: Mapping[str, Any]) -> None:
    """A function of the module: what is sent to a worker has globals of its own."""
    _desks.clear()
    _desks.update(desks)
