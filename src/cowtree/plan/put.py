"""Putting guest content into one layer: the heart of commit, pull, rebase and convert.

`wanted` says what the layer shall show itself; `shown` is what is seen through it now, for the rest of a cluster that
is only partly wanted; `after` is what would be seen through it in the end if nothing were put, so that zeroes are
written only where they make a difference. For a qcow2 layer each cluster that is touched meets one of these fates:

    IN_PLACE   it has a host cluster of its own: the wanted bytes are written there
    REUSE      it has one that reads as zeroes: all of the cluster is written there, then the flag goes
    FRESH      it gets a new host cluster, which is written whole; what it had is counted down
    CLEARED    it shall read as zeroes: only its entry changes

Subclusters are what is written whole, or cleared, in a layer that has them: of a FRESH cluster only those that are
touched, and those that the cluster held before; a REUSED one has some that are touched and hold nothing yet, or that
shall read as zeroes, and is IN_PLACE where it holds something. In an external data file a guest's byte lies at its own
offset, and nothing is counted.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cowtree import extents as ex
from cowtree.errors import BrokenTable
from cowtree.extents import Extents, Mask, Offsets, Ranges
from cowtree.plan.clone import Sharing, sure
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import tables, writes
from cowtree.qcow2.allocate import allocate
from cowtree.qcow2.geometry import SUBCLUSTER_COUNT, Geometry
from cowtree.qcow2.image import Image, Slice, lookup
from cowtree.qcow2.refcounts import Counts
from cowtree.qcow2.tables import COPIED, Entries, Tables
from cowtree.steps import Flush, Move, Step, Zero, by_target

IN_PLACE, REUSE, FRESH, CLEARED = range(1, 5)


class Wish(NamedTuple):
    """What shall be put into a layer, within one window. `shown` reaches to the end of each cluster that is touched.
    With `fills` zeroes get host clusters of their own as well; when it `leaves_holes`, these are made to read as zeroes
    without being written out.
    """

    wanted: Extents
    shown: Extents
    after: Extents
    has_backing_after: bool
    fills: bool = False
    leaves_holes: bool = False


class Fates(NamedTuple):
    """What happens to each touched guest cluster, sorted by cluster. `whole` are the guest's ranges that are written
    from end to end, `partly` those of which only what is wanted is written.
    Shapes: (count,); `entry` is what each has now, and `bitmap` what it gets.
    """

    cluster: Offsets
    fate: NDArray[np.uint8]
    entry: Entries
    wanted: Extents
    whole: Ranges
    partly: Ranges
    bitmap: Entries

    def of(self, *fates: int) -> Mask:
        """Which clusters meet one of these fates."""
        return np.isin(self.fate, fates)


class Cost(NamedTuple):
    """What it costs to put something. `moved_bytes` are the guest's that get to where they belong, with the rest of
    clusters that are written whole. Of these at least `cloned_bytes` need no copying, for two files share them then;
    `read_bytes` is what is read for the others. `new_bytes` is the space that is taken before any is given back,
    `table_count` how many L2 tables change.
    """

    read_bytes: int = 0
    moved_bytes: int = 0
    new_bytes: int = 0
    table_count: int = 0
    cloned_bytes: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost._make(mine + its for mine, its in zip(self, other, strict=True))

    @property
    def traffic_bytes(self) -> int:
        """What goes through the machine."""
        return self.read_bytes + self.copied_bytes

    @property
    def copied_bytes(self) -> int:
        """What is written."""
        return self.moved_bytes - self.cloned_bytes


class Demand(NamedTuple):
    """What must be known of the reference counts: those of some host clusters, and where so many are free."""

    clusters: Offsets
    free_count: int


def needed(wish: Wish) -> Extents:
    """What really has to be put: data, and zeroes where something else would be seen in the end."""
    if wish.fills:
        return wish.wanted
    data = wish.wanted.of_kind(*ex.BYTES)
    hiding = wish.after.of_kind(*ex.BYTES).ranges
    return ex.concatenate([data, ex.cut(wish.wanted.of_kind(*ex.ZEROES), ex.merge_ranges(hiding))])


def into_raw(wish: Wish) -> list[Step]:
    """The steps that put it into a raw layer."""
    wanted = needed(wish)
    data = wanted.of_kind(*ex.BYTES)
    zero = ex.merge_ranges(wanted.of_kind(*ex.ZEROES).ranges)
    steps: list[Step] = _zeroes(zero)
    if len(data.start):
        steps.append(Move(data, data.start))
    return [*steps, Flush()] if steps else []


def _zeroes(ranges: Ranges) -> list[Step]:
    """Steps that let these ranges of guest data read as zeroes, guest offset being host offset."""
    columns = map(np.ndarray.tolist, ranges)
    return [Zero(start, stop - start, is_data=True) for start, stop in zip(*columns, strict=True)]


def decide(image: Image, held: Tables, wish: Wish) -> Fates:
    """Choose each cluster's fate; `held` are the layer's L2 tables of this window."""
    geometry = image.geometry
    wanted = needed(wish)
    cluster = _touched(geometry, wanted.ranges)
    entry, bitmap = lookup(held, geometry, cluster)
    kind = tables.classify(geometry, entry)
    own = ((entry & COPIED) != 0) & ((image.l1[cluster // geometry.l2_entry_count] & COPIED) != 0)
    fate = np.full(len(cluster), FRESH, np.uint8)
    fate[own & (kind == ex.DATA)] = IN_PLACE
    fate[own & (kind == ex.ALLOCATED)] = REUSE
    solid = _solid(wanted, wish)
    if wish.fills or is_raw_too(image):
        solid = ex.union(solid, wanted.ranges)
    if geometry.version >= 3 or not wish.has_backing_after:
        fate[_per_cluster(geometry, cluster, solid) == 0] = CLEARED
    none = ex.one_range(0, 0)
    found = Fates(cluster, fate, entry, wanted, none, none, bitmap)
    if geometry.has_subclusters:
        return _decide_subclusters(geometry, found, (solid, kind), clears=wish.has_backing_after)
    whole, partly = (_ranges_of(geometry, found, *fates) for fates in ((FRESH, REUSE), (IN_PLACE,)))
    return found._replace(whole=whole, partly=partly)


def is_raw_too(image: Image) -> bool:
    """Whether the external data file reads as the disk does, so that no entry alone may say that something is zero."""
    return bool(image.header.autoclear & qcow2.AUTOCLEAR_RAW_DATA)


def _decide_subclusters(
    geometry: Geometry, fates: Fates, what: tuple[Ranges, NDArray[np.uint8]], *, clears: bool
) -> Fates:
    """Decide the same for each subcluster; a bit stands for each of a cluster. `what` are the ranges that shall show
    more than zeroes, and the kinds of the entries; zeroes need a flag only if `clears`.
    """
    solid_ranges, kind = what
    cluster, size = fates.cluster, geometry.subcluster_size_bytes
    touched = tables.to_bits(geometry, cluster, ex.widen(fates.wanted.ranges, size))
    solid = tables.to_bits(geometry, cluster, ex.widen(solid_ranges, size)) & touched
    own, is_zero = fates.of(IN_PLACE), fates.of(CLEARED)
    cleared = np.where(is_zero, tables.ALL_ALLOCATED, touched & ~solid)
    plain = np.where(kind == ex.DATA, fates.bitmap & tables.ALL_ALLOCATED, tables.NONE)
    held = np.where(kind == ex.COMPRESSED, tables.ALL_ALLOCATED, plain)
    whole = np.where(own, solid & ~held, (solid | held) & ~cleared)
    stays = np.where((whole | cleared) != 0, REUSE, IN_PLACE)
    fate = np.where(own, stays, np.where(whole != 0, FRESH, CLEARED))
    fate[is_zero] = CLEARED
    zero = np.where(kind == ex.COMPRESSED, tables.NONE, fates.bitmap >> np.uint64(SUBCLUSTER_COUNT))
    zero = ((zero | cleared) if clears else (zero & ~cleared)) & ~whole
    return fates._replace(
        fate=fate.astype(np.uint8),
        whole=tables.from_bits(geometry, cluster, whole),
        partly=tables.from_bits(geometry, cluster, np.where(own, solid & held, tables.NONE)),
        bitmap=((plain | whole) & ~cleared) | zero << np.uint64(SUBCLUSTER_COUNT),
    )


def _ranges_of(geometry: Geometry, fates: Fates, *kinds: int) -> Ranges:
    """The guest's ranges of the clusters with these fates."""
    cluster = fates.cluster[fates.of(*kinds)] << geometry.cluster_bits
    return ex.merge_ranges(Ranges(cluster, cluster + geometry.cluster_size_bytes))


