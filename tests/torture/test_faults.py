"""Failing operations: a share of what `make faults` does, and that it finds what it is there to find."""

import pytest

from tests.torture.common import Run
from tests.torture.faults import ERRORS, NAME, ROOM, Site, fail_operations, sites_of

SHARE = 80


def test_no_promise_is_broken() -> None:
    run = Run(NAME, SHARE, 1)
    fail_operations(run)
    assert run.done == SHARE and not run.failures
    assert int(str(run.figures["faults_met"])) > SHARE // 2


# numbers: of the operations to fail, where the bug shows.
@pytest.mark.parametrize(("plant", "kind", "place", "error", "numbers", "found"), [
    ("sync_errors_are_ignored", "sync", "segment", "EIO", range(4, 99), "goes on after a failed sync"),
    ("sync_errors_are_ignored", "sync", "segment", "EIO", range(4, 99), "was durable up to"),
    ("metadata_errors_are_ignored", "sync", "wal", "EIO", range(4, 99), "does not stop the broker"),
    ("closed_for_good", "write", "segment", "ENOSPC", range(75, 79), "takes no appends, though nothing fails any more"),
])
def test_a_planted_bug_is_found(
    plant: str, kind: str, place: str, error: str, numbers: range, found: str
) -> None:
    run = Run(NAME, 6 if place == "segment" and kind == "sync" else 3, 1)

    def wanted(site: Site) -> bool:
        return (site.kind, site.place, site.error, site.times) == (kind, place, error, 1) and site.number in numbers

    fail_operations(run, wanted=wanted, plant=f"tests.torture.plants:{plant}")
    assert any(found in failure for failure in run.failures), run.failures


def test_every_operation_is_failed_in_every_way() -> None:
    sites = list(sites_of({"sync segment": 2, "mkdir directory": 1}))
    tried = {(site.kind, site.number, site.error) for site in sites if site.kind != ROOM}
    for kind, count in (("sync", 2), ("mkdir", 1)):
        for number in range(1, count + 1):
            assert {(kind, number, error) for error in (*ERRORS[kind], "kill_before", "kill_after")} <= tried
    assert all(Site.parse(str(site)) == site for site in sites)
