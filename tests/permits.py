"""Owns commits of chains that nobody else reads: the permit that each needs is made here, from the chain alone."""

from collections.abc import Sequence
from typing import NamedTuple

from cowtree.chain import gate
from cowtree.errors import CowtreeError
from cowtree.images import merge
from cowtree.images.merge import Outcome
from cowtree.monitor import Monitor
from cowtree.plan.family import Family, Member, Merge
from cowtree.plan.permit import Permit, permit
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.passing import PassingFiles


class Into(NamedTuple):
    """Where a commit goes: `merge.Into` before there is a permit."""

    base: str | None = None
    overlays: Sequence[str] = ()
    empties_top: bool = True


class Following(PassingFiles):
    """Files in which addresses inside images are followed."""

    @property
    def follows_addresses(self) -> bool:
        """Always."""
        return True


def commit(
    files: FileSystem,
    path: str,
    image_format: str | None = None,
    *,
    into: Into = Into(),  # noqa: B008
    monitor: Monitor | None = None,
) -> Outcome:
    """Commit, with a permit for whatever part of the chain that is."""
    proof = permit_for(files, path, image_format)
    return merge.commit(files, path, image_format, into=merge.Into(proof, *into), monitor=monitor)


def permit_for(files: FileSystem, path: str, image_format: str | None = None) -> Permit:
    """A permit for a commit into any layer of a chain; an empty one for what cannot be opened."""
    # What wraps the files counts, records or spoils calls: those here are none of them.
    while hasattr(files, "inner"):
        files = files.inner
    layers: list[gate.Layer] = []
    try:
        layers += gate.walk(Following(files), path, image_format, Access.PROBE, gate.open_alone)
    except CowtreeError:
        return Permit(Family(()), ())
    finally:
        gate.close_all(layers)
    count = len(layers)
    members = [Member(each.path, each.format, each.size_bytes, index + 1) for index, each in enumerate(layers)]
    family = Family((*members[:-1], members[-1]._replace(parent=None)))
    acts = [Merge(tuple(range(base + 1)), base, base) for base in range(1, count)]
    return Permit(family, tuple(act for act in acts if permit(family, [act]).acts))
