"""Every kind of guest keeps the contract."""

from cowtree.guests.driver import Guest
from cowtree.guests.offline import Offline
from cowtree.storage.file import LocalFiles


def test_a_guest_that_is_shut_off_keeps_it():
    guest: Guest = Offline(LocalFiles())
    wanted = {name for name in vars(Guest) if not name.startswith("_")}
    assert wanted <= {name for name in dir(guest) if not name.startswith("_")}