def _touched(geometry: Geometry, ranges: Ranges) -> Offsets:
    """The guest clusters that some range touches, sorted."""
    first, last = ranges.start >> geometry.cluster_bits, (ranges.stop - 1) >> geometry.cluster_bits
    return ex.integers(ex.merge_ranges(Ranges(first, last + 1)))


def _per_cluster(geometry: Geometry, cluster: Offsets, ranges: Ranges) -> Offsets:
    """How many bytes of each cluster the ranges cover."""
    bits = geometry.cluster_bits
    parts = ex.intersect(Ranges(cluster << bits, (cluster + 1) << bits), ranges)
    index = np.searchsorted(cluster, parts.start >> bits)
    weight = np.bincount(index, parts.stop - parts.start, len(cluster))
    return weight.astype(np.int64)


def _solid(wanted: Extents, wish: Wish) -> Ranges:
    """Where more than zeroes will be shown, or would be in the end."""
    data = ex.merge_ranges(wanted.of_kind(*ex.BYTES).ranges)
    zero = ex.merge_ranges(wanted.of_kind(*ex.ZEROES).ranges)
    seen, hiding = (ex.merge_ranges(each.of_kind(*ex.BYTES).ranges) for each in (wish.shown, wish.after))
    return ex.union(data, ex.subtract(ex.union(seen, hiding), zero))


