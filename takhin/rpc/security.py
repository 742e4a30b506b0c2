"""What the settings say of TLS and authentication, with the files they name."""

from takhin.clock import wall_clock_ms
from takhin.config import Settings, has_authentication
from takhin.rpc.authentication import Authentication
from takhin.rpc.tls import tls_files
from takhin.rpc.watched_files import WatchedFiles


class Security:
    """tls: for fronts; None: no encryption. authentication: for the Guard; None: everybody may do everything. files: to
    be watched. Raises StartError.
    """

    def __init__(self, settings: Settings):
        self.tls = tls_files(settings.tls)
        self.authentication = Authentication(settings, wall_clock_ms) if has_authentication(settings) else None
        self.files: list[WatchedFiles] = [] if self.tls is None else [self.tls]
        if self.authentication is not None:
            self.files += self.authentication.files
