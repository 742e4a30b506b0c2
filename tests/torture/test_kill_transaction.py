"""kill -9 at every operation of a transaction."""

import re

from tests.torture import kill_transaction


def test_all_of_it_or_nothing() -> None:
    done = kill_transaction.run(every=1)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) kills, (\d+) power cuts .*, after (\d+) of these it had happened", done.stdout)
    assert found is not None, done.stdout
    kills, cuts, happened = (int(each) for each in found.groups())
    # It is decided somewhere in the middle.
    assert kills >= 40 and cuts >= 10 and 8 <= happened <= kills + cuts - 8
