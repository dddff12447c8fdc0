"""Writing to one layer of an open chain: each call loads what it needs, asks the planner, and runs the answer.

What must be refused is refused before the first change. With that change the dirty bit goes up, and `finish` or
`relink` takes it down last. After a stop at any point the same calls on the reloaded chain complete the work.
"""

import numpy as np

from cowtree import extents as ex
from cowtree.chain import load
from cowtree.chain.view import Chain
from cowtree.errors import MarkedCorrupt, Refused, UnknownFeature
from cowtree.execute.run import run
from cowtree.extents import Ranges
from cowtree.monitor import Monitor, Silent
from cowtree.plan import commit, empty, put
from cowtree.plan.put import Fates, Wish
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import writes
from cowtree.qcow2.image import Image, Slice, check_layout
from cowtree.qcow2.tables import Tables
from cowtree.steps import Flush, Step, Truncate


class LayerWriter:
    """Changes layer `index` of `chain`, whose file is open for writing."""

    def __init__(self, chain: Chain, index: int, monitor: Monitor | None = None) -> None:
        self.chain = chain
        self.index = index
        self.monitor = monitor or Silent()
        self.file = chain.layers[index].file
        self._has_begun = False
        if self.image is not None:
            refuse_what_we_cannot_write(self.image)

    @property
    def image(self) -> Image | None:
        """The layer's image as it stands on disk now; None for raw."""
        return self.chain.images[self.index]

    def survey(self, wish: Wish, start: int, stop: int) -> int:
        """Look at all that `put` will rely on in the window [start, stop). Returns: the bytes that it will move.
        Raises: BrokenTable when a table or a count of the layer is wrong.
        """
        image = self.image
        if image is None:
            return put.needed(wish).of_kind(*ex.BYTES).total_bytes
        image = commit.with_room(image, stop)
        held, fates = self._decide(image, wish, start, stop)
        counts = load.load_counts(self.file, image, put.demand(image, held, fates).clusters, 0)
        return put.review(Slice(image, held, counts), fates)

    def put(self, wish: Wish, start: int, stop: int) -> None:
        """Put guest content of the window [start, stop) into the layer.
        Raises: what `survey` raises, before anything of this window is written.
        """
        begin, image = self._begin()
        if image is None:
            self._run(put.into_raw(wish))
            return
        held, fates = self._decide(image, wish, start, stop)
        if len(fates.cluster):
            counts = load.load_counts(self.file, image, *put.demand(image, held, fates))
            steps, image = put.place(Slice(image, held, counts), fates, wish)
            self._run([*begin, *steps], image)

    def _decide(self, image: Image, wish: Wish, start: int, stop: int) -> tuple[Tables, Fates]:
        held = load.load_tables(self.file, image, start, stop)
        return held, put.decide(image, held, wish)

    def survey_growth(self, size_bytes: int) -> None:
        """Refuse what `prepare_growth` and `grow` could not do. Raises: Refused."""
        if self.image is not None:
            commit.refuse_growth(self.image, size_bytes)

    def prepare_growth(self, size_bytes: int) -> None:
        """Make room for a larger disk; the guest does not see it before `grow`."""
        begin, image = self._begin()
        if image is None:
            self._run([Truncate(max(size_bytes, self.file.size_bytes))])
        elif image.geometry.l1_entry_count(size_bytes) > len(image.l1):
            clusters = np.concatenate((commit.l1_clusters(image), put.refcount_table_clusters(image)))
            # A run of clusters side by side is looked for among all that are free.
            counts = load.load_counts(self.file, image, clusters, image.host_cluster_count)
            steps, image = commit.lengthen_l1(Slice(image, commit.no_slice(image).tables, counts), size_bytes)
            self._run([*begin, *steps], image)

    def grow(self, size_bytes: int) -> None:
        """Let the guest see a larger disk, once all that it will see there is durable."""
        begin, image = self._begin()
        if image is not None:
            steps, image = writes.resize(image, size_bytes)
            self._run([*begin, *steps], image)

    def forget(self) -> None:
        """Let the layer hold nothing; its clusters stay counted."""
        begin, image = self._begin()
        if image is not None and image.l1.any():
            steps, image = empty.forget(image)
            self._run([*begin, *steps], image)

    def give_back(self) -> None:
        """Cut off the free end of the file, and punch the free clusters before it."""
        image = self.image
        if image is None:
            return
        blocks = (load.read_blocks(self.file, image, block_index) for block_index in load.block_windows(image))
        runs = [empty.used_runs(counts) for counts in blocks]
        used = Ranges._make(np.concatenate(column) for column in zip(*runs, strict=True))
        self._run(empty.give_back(image, used), image)

    def finish(self) -> None:
        """Make everything durable and clear the dirty bit."""
        image = self.image
        if image is None:
            self._run([Flush()])
        elif self._has_begun or image.header.is_dirty:
            steps, image = writes.finish(image)
            self._run(steps, image)

    def relink(self, backing: tuple[str, str] | None) -> None:
        """Finish, and make (file name, format) the backing file in the same write.
        Raises: what `survey_link` raises.
        """
        self._run(self._plan_link(backing))

    def survey_link(self, backing: tuple[str, str] | None) -> None:
        """Find out, and change nothing. Raises: Refused when the layer is raw, or its header has no room."""
        self._plan_link(backing)

    def _plan_link(self, backing: tuple[str, str] | None) -> list[Step]:
        image = self.image
        if image is None:
            raise Refused(reason=f"{self.file.path} is raw, and a raw image has no backing file")
        return writes.relink(image, self.file.pread(0, image.geometry.cluster_size_bytes), backing)

    def _begin(self) -> tuple[list[Step], Image | None]:
        """What must be durable before the first change, and the image after it."""
        image = self.image
        return ([], image) if image is None or self._has_begun else writes.begin(image)

    def _run(self, steps: list[Step], image: Image | None = None) -> None:
        run(steps, self.file, self.chain, self.monitor, self.chain.layers[self.index].data_file)
        if image is not None:
            self._has_begun = True
            image = image._replace(file_size_bytes=self.file.size_bytes)
            self.chain = self.chain.with_image(self.index, image)


def refuse_what_we_cannot_write(image: Image) -> None:
    """Refuse an image before a byte of it changes.
    Raises: MarkedCorrupt, BrokenTable, UnknownFeature, Refused.
    """
    header = image.header
    if header.is_corrupt:
        raise MarkedCorrupt(path=image.path)
    if len(image.snapshot_l1s) < len(image.snapshots):
        raise Refused(reason=f"{image.path}: there are too many snapshots to know what must not be overwritten")
    check_layout(image)
    if image.geometry.has_subclusters:
        raise UnknownFeature(path=image.path, features="extended L2 entries (cowtree reads them)")
    if header.incompatible & qcow2.EXTERNAL_DATA_FILE:
        raise UnknownFeature(path=image.path, features="external data file (cowtree reads it)")
