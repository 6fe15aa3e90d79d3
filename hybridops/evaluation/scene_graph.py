"""What a caption says, or what an image shows: objects with their attributes, and relations between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias


class SceneObject(NamedTuple):
    """One object, or one mention of it: its name and its attributes, ("circle", {"small", "red"})."""

    name: str
    attributes: frozenset[str] = frozenset()


class SceneGraph(NamedTuple):
    """Objects, and relations as (number of the subject, relation, number of the object).

    Numbers, and not names, since two objects of a scene may have the same name.
    """

    objects: tuple[SceneObject, ...]
    relations: tuple[tuple[int, str, int], ...] = ()

    def tuples(self) -> frozenset[tuple[str, ...]]:
        """The tuples that SPICE counts: (name,), (name, attribute) and (name, relation, name)
        (Anderson et al. 2016, https://arxiv.org/abs/1607.08822).
        """
        names = [(thing.name,) for thing in self.objects]
        attributes = [(thing.name, attribute) for thing in self.objects for attribute in thing.attributes]
        relations = [
            (self.objects[subject].name, relation, self.objects[other].name)
            for subject, relation, other in self.relations
        ]
        return frozenset([*names, *attributes, *relations])


Parser: TypeAlias = Callable[[str], SceneGraph]  # from the text of a caption
