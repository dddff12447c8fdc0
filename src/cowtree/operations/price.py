"""What merges cost, read from the tables of the images; nothing is changed, and no guest data is read."""

from contextlib import ExitStack

from cowtree.operations import fold
from cowtree.operations.act import Act
from cowtree.operations.order import Order
from cowtree.plan.family import Family, Merge
from cowtree.plan.put import Cost
from cowtree.plan.strategy import Price
from cowtree.storage.contract import Access, FileSystem


def pricer(files: FileSystem, family: Family, *, is_atomic: bool = False) -> Price:
    """What tells the price of any act on a family as it is on disk; each is looked up once."""
    known: dict[Merge, Cost] = {}

    def price(act: Merge) -> Cost:
        if act not in known:
            known[act] = _price(files, Order(family, (act,), is_atomic=is_atomic))
        return known[act]

    return price


def _price(files: FileSystem, order: Order) -> Cost:
    with ExitStack() as stack:
        chain, wanted = Act(files, order, 0).open(stack, access=Access.READ)
        return fold.price(chain, wanted)


def survey_act(files: FileSystem, order: Order) -> None:
    """Look at all that the act of an order relies on, as far as that can be told before it is begun.
    Raises: Refused, BrokenTable, ImageLocked, and what opening raises.
    """
    with ExitStack() as stack:
        now = Act(files, order, 0)
        chain, wanted = now.open(stack)
        now.open_overlays(stack)
        image = chain.images[wanted.target]
        # Counts that a stopped run left wrong are mended before they are relied on.
        if image is None or not image.header.is_dirty:
            fold.survey(chain, wanted)
