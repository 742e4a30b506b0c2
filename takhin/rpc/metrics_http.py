"""HTTP for scrapes: a few connections at once, each for a request and for so long.

Whoever reaches the port can open connections, and none of them may take from the broker what it serves its clients
with: beyond MAX_CONNECTIONS they are closed at once, and each holds a thread and a descriptor for REQUEST_TIMEOUT_S at
most, however slowly its bytes come.
"""

import logging
import socket
import socketserver
import sys
import time
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler

from takhin.rpc.seldom import Seldom

MAX_CONNECTIONS = 8
# From the connection's arrival to the answer's last byte.
REQUEST_TIMEOUT_S = 15.0
# After accept() has failed, for want of descriptors say: it would at once again.
ACCEPT_PAUSE_S = 0.5
# How often it is looked which connections have had their time.
_CHECK_S = 0.5

_log = logging.getLogger(__name__)
_log.addFilter(Seldom(__name__))


class ScrapeServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves a registry on the first address that host and port stand for. Raises OSError, UnicodeError."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, host: str, port: int, registry: CollectorRegistry):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        self._free = BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = Lock()
        self._deadlines_s: dict[socket.socket, float] = {}
        super().__init__(address, _Handler.factory(registry))  # type: ignore[arg-type]
        self._thread = Thread(target=self.serve_forever, args=(_CHECK_S,), name="takhin-metrics", daemon=True)

    @property
    def port(self) -> int:
        """The bound one."""
        return int(self.socket.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections. Blocks until the port is free."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return self.socket.accept()
        except OSError as problem:
            _log.warning("can't take a connection for metrics: %s", problem.strerror)
            time.sleep(ACCEPT_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            _log.warning("more than %d connections for metrics at once, the last from %s: closed", MAX_CONNECTIONS,
                         client_address[0])
            self.shutdown_request(request)
            return
        with self._lock:
            self._deadlines_s[request] = time.monotonic() + REQUEST_TIMEOUT_S
        try:
            super().process_request(request, client_address)
        except BaseException:
            # There is no thread for it.
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            # Not to be shut down once its descriptor may be another's.
            self._deadlines_s.pop(request, None)
        super().shutdown_request(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._deadlines_s.pop(request, None)
        self._free.release()

    def service_actions(self) -> None:
        """End what has had its time: its thread reads the end, or fails to write."""
        now_s = time.monotonic()
        with self._lock:
            late = [request for request, deadline_s in self._deadlines_s.items() if deadline_s <= now_s]
            for request in late:
                del self._deadlines_s[request]
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # its client was faster

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves, or is too slow, is no news."""
        problem = sys.exception()
        if not isinstance(problem, OSError):
            _log.error("a request for metrics failed", exc_info=problem)


class _Handler(MetricsHandler):
    """One request a connection."""

    _is_answered = False

    def do_GET(self) -> None:  # noqa: N802 (http.server's name)
        try:
            super().do_GET()
        except Exception as problem:
            if self._is_answered:
                raise
            if isinstance(problem, TimeoutError):
                _log.warning("metrics can't be told: the broker is too busy")
                self.send_error(503, "the broker is too busy")
            else:
                _log.error("metrics can't be told", exc_info=problem)
                self.send_error(500, "the log says why")

    def do_POST(self) -> None:  # noqa: N802
        self._answer(405)

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_POST

    def do_OPTIONS(self) -> None:  # noqa: N802
        self._answer(200)

    def _answer(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Allow", "OPTIONS,GET")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_response(self, code: int, message: str | None = None) -> None:
        self._is_answered = True
        super().send_response(code, message)
