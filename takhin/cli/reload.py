"""SIGHUP: settings that may change while the broker runs, and the files of certificates and keys, read again."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from takhin.config import Settings, options, reload_settings, value_of
from takhin.errors import ConfigError

if TYPE_CHECKING:
    from takhin.broker.broker import Broker
    from takhin.rpc.security import Security

_log = logging.getLogger("takhin.server")


@dataclass(frozen=True, slots=True)
class Reloading:
    """load: the settings and where each is from, as its sources have it now; raises ConfigError. loaded: what it gave
    at the start. running: what the broker was given. set_log_level: for the whole process."""

    load: Callable[[], tuple[Settings, dict[str, str]]]
    loaded: Settings
    running: Settings
    set_log_level: Callable[[str], None]

    async def reload(self, broker: "Broker", security: "Security") -> None:
        """All or, where something is wrong with the settings, nothing of them; what happened is in the log."""
        from takhin.rpc.watched_files import check_all

        _log.info("SIGHUP: reading settings, certificates and keys again")
        check_all(security.files)
        try:
            done = reload_settings(self.running, self.loaded, *self.load())
        except ConfigError as problem:
            _log.error("not reloaded, all settings stay as they are: %s", problem)
            return
        self.set_log_level(self.running.log_level)
        await broker.reload()
        by_key = {option.key: option for option in options()}
        for key in done.changed:
            _log.info("reloaded: %s is %s now", key, value_of(self.running, by_key[key]))
        for key in done.need_restart:
            _log.warning("needs a restart: %s", key)
        if not done.changed and not done.need_restart:
            _log.info("reloaded: no setting has changed")
