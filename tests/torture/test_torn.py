"""A share of what `make torn` does."""

from dataclasses import replace

import pytest

from tests.torture.bed import Bed, make_base, run_plan, scratch
from tests.torture.common import Run
from tests.torture.judge import judge
from tests.torture.torn import TornPlan
from tests.torture.torn_journal import TornJournalPlan
from tests.torture.torn_metadata import TornMetadataPlan


def test_a_share_of_all_torn_logs() -> None:
    run = Run("torn", 2500, 1)
    run_plan(run, TornPlan)
    # All that can become of a damage did, or this would try nothing.
    assert {"quarantined", "cut", "whole"} <= set(run.figures)
    assert not run.failures


def test_a_share_of_all_torn_metadata() -> None:
    run = Run("torn", 250, 1)
    run_plan(run, TornMetadataPlan)
    assert {"metadata_refused", "metadata_right"} <= set(run.figures)
    assert not run.failures


def test_a_share_of_all_torn_journals() -> None:
    run = Run("torn", 200, 1)
    run_plan(run, TornJournalPlan)
    assert {"journal_damage_told", "journal_short", "journal_whole"} <= set(run.figures)
    assert not run.failures


@pytest.mark.parametrize("was_clean", [True, False])
def test_a_vouched_segment_cut_where_a_batch_ends(was_clean: bool) -> None:
    """Nothing of it looks damaged: only its index knows that there was more."""
    base = make_base("stopped", 1, segment_bytes=8000, total_bytes=14_000, sync_until=1, was_clean=True)
    last = base.segments[-1]
    with scratch() as directory:
        bed = Bed(directory)
        for place in base.places[last]:
            files = {**base.files, last: base.files[last][: place.start]}
            judge(bed, replace(base, was_clean=was_clean), files, Run("torn", 1, 1), stop=True)
        bed.close()
