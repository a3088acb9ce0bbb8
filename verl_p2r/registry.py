# SPDX-License-Identifier: Apache-2.0
"""Named extensions: registered by a decorator in running code, or by an entry point of an installed package."""

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Functions or classes by name: built in, registered by code, or listed in the entry points of installed packages.

    Entry points are read on first use. A module is imported only when one of its names is asked for.

    Args:
        what: What messages call a name, for example `judge name`.
        group: The entry-point group, for example `verl_p2r.judges`.
        built_in: Name → the object, or `module:attribute` to import on first use.
    """

    def __init__(self, what: str, group: str, built_in: Mapping[str, T | str]) -> None:
        self.what, self.group = what, group
        self._known: dict[str, T | str] = dict(built_in)
        self._entries: dict[str, EntryPoint] | None = None

    def names(self) -> tuple[str, ...]:
        """Return every known name: built in, registered, then those of entry points.

        Raises:
            ValueError: An entry point repeats a built-in name or another package's name.
        """
        return tuple(dict.fromkeys([*self._known, *self._entry_points()]))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._known or name in self._entry_points())

    def register(self, name: str, item: T) -> None:
        """Register an object; registering the same object again has no effect.

        Raises:
            ValueError: Another object has this name.
        """
        taken = self._known.setdefault(name, item)
        if taken is not item and taken != _path(item):
            raise ValueError(f"{self.what} {name!r} is taken by {_path(taken)}: choose another")

    def find(self, name: str) -> T | None:
        """Return the object of this name, or None if the name is unknown.

        Raises:
            ValueError: The object cannot be imported, or an entry point repeats another name.
        """
        if not isinstance(name, str):
            return None
        if name not in self._known and name in self._entry_points():
            # Its module may use the decorator as well, which is why an existing object is kept.
            item = import_path(self._entry_points()[name].value, f"{self.what} {name!r}")
            self._known.setdefault(name, item)
        found = self._known.get(name)
        if isinstance(found, str):
            found = self._known[name] = import_path(found, f"{self.what} {name!r}")
        return found

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._entries is None:
            entries: dict[str, EntryPoint] = {}
            for entry in entry_points(group=self.group):
                other = entries.setdefault(entry.name, entry)
                taken = other.value if other.value != entry.value else self._known.get(entry.name)
                if taken is not None and _path(taken) != entry.value:
                    package = entry.dist.name if entry.dist else "an installed package"
                    raise ValueError(
                        f"{self.what} {entry.name!r}, which {package} adds through {self.group}, is taken by "
                        f"{_path(taken)}: rename it there, or uninstall {package}"
                    )
            self._entries = entries
        return self._entries


def import_path(path: str, where: str) -> Any:
    """Import `module:attribute`.

    Args:
        path: What to import.
        where: The name or setting that holds the path, for the error message.

    Raises:
        ValueError: There is no such module or attribute, or importing the module fails.
    """
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module of a user may raise anything
        raise ValueError(
            f"{where} cannot be imported from {path!r}: {type(error).__name__}: {error}; write module:attribute, "
            "importable by every worker"
        ) from error


def _path(item: Any) -> str:
    return item if isinstance(item, str) else f"{item.__module__}:{item.__qualname__}"
