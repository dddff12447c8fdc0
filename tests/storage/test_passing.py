"""The passing wrapper keeps the contract in test_contract.py; here: it forgets no method."""

from cowtree.storage.contract import FileSystem, Storage
from cowtree.storage.passing import PassingFile, PassingFiles


def promised(contract):
    return {name for name in vars(contract) if not name.startswith("_")}


def test_every_method_of_the_contract_is_passed_on():
    assert promised(FileSystem) <= promised(PassingFiles)
    assert promised(Storage) <= promised(PassingFile)