def demand(image: Image, held: Tables, fates: Fates) -> Demand:
    """Say which counts `place` needs."""
    new_tables, shared = table_changes(image, fates)
    clusters = [released(image, held, fates), _kept(image, fates), refcount_table_clusters(image)]
    return Demand(np.concatenate(clusters), _fresh_count(image, fates) + len(new_tables) + len(shared))


def _fresh_count(image: Image, fates: Fates) -> int:
    """How many host clusters are taken for guest data."""
    return 0 if image.geometry.has_data_file else int(fates.of(FRESH).sum())


def _kept(image: Image, fates: Fates) -> Offsets:
    """The host clusters of the image file that are written where they are."""
    entry = fates.entry[fates.of(IN_PLACE, REUSE) & (not image.geometry.has_data_file)]
    return (entry & tables.HOST_OFFSET).astype(np.int64) >> image.header.cluster_bits


def refcount_table_clusters(image: Image) -> Offsets:
    """The host clusters of the refcount table."""
    first = image.header.refcount_table_offset >> image.header.cluster_bits
    return np.arange(first, first + image.header.refcount_table_cluster_count)


def released(image: Image, held: Tables, fates: Fates) -> Offsets:
    """The host clusters that lose users, each as often: those of guest clusters, and shared tables that are copied."""
    _, shared = table_changes(image, fates)
    copied = held.host_offset[held.rows_of(shared)] >> image.header.cluster_bits
    return np.concatenate((entry_users(image.geometry, fates.entry[fates.of(FRESH, CLEARED)]), copied))


def entry_users(geometry: Geometry, entry: Entries) -> Offsets:
    """The host clusters of the image file that L2 entries use, each as often as it is used."""
    entry = entry[:0] if geometry.has_data_file else entry
    kind = tables.classify(geometry, entry)
    plain = (entry[np.isin(kind, ex.MOVING)] & tables.HOST_OFFSET).astype(np.int64) >> geometry.cluster_bits
    descriptor = (entry[kind == ex.COMPRESSED] & tables.DESCRIPTOR).astype(np.int64)
    start, length = tables.compressed_location(geometry, descriptor)
    first, last = start >> geometry.cluster_bits, (start + length - 1) >> geometry.cluster_bits
    return np.concatenate((plain, ex.integers(Ranges(first, last + 1))))


