"""Writing to one layer of an open chain beside what it holds, and switching to that in one write."""

import numpy as np

from cowtree import extents as ex
from cowtree.chain import load
from cowtree.chain.view import Chain
from cowtree.execute.writer import LayerWriter
from cowtree.extents import Offsets
from cowtree.monitor import Monitor
from cowtree.plan import beside, growth, put, resize
from cowtree.plan.put import Cost, Fates, Wish
from cowtree.qcow2.image import Image, Slice, no_slice
from cowtree.qcow2.tables import Tables
from cowtree.steps import Step


class BesideWriter(LayerWriter):
    """Builds another tree in a qcow2 layer, window by window, which nobody sees before `switch`; the disk is then of
    `size_bytes`. No window may be put twice.
    """

    def __init__(self, chain: Chain, index: int, size_bytes: int, monitor: Monitor | None = None) -> None:
        super().__init__(chain, index, monitor)
        image = self.image
        if image is None:
            raise AssertionError("a raw layer has no tree")
        beside.refuse(image, size_bytes)
        self._size_bytes = size_bytes
        self._old_l1, self._old_l1_clusters = image.l1, growth.l1_clusters(image)
        # The tables of the window that was looked at last, and the last one of the window before.
        self._touched, self._last_table = np.empty(0, np.int64), -1
        self.chain = chain.with_image(index, beside.detach(image, size_bytes))

    def price(self, wish: Wish, start: int, stop: int) -> Cost:
        """What `put` will cost. Windows are priced in their order, each once."""
        return self._count_once(super().price(wish, start, stop))

    def survey(self, wish: Wish, start: int, stop: int) -> Cost:
        """The same, and all is looked at that `put` will rely on."""
        return self._count_once(super().survey(wish, start, stop))

    def _count_once(self, cost: Cost) -> Cost:
        """The cost without a table that the window before has to copy, too, when the border lies within it."""
        image, touched = self.image, self._touched
        if image is None or not len(touched):
            return cost
        is_shared, self._last_table = int(touched[0]) == self._last_table, int(touched[-1])
        new_bytes = cost.new_bytes - is_shared * image.geometry.cluster_size_bytes
        return cost._replace(new_bytes=new_bytes, table_count=cost.table_count - is_shared)

    def _decide(self, image: Image, wish: Wish, start: int, stop: int) -> tuple[Tables, Fates]:
        held = load.load_tables(self.file, image, start, stop)
        fates = put.decide(beside.unowned(image), held, wish)
        self._touched = ex.distinct(fates.cluster // image.geometry.l2_entry_count)
        return held, fates

    def _place(self, piece: Slice, fates: Fates, wish: Wish) -> tuple[list[Step], Image]:
        return put.place(piece, fates, wish, is_beside=True)

    def switch(self) -> None:
        """Let the header lead to the new tree; what only the old one used is given back then.
        Raises: BrokenTable, StorageFailed.
        """
        begin, image = self._begin()
        if image is None:
            return
        image = beside.attach(image, self._old_l1)
        if (image.l1 == beside.with_length(self._old_l1, len(image.l1))).all() and (
            image.header.size_bytes == self._size_bytes
        ):
            self.chain = self.chain.with_image(self.index, image._replace(l1=self._old_l1))
            return
        # A run of clusters side by side is looked for among all that are free.
        counts = load.load_counts(self.file, image, put.refcount_table_clusters(image), image.host_cluster_count)
        steps, image = beside.switch(no_slice(image)._replace(counts=counts), self._size_bytes)
        self._disk_bytes = self._size_bytes
        self._run([*begin, *steps], image)
        self._give_back_old(image)
        for start, stop in resize.windows(image, self._size_bytes):
            self._cut(self._size_bytes, start, stop)

    def _give_back_old(self, image: Image) -> None:
        for start, stop, old, new in beside.windows(image, self._old_l1):
            held = (load.load_tables(self.file, each, start, stop) for each in (old, new))
            self._count_down(image, beside.released(image.geometry, *held))
        self._count_down(image, self._old_l1_clusters)

    def _count_down(self, image: Image, clusters: Offsets) -> None:
        counts = load.load_counts(self.file, image, clusters, 0)
        self._run(beside.give_back(no_slice(image)._replace(counts=counts), clusters), image)
