"""What may be on its way to a member."""

import pytest

from takhin.broker import delivery
from takhin.broker.delivery import Flow


def test_only_so_many_responses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where credit would allow more: each takes memory until it is given back."""
    monkeypatch.setattr(delivery, "MAX_RESPONSES_OUT", 3)
    flow = Flow(1000, is_followed=True)
    for offset in range(1, 4):
        assert flow.room_for(1)
        flow.send(None, offset, 10)  # type: ignore[arg-type]
    assert flow.left_bytes == 970 and not flow.room_for(1)
    assert flow.give_back(10) == [(None, 1)]
    assert flow.room_for(1)
