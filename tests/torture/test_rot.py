"""A share of what `make rot` does."""

from tests.torture.bed import run_plan
from tests.torture.common import Run
from tests.torture.rot import RotPlan
from tests.torture.rot_broker import RotBrokerPlan, RotMetadataPlan


def test_a_share_of_all_rotten_logs() -> None:
    run = Run("rot", 3000, 1)
    run_plan(run, RotPlan)
    assert {"quarantined", "cut", "found_by_reader", "whole"} <= set(run.figures)
    assert not run.failures


def test_a_share_of_all_rotten_metadata() -> None:
    run = Run("rot", 250, 1)
    run_plan(run, RotMetadataPlan)
    assert {"metadata_refused", "metadata_right"} <= set(run.figures)
    assert not run.failures


def test_a_share_of_all_rot_under_a_broker() -> None:
    run = Run("rot", 250, 1)
    run_plan(run, RotBrokerPlan)
    assert {"starts_refused", "brokers_started"} <= set(run.figures)
    assert not run.failures
