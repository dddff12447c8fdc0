"""Random chains and random words, beside qemu-img."""

import random
from pathlib import Path

import pytest

from tests.cli.img.differential import run_both
from tests.qemu import RandomChain, qemu_img, random_chain


def commit_words(choose: random.Random, chain: RandomChain) -> list[str]:
    top = choose.randrange(1, len(chain.paths))
    words = ["commit", *choose.choice([[], ["-d"]])]
    if choose.random() < 0.6:
        words += ["-b", chain.paths[choose.randrange(top)].name]
    return [*words, chain.paths[top].name]


def rebase_words(choose: random.Random, chain: RandomChain) -> list[str]:
    top = choose.randrange(1, len(chain.paths))
    if choose.random() < 0.3:
        return ["rebase", "-b", "", chain.paths[top].name]
    base = choose.randrange(top)
    return ["rebase", "-b", chain.paths[base].name, "-F", chain.formats[base], chain.paths[top].name]


def compare_words(choose: random.Random, chain: RandomChain) -> list[str]:
    left, right = (choose.randrange(len(chain.paths)) for _ in range(2))
    formats = ["-f", chain.formats[left], "-F", chain.formats[right]]
    return ["compare", *choose.choice([[], ["-s"]]), *formats, chain.paths[left].name, chain.paths[right].name]


def convert_words(choose: random.Random, chain: RandomChain) -> list[str]:
    source = choose.randrange(len(chain.paths))
    words = ["convert", "-f", chain.formats[source], *choose.choice([[], ["-S", "0"], ["-S", "512"], ["-S", "64k"]])]
    if choose.random() < 0.3:
        return [*words, "-O", "raw", chain.paths[source].name, "out"]
    options = f"cluster_size={1 << choose.randint(9, 21)},compat={choose.choice(['0.10', '1.1'])}"
    words += ["-O", "qcow2", "-o", options, *choose.choice([[], ["-c"]])]
    if source and choose.random() < 0.4:
        words += ["-B", chain.paths[source - 1].name, "-F", chain.formats[source - 1]]
    return [*words, chain.paths[source].name, "out"]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("words_of", [commit_words, rebase_words, compare_words, convert_words])
def test_any_words_do_to_any_chain_what_stock_does(tmp_path: Path, seed: int, words_of):
    (tmp_path / "chain").mkdir()
    choose = random.Random(f"words {seed}")
    chain = random_chain(tmp_path / "chain", seed, layer_count=choose.randint(2, 6))
    both = run_both(tmp_path / "chain", tmp_path, *words_of(choose, chain))
    if "Block job failed: Operation not supported" in both.stock.stderr:
        # QEMU cannot let a version 2 image grow past the end of its backing file. We can, if it has no snapshots.
        if both.own.status:
            assert both.own.stderr.startswith("qemu-img: Can't resize a v2 image which has snapshots")
            both.assert_unchanged()
        else:
            qemu_img("compare", both.folder / both.words[-1], both.own_folder / both.words[-1])
    else:
        both.assert_same()
