"""Writing to one layer of an open chain: each call loads what it needs, asks the planner, and runs the answer.

What must be refused is refused before the first change. With that change the dirty bit goes up, and `finish` or
`relink` takes it down last. After a stop at any point the same calls on the reloaded chain complete the work.
"""

from functools import cached_property

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.view import Chain, layer_extents
from cowtree.errors import Refused
from cowtree.execute import cloner
from cowtree.execute.bitmaps import BitmapWriter, Recorder
from cowtree.execute.run import run
from cowtree.extents import Offsets, Ranges
from cowtree.monitor import Monitor, Silent
from cowtree.plan import empty, growth, pack, put, resize, trim
from cowtree.plan.clone import Sharing
from cowtree.plan.put import Cost, Fates, Wish
from cowtree.plan.trim import Loose
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import header_writes, refcounts, writes
from cowtree.qcow2.image import Image, Slice, no_slice, refuse_what_we_cannot_write
from cowtree.qcow2.tables import Tables
from cowtree.steps import Flush, Step, Truncate
from cowtree.storage.contract import Storage


class LayerWriter:
    """Changes layer `index` of `chain`, whose file is open for writing. Unless it `records`, bitmaps are not told of
    what is put: no guest has looked there yet.
    """

    def __init__(self, chain: Chain, index: int, monitor: Monitor | None = None, *, records: bool = True) -> None:
        self.chain = chain
        self.index = index
        self.monitor = monitor or Silent()
        self.file = chain.layers[index].file
        self._disk_bytes = chain.layers[index].size_bytes
        self._has_begun = False
        self._data_bytes = chain.layers[index].data_file.size_bytes
        if self.image is not None:
            refuse_what_we_cannot_write(self.image)
        self._recorder = Recorder(self.image) if records and self.image is not None else None

    @property
    def image(self) -> Image | None:
        """The layer's image as it stands on disk now; None for raw."""
        return self.chain.images[self.index]

    def price(self, wish: Wish, start: int, stop: int) -> Cost:
        """What `put` will cost, as far as the tables are right."""
        image = self.image
        if image is None:
            return self._price_raw(wish, start, stop)
        image = growth.with_room(image, stop)
        _, fates = self._decide(image, wish, start, stop)
        return put.cost(image, fates, wish, self.sharing)

    @cached_property
    def sharing(self) -> Sharing | None:
        """What the layer can share of the others' blocks; None for nothing."""
        found = cloner.sharing(self.chain, self.chain.layers[self.index].data_file)
        return found if found.block_bytes.any() else None

    def _price_raw(self, wish: Wish, start: int, stop: int) -> Cost:
        own = layer_extents(self.chain, self.index, start, stop).of_kind(ex.DATA)
        return put.raw_cost(wish, ex.merge_ranges(own.ranges), self.sharing)

    def survey(self, wish: Wish, start: int, stop: int) -> Cost:
        """Look at all that `put` will rely on in the window [start, stop). Returns: what it will cost.
        Raises: BrokenTable when a table or a count of the layer is wrong, Locked and Refused when it is encrypted.
        """
        refuse_plain_data(self.chain.layers[self.index])
        image = self.image
        if image is None:
            return self._price_raw(wish, start, stop)
        image = growth.with_room(image, stop)
        held, fates = self._decide(image, wish, start, stop)
        counts = load.load_counts(self.file, image, put.demand(image, held, fates).clusters, 0)
        return put.review(Slice(image, held, counts), fates, wish, self.sharing)

    def put(self, wish: Wish, start: int, stop: int) -> None:
        """Put guest content of the window [start, stop) into the layer.
        Raises: what `survey` raises, before anything of this window is written.
        """
        refuse_plain_data(self.chain.layers[self.index])
        if self._recorder is not None:
            # As QEMU has it, what was written is dirty; a larger disk reads as zeroes where it is new.
            self._recorder.note(ex.clip(wish.wanted, 0, self._disk_bytes).ranges)
            self._recorder.note(ex.clip(put.needed(wish), self._disk_bytes, stop).ranges)
        begin, image = self._begin()
        if image is None:
            self._run(put.into_raw(wish))
            return
        held, fates = self._decide(image, wish, start, stop)
        if len(fates.cluster):
            counts = load.load_counts(self.file, image, *put.demand(image, held, fates))
            steps, image = self._place(Slice(image, held, counts), fates, wish)
            self._run([*begin, *steps], image)

    def _place(self, piece: Slice, fates: Fates, wish: Wish) -> tuple[list[Step], Image]:
        return put.place(piece, fates, wish)

    def put_packed(self, cluster: Offsets, packed: list[bytes]) -> None:
        """Put compressed clusters into the layer, which must hold none of them alone. Raises: Refused, BrokenTable."""
        begin, image = self._begin()
        if image is None or self._recorder is None:
            raise Refused(reason="Compression not supported for this file format")
        if self.chain.layers[self.index].is_encrypted:
            raise Refused(reason="Compression and encryption not supported at the same time")
        bits = image.header.cluster_bits
        held = load.load_tables(self.file, image, int(cluster[0]) << bits, (int(cluster[-1]) + 1) << bits)
        fates = pack.decide(image, held, cluster)
        counts = load.load_counts(self.file, image, *pack.demand(image, held, fates))
        self._recorder.note(ex.merge_ranges(Ranges(cluster << bits, (cluster + 1) << bits)))
        steps, image = pack.place(Slice(image, held, counts), fates, packed)
        self._run([*begin, *steps], image)

    def _decide(self, image: Image, wish: Wish, start: int, stop: int) -> tuple[Tables, Fates]:
        held = load.load_tables(self.file, image, start, stop)
        return held, put.decide(image, held, wish)

    def survey_growth(self, size_bytes: int) -> None:
        """Refuse what `prepare_growth` and `grow` could not do. Raises: Refused."""
        if self.image is not None:
            growth.refuse_growth(self.image, size_bytes)

    def prepare_growth(self, size_bytes: int) -> None:
        """Make room for a larger disk; the guest does not see it before `grow`."""
        begin, image = self._begin()
        if image is None:
            self._run([Truncate(max(size_bytes, self.file.size_bytes))])
        elif image.geometry.l1_entry_count(size_bytes) > len(image.l1):
            clusters = np.concatenate((growth.l1_clusters(image), put.refcount_table_clusters(image)))
            # A run of clusters side by side is looked for among all that are free.
            counts = load.load_counts(self.file, image, clusters, image.host_cluster_count)
            steps, image = growth.lengthen_l1(Slice(image, no_slice(image).tables, counts), size_bytes)
            self._run([*begin, *steps], image)

    def grow(self, size_bytes: int) -> None:
        """Let the guest see a larger disk, once all that it will see there is durable."""
        begin, image = self._begin()
        if image is not None:
            self._disk_bytes = size_bytes
            if (data := self._external()) is not None:
                self._run_on_data([Truncate(max(size_bytes, data.size_bytes))], data)
            self._run(begin, image)
            self._resize(image, size_bytes)

    def _resize(self, image: Image, size_bytes: int) -> None:
        bitmaps = BitmapWriter(self.chain.layers[self.index], image)
        steps, image = ([], bitmaps.image) if bitmaps.resize(size_bytes) else writes.resize(image, size_bytes)
        self._run(steps, image)

    def survey_cut(self, size_bytes: int) -> bool:
        """Look at all that `shrink` will rely on. Returns: whether the layer holds something past this size.
        Raises: BrokenTable.
        """
        image, found = self.image, False
        for start, stop in resize.windows(image, size_bytes) if image is not None else ():
            if image is not None:
                held = load.load_tables(self.file, image, start, stop)
                clusters, free_count = resize.demand(image, held, size_bytes)
                counts = load.load_counts(self.file, image, clusters, free_count)
                steps, _ = resize.cut(Slice(image, held, counts), size_bytes)
                found = found or bool(steps)
        return found

    def shrink(self, size_bytes: int) -> None:
        """Let the guest see a smaller disk; when that is durable, what lies past its end goes."""
        begin, image = self._begin()
        if image is None:
            return
        self._disk_bytes = size_bytes
        self._run(begin, image)
        self._resize(image, size_bytes)
        for start, stop in resize.windows(image, size_bytes):
            self._cut(size_bytes, start, stop)
        if (data := self._external()) is not None:
            self._run_on_data([Truncate(size_bytes)], data)

    def _cut(self, size_bytes: int, start: int, stop: int) -> None:
        image = self.image
        if image is not None:
            held = load.load_tables(self.file, image, start, stop)
            counts = load.load_counts(self.file, image, *resize.demand(image, held, size_bytes))
            self._run(*resize.cut(Slice(image, held, counts), size_bytes))

    def forget(self) -> None:
        """Let the layer hold nothing; its clusters stay counted."""
        begin, image = self._begin()
        if image is not None and image.l1.any():
            steps, image = empty.forget(image)
            self._run([*begin, *steps], image)

    def drop(self, loose: Loose, start: int, stop: int) -> None:
        """Let go what the layer need not hold of the window [start, stop).
        Raises: BrokenTable, before anything of this window is written.
        """
        begin, image = self._begin()
        if image is None:
            self._run([*trim.zeroes(loose.same), Flush()])
            return
        held = load.load_tables(self.file, image, start, stop)
        lost = trim.released(image, held, trim.after(image, held, loose))
        counts = load.load_counts(self.file, image, lost, 0)
        steps, image = trim.drop(Slice(image, held, counts), loose)
        if steps:
            if self._recorder is not None:
                self._recorder.note(loose.same)
            self._run([*begin, *steps], image)

    def give_back(self) -> None:
        """Let refcount blocks go that are of no use, cut off the free end of the file, and punch the free clusters
        before it.
        """
        begin, image = self._begin()
        if image is None:
            return
        used = self._used_runs(image)
        spare = empty.spare_blocks(image, used)
        if len(spare):
            hosts = refcounts.block_offsets(image.refcount_table)[spare] >> image.header.cluster_bits
            kept = hosts[~ex.is_among(hosts // image.geometry.refcount_block_entry_count, spare)]
            counts = load.load_counts(self.file, image, kept, 0)
            steps, image = empty.drop_blocks(no_slice(image)._replace(counts=counts), spare)
            self._run([*begin, *steps], image)
            used = self._used_runs(image)
        self._run(empty.give_back(image, used), image)

    def _used_runs(self, image: Image) -> Ranges:
        """All runs of host clusters that are counted."""
        blocks = (load.read_blocks(self.file, image, block_index) for block_index in load.block_windows(image))
        runs = [empty.used_runs(counts) for counts in blocks]
        return Ranges._make(np.concatenate(column) for column in zip(*runs, strict=True))

    def flush(self) -> None:
        """Make durable what was put so far."""
        self._run([Flush()])

    def finish(self) -> None:
        """Make everything durable and clear the dirty bit."""
        self._trim()
        self._keep_bitmaps()
        image = self.image
        if image is None:
            self._run([Flush()])
        elif self._has_begun or image.header.is_dirty:
            steps, image = writes.finish(image)
            self._run(steps, image)
            self._has_begun = False

    def relink(self, backing: tuple[str, str] | None) -> None:
        """Finish, and make (file name, format) the backing file in the same write.
        Raises: what `survey_link` raises.
        """
        self._trim()
        self._keep_bitmaps()
        self._run(self._plan_link(backing))

    def survey_link(self, backing: tuple[str, str] | None) -> None:
        """Find out, and change nothing. Raises: Refused when the layer is raw, or its header has no room."""
        self._plan_link(backing)

    def _plan_link(self, backing: tuple[str, str] | None) -> list[Step]:
        image = self.image
        if image is None:
            kind = self.chain.layers[self.index].format
            raise Refused(reason=f"{self.file.path} is {kind}, and a {kind} image has no backing file")
        if backing is not None and image.header.autoclear & qcow2.AUTOCLEAR_RAW_DATA:
            reason = f"{image.path} has a data file that is read as raw, and nothing can show through that"
            raise Refused(reason=reason)
        return header_writes.relink(image, self.file.pread(0, image.geometry.cluster_size_bytes), backing)

    def _keep_bitmaps(self) -> None:
        """Write down what was written to the disk in the bitmaps that record it; then they are no more in use."""
        if self._recorder is None or not (self._has_begun or self._recorder.has_noted):
            return
        begin, image = self._begin()
        self._run(begin, image)
        if image is not None:
            bitmaps = BitmapWriter(self.chain.layers[self.index], image)
            bitmaps.settle(self._recorder)
            self._run([], bitmaps.image)

    def _external(self) -> Storage | None:
        """The external data file, if the layer has one."""
        image = self.image
        return self.chain.layers[self.index].data if image is not None and image.geometry.has_data_file else None

    def _trim(self) -> None:
        """Cut off what was written of the last cluster past the end of the disk: there an external data file ends."""
        data = self._external()
        if data is not None and self._has_begun and data.size_bytes > self._data_bytes:
            self._run_on_data([Truncate(max(self._data_bytes, self._disk_bytes))], data)

    def _run_on_data(self, steps: list[Step], data: Storage) -> None:
        run([*steps, Flush()], data, self.chain, self.monitor)

    def _begin(self) -> tuple[list[Step], Image | None]:
        """What must be durable before the first change, and the image after it."""
        image = self.image
        if image is None or self._has_begun:
            return [], image
        return writes.begin(image) if self._recorder is not None else writes.begin_tables(image)

    def _run(self, steps: list[Step], image: Image | None = None) -> None:
        run(steps, self.file, self.chain, self.monitor, self.chain.layers[self.index].data_file)
        if image is not None:
            self._has_begun = True
            image = image._replace(file_size_bytes=self.file.size_bytes)
            self.chain = self.chain.with_image(self.index, image)


def refuse_plain_data(layer: gate.Layer) -> None:
    """Refuse guest data that would lie unencrypted among encrypted data.
    Raises: Locked when there is no key, Refused when the encryption is of the old kind.
    """
    gate.refuse_encryption(layer)
    if layer.guest_cipher:
        reason = f"{layer.path} is encrypted in the old way (AES-CBC), which is read and no longer written"
        raise Refused(reason=reason, hint="convert it to an image with encrypt.format=luks")