def table_changes(image: Image, fates: Fates) -> tuple[Offsets, Offsets]:
    """L1 indices that need a first table, and those whose table is shared with a snapshot and must be copied."""
    index = ex.distinct(fates.cluster[~fates.of(IN_PLACE)] // image.geometry.l2_entry_count)
    entry = image.l1[index]
    missing = (entry & tables.HOST_OFFSET) == 0
    return index[missing], index[~missing & ((entry & COPIED) == 0)]


def review(piece: Slice, fates: Fates, wish: Wish, sharing: Sharing | None = None) -> Cost:
    """Check what `place` relies on, while nothing is written yet; the slice needs to hold no free clusters.
    Raises: BrokenTable.
    """
    image = piece.image
    kept = _kept(image, fates)
    check_kept(piece, kept)
    refuse_tables(image, kept)
    count_down(image.path, piece.counts, released(image, piece.tables, fates))
    return cost(image, fates, wish, sharing)


def cost(image: Image, fates: Fates, wish: Wish, sharing: Sharing | None = None) -> Cost:
    """What `place` will cost, when the layer is `sharing` blocks with others."""
    content = _content(fates, wish)
    read_bytes = content.of_kind(*ex.BYTES).total_bytes
    moved_bytes = read_bytes if wish.leaves_holes or is_raw_too(image) else content.total_bytes
    missing, shared = table_changes(image, fates)
    new_count = _fresh_count(image, fates) + len(missing) + len(shared)
    changed = ex.distinct(fates.cluster[~fates.of(IN_PLACE)] // image.geometry.l2_entry_count)
    new_bytes = new_count << image.header.cluster_bits
    if sharing is None:
        return Cost(read_bytes, moved_bytes, new_bytes, len(changed))
    cloned = sure(_aim(content, _sure_places(image.geometry, fates)), sharing)
    fresh = ex.intersect(cloned, _ranges_of(image.geometry, fates, FRESH))
    new_bytes = max(new_bytes - fresh.total_bytes, 0)
    return Cost(read_bytes - cloned.total_bytes, moved_bytes, new_bytes, len(changed), cloned.total_bytes)


def _sure_places(geometry: Geometry, fates: Fates) -> Extents:
    """Where the clusters will lie, as far as that decides what can be cloned: of those that get a new host cluster no
    two lie side by side for certain.
    """
    host = (fates.entry & tables.HOST_OFFSET).astype(np.int64)
    fresh = fates.cluster[fates.of(FRESH)]
    host[fates.of(FRESH)] = (fresh if geometry.has_data_file else 2 * fresh) << geometry.cluster_bits
    return _clusters(geometry, fates, host)


def raw_cost(wish: Wish, own: Ranges, sharing: Sharing | None = None) -> Cost:
    """What it costs to put it into a raw layer that has these ranges of its own."""
    moved = needed(wish).of_kind(*ex.BYTES)
    cloned = ex.one_range(0, 0) if sharing is None else sure(Move(moved, moved.start), sharing)
    copied = ex.subtract(ex.merge_ranges(moved.ranges), cloned)
    new_bytes = ex.subtract(copied, own).total_bytes
    return Cost(copied.total_bytes, moved.total_bytes, new_bytes, 0, cloned.total_bytes)


def place(piece: Slice, fates: Fates, wish: Wish, *, is_beside: bool = False) -> tuple[list[Step], Image]:
    """Give every cluster its place and order the writes. Returns: the steps, and the image after them. When it
    `is_beside` what the header leads to, nothing is counted down, and the L1 table changes in memory only.
    Raises: BrokenTable when a count or a pointer says that a write would hit something else.
    """
    if not len(fates.cluster):
        return [], piece.image
    image, geometry = piece.image, piece.image.geometry
    missing, shared = table_changes(image, fates)
    table_count = len(missing) + len(shared)
    kept = _kept(image, fates)
    check_kept(piece, kept)
    taken, counted = allocate(piece, table_count + _fresh_count(image, fates))
    refuse_tables(counted.image, np.concatenate((kept, taken)))
    table_hosts, hosts = taken[:table_count], taken[table_count:]
    host = (fates.entry & tables.HOST_OFFSET).astype(np.int64)
    host[fates.of(FRESH)] = (
        fates.cluster[fates.of(FRESH)] if geometry.has_data_file else hosts
    ) << geometry.cluster_bits
    lost = released(image, piece.tables, fates)
    counts = counted.counts if is_beside else count_down(image.path, counted.counts, lost)
    moved = move_tables(counted._replace(counts=counts), np.concatenate((missing, shared)), table_hosts)
    new = moved._replace(tables=_set_entries(moved.tables, geometry, fates, (host, wish.has_backing_after)))
    move = _moves(geometry, fates, host, wish)
    # Of a free cluster nobody knows what it holds; but to write zeroes out costs as much as data.
    zeroes, move = _split_zeroes(move) if wish.leaves_holes or is_raw_too(image) else ([], move)
    on_disk = new._replace(image=new.image._replace(l1=image.l1)) if is_beside else new
    return [*zeroes, *writes.order(piece, on_disk, move)], new.image


def _split_zeroes(move: Move) -> tuple[list[Step], Move]:
    """Zeroes of a move as holes, and the rest of it."""
    is_zero = np.isin(move.source.kind, ex.ZEROES)
    start = move.target_offset[is_zero]
    zero = ex.merge_ranges(Ranges(start, start + move.source.length[is_zero]))
    return _zeroes(zero), Move(move.source.take(~is_zero), move.target_offset[~is_zero])


def check_kept(piece: Slice, clusters: Offsets) -> None:
    """Refuse to write to clusters that are in use unless each belongs to one guest cluster."""
    counts = piece.counts.get(clusters)
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        reason = f"host cluster {clusters[wrong[0]]} is marked as used once, but counted {counts[wrong[0]]} times"
        raise BrokenTable(path=piece.image.path, reason=reason, hint="cowtree img check -r all {path}")
    ordered = np.sort(clusters)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        reason = f"host cluster {twice[0]} belongs to two guest clusters"
        raise BrokenTable(path=piece.image.path, reason=reason)


def refuse_tables(image: Image, targets: Offsets) -> None:
    hit = image.tables_among(targets)
    if len(hit):
        reason = f"guest data would be written to host cluster {hit[0]}, which holds a table"
        raise BrokenTable(path=image.path, reason=reason)


def count_down(path: str, counts: Counts, clusters: Offsets) -> Counts:
    """Take one user away from each cluster, as often as it is named.
    Raises: BrokenTable when one is counted less often than that.
    """
    unique, users = np.unique(clusters, return_counts=True)
    now = counts.get(unique).astype(np.uint64)
    wrong = np.flatnonzero(now < users.astype(np.uint64))
    if len(wrong):
        reason = f"host cluster {unique[wrong[0]]} is in use but counted {now[wrong[0]]} times"
        raise BrokenTable(path=path, reason=reason, hint="cowtree img check -r all {path}")
    return counts.put(unique, (now - users.astype(np.uint64)).astype(counts.counts.dtype))


def move_tables(piece: Slice, l1_index: Offsets, hosts: Offsets) -> Slice:
    """Give L1 entries a table of their own: a copy of the one they had, or an empty one."""
    image, held = piece.image, piece.tables
    bits = image.header.cluster_bits
    l1 = image.l1.copy()
    l1[l1_index] = (hosts << bits).astype(np.uint64) | COPIED
    index = ex.distinct(np.concatenate((held.l1_index, l1_index)))
    rows = np.searchsorted(index, held.l1_index)
    entries = np.zeros((len(index), image.geometry.l2_entry_count), np.uint64)
    entries[rows] = held.entries
    host_offset = np.zeros(len(index), np.int64)
    host_offset[rows] = held.host_offset
    host_offset[np.searchsorted(index, l1_index)] = hosts << bits
    bitmaps = np.zeros((len(index), held.bitmaps.shape[1]), np.uint64)
    bitmaps[rows] = held.bitmaps
    return piece._replace(image=image._replace(l1=l1), tables=Tables(index, host_offset, entries, bitmaps))


def _set_entries(held: Tables, geometry: Geometry, fates: Fates, how: tuple[Offsets, bool]) -> Tables:
    host, has_backing_after = how
    cleared = tables.ZERO_FLAG if has_backing_after and not geometry.has_subclusters else tables.NONE
    value = np.where(fates.of(CLEARED), cleared, host.astype(np.uint64) | COPIED)
    changes = ~fates.of(IN_PLACE)
    index, column = np.divmod(fates.cluster[changes], geometry.l2_entry_count)
    row = held.rows_of(index)
    entries, bitmaps = held.entries.copy(), held.bitmaps.copy()
    entries[row, column] = value[changes]
    if geometry.has_subclusters:
        bitmaps[row, column] = fates.bitmap[changes]
    return held._replace(entries=entries, bitmaps=bitmaps)


def _moves(geometry: Geometry, fates: Fates, host: Offsets, wish: Wish) -> Move:
    """Which bytes go where: all of what is written whole, of the rest only what is wanted."""
    return _aim(_content(fates, wish), _clusters(geometry, fates, host))


def _content(fates: Fates, wish: Wish) -> Extents:
    """All that is written: what is wanted, and the rest of what is written whole."""
    # Zeroes that nobody would have to write hide what is seen there now, when all of a cluster is written.
    content = ex.over(ex.cut(wish.wanted, fates.whole), ex.cut(wish.shown, fates.whole))
    rest = ex.fill(ex.subtract(fates.whole, content.ranges), ex.ZERO)
    return ex.concatenate([content, rest, ex.cut(fates.wanted, fates.partly)])


def _clusters(geometry: Geometry, fates: Fates, host: Offsets) -> Extents:
    """Where the clusters lie that are written, as coalesced extents of data."""
    mask = ~fates.of(CLEARED)
    start = fates.cluster[mask] << geometry.cluster_bits
    length = np.full(len(start), geometry.cluster_size_bytes, np.int64)
    kind = np.full(len(start), ex.DATA, np.uint8)
    return ex.coalesce(Extents(start, length, kind, np.zeros(len(start), np.int16), host[mask]))


def _aim(parts: Extents, target: Extents) -> Move:
    """Cut the parts where the target's extents end, and say to which host byte each goes."""
    pieces = ex.cut(parts, target.ranges)
    row = np.searchsorted(target.start, pieces.start, "right") - 1
    return by_target(pieces, target.host_offset[row] + pieces.start - target.start[row])
