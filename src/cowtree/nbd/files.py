"""Files, and exports where a name is an address. Sockets are loaded when the first address is opened."""

from collections.abc import Mapping
from typing import Final

from cowtree.chain.address import is_export
from cowtree.errors import MissingImage
from cowtree.storage.contract import FileSystem, Storage, Times
from cowtree.storage.passing import PassingFiles

# No file is on such a device.
DEVICE: Final = -1


class AddressFiles(PassingFiles):
    """What addresses name is opened too; all else is left to the files that are wrapped. `credentials` are folders with
    certificates by their names.
    """

    def __init__(self, inner: FileSystem, credentials: Mapping[str, str] | None = None) -> None:
        super().__init__(inner)
        self._credentials = credentials or {}

    @property
    def follows_addresses(self) -> bool:
        """Whoever opens addresses follows them."""
        return True

    def open(self, path: str, access: str) -> Storage:
        """Open a file that is there, or an export. Raises: BrokenPeer and ChainError besides."""
        if not is_export(path):
            return super().open(path, access)
        from cowtree.chain import place as places  # noqa: PLC0415 # all of this is for addresses alone
        from cowtree.nbd import client, tls  # noqa: PLC0415

        place = places.parse(path)
        folder = place.certificates
        if place.credentials:
            if place.credentials not in self._credentials:
                hint = f"--object tls-creds-x509,id={place.credentials},dir=FOLDER,endpoint=client"
                reason = f"No TLS credentials with id '{place.credentials}'"
                raise MissingImage(path=place.address, reason=reason, hint=hint)
            folder = self._credentials[place.credentials]
        context = tls.client_context(folder) if folder else None
        return client.open_export(place, access, context, place.tls_name)

    def identity(self, path: str) -> tuple[int, int]:
        """What makes two names one file, or one export. Only addresses as people are shown them can be compared."""
        return (DEVICE, hash(path)) if is_export(path) else super().identity(path)

    def times(self, path: str) -> Times:
        """How long a file is and when it changed; an export does not tell."""
        return Times(0, 0, 0) if is_export(path) else super().times(path)
