"""What packages of others add by a name: matting backends, captioners, importers and so on.

A kind of plug-in is one ``Plugins``: its built-in names and where each is, and what installed
packages offer as entry points of the kind's group. Only what is chosen is imported.

    [project.entry-points."layerflow.matting"]
    sky = "acme_mattes.sky:SkyMatter"
"""

from __future__ import annotations

import inspect
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, metadata
from typing import Any

from layerflow.nearest import did_you_mean

_GATHERED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Offer:
    """An entry point. package: ``NAME==VERSION`` of the distribution that has it."""

    name: str
    target: str
    package: str


@dataclass(frozen=True)
class Plugins:
    """One kind of plug-in. group: of entry points; what: what an error calls one; builtin: name ->
    ``module:attribute``; attributes: what the object of a package must have."""

    group: str
    what: str
    builtin: Mapping[str, str]
    attributes: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """The built-in names, then those of installed packages."""
        offered = {offer.name for offer in _offers(self.group, tuple(sys.path))}
        return (*self.builtin, *sorted(offered - set(self.builtin)))

    def package(self, name: str) -> str | None:
        """``NAME==VERSION`` of the package that adds a name; None for a built-in one.

        Raises ValueError as ``load``.
        """
        offer = self._find(name)
        return offer.package or None

    def load(self, name: str) -> Any:
        """The object of that name.

        Raises ValueError for a name that is unknown or that several offer, and for a package that
        cannot be imported.
        """
        offer = self._find(name)
        module, _, attribute = offer.target.partition(":")
        if not offer.package:
            return getattr(import_module(module), attribute)
        try:
            found: Any = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{self.what} {name!r} of the package {offer.package} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        return found

    def make(self, name: str, offered: Mapping[str, Any], asked: Mapping[str, Any]) -> Any:
        """What the class or function of that name makes.

        offered: arguments for one that takes them. asked: arguments that it must take, or
        ValueError, as for one that it needs besides. What it makes must have the kind's
        ``attributes``.
        """
        factory, who = self.load(name), f"{self.what} {name!r}"
        taken = inspect.signature(factory).parameters
        free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        for argument in asked:
            if argument not in taken and not free:
                raise ValueError(f"{who} has no {argument}: leave it out")
        given = {key: value for key, value in offered.items() if key in taken} | dict(asked)
        for argument, parameter in taken.items():
            optional = parameter.default is not parameter.empty or parameter.kind in _GATHERED
            if not optional and argument not in given:
                raise ValueError(f"{who} needs {argument}")
        try:
            made = factory(**given)
        except TypeError as error:
            raise ValueError(f"{who}: {error}") from error
        return self.checked(name, made)

    def checked(self, name: str, made: Any) -> Any:
        """The object, if it has what the kind needs; ValueError names its package otherwise."""
        lacking = [name for name in self.attributes if not hasattr(made, name)]
        if lacking:
            who = self.package(name) or "this toolkit"
            raise ValueError(f"{self.what} {name!r} of the package {who} has no {lacking[0]}")
        return made

    def _find(self, name: str) -> Offer:
        offers = [offer for offer in _offers(self.group, tuple(sys.path)) if offer.name == name]
        packages = " and ".join(offer.package for offer in offers)
        if name in self.builtin:
            if offers:
                raise ValueError(
                    f"the package {packages} offers a {self.what} {name!r}, which is the name of a "
                    "built-in one: uninstall it, or ask its authors for another name"
                )
            return Offer(name, self.builtin[name], "")
        if len(offers) > 1:
            raise ValueError(f"{packages} offer a {self.what} {name!r} each: uninstall one")
        if not offers:
            names = self.names()
            raise ValueError(
                f"unknown {self.what} {name!r}; {did_you_mean(name, names)}choose one of "
                f"{', '.join(names)}"
            )
        return offers[0]


BASES = Plugins(
    "layerflow.bases",
    "preset",
    {
        "tiny": "layerflow.model.cogvideox.presets:TINY_PRESET",
        "cogvideox-2b": "layerflow.model.cogvideox.presets:COGVIDEOX_2B",
        "cogvideox-5b": "layerflow.model.cogvideox.presets:COGVIDEOX_5B",
        "tiny-wan": "layerflow.model.wan.presets:TINY_PRESET",
        "wan2.1-1.3b": "layerflow.model.wan.presets:WAN_1_3B",
        "wan2.1-14b": "layerflow.model.wan.presets:WAN_14B",
        "wan2.2-ti2v-5b": "layerflow.model.wan.presets:WAN_5B",
        "wan2.2-a14b": "layerflow.model.wan.presets:WAN_A14B",
    },
    attributes=("options", "needs_base", "write"),
)
"""Model directories to start from: ``layerflow.model.presets.ModelPreset`` objects."""


NETWORKS = Plugins(
    "layerflow.networks",
    "transformer",
    {
        "LayerFlowTransformer3DModel": "layerflow.model.cogvideox.base:COGVIDEOX",
        "LayerFlowWanTransformer3DModel": "layerflow.model.wan.base:WAN",
    },
    attributes=("name", "blocks", "transformer", "pipeline", "noise"),
)
"""Class name of a transformer -> its base: ``layerflow.model.base.Base`` objects."""


@lru_cache(maxsize=32)
def _offers(group: str, search_path: tuple[str, ...]) -> tuple[Offer, ...]:
    """The entry points of a group. search_path: ``sys.path``, of which they are a function."""
    return tuple(
        Offer(
            point.name, f"{point.module}:{point.attr}", f"{point.dist.name}=={point.dist.version}"
        )
        for point in metadata.entry_points(group=group)
        if point.dist is not None
    )


def packages_of(**chosen: tuple[Plugins, str | None]) -> dict[str, str]:
    """The packages of what was chosen, by option; nothing for built-in names and for None.

    Raises ValueError for a name that is unknown.
    """
    found = {option: name and kind.package(name) for option, (kind, name) in chosen.items()}
    return {option: package for option, package in found.items() if package}


def missing_packages(recorded: Mapping[str, str]) -> str | None:
    """Why work that packages take part in cannot run on this machine; None if it can.

    recorded: what each is for -> ``NAME==VERSION``, as recipes have it.
    """
    for use, package in recorded.items():
        name, _, wanted = package.partition("==")
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        if found != wanted:
            return (
                f"{use} needs the package {package}, which is {found} on {socket.gethostname()}: "
                "install it on every machine that runs Ray workers"
            )
    return None
