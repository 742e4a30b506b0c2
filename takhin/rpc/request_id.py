"""The id of a call, by which its client and our log speak of the same one.

A client may choose it: metadata x-request-id, of 1 to 128 letters, digits and ._~:/+=@-. Of any other the broker makes
one, when it is first asked for.
"""

import random
import re
from collections.abc import Mapping

REQUEST_ID_KEY = "x-request-id"

_WELL_FORMED = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}", re.ASCII)
# Of its own, so that no program that has a broker inside makes its ids repeat with random.seed().
_random = random.Random()


def given_id(metadata: Mapping[str, str | bytes]) -> str:
    """The one that the client chose; "" where there is none, or none that is well-formed."""
    value = metadata.get(REQUEST_ID_KEY)
    return value if isinstance(value, str) and _WELL_FORMED.fullmatch(value) else ""


def new_id() -> str:
    """16 hexadecimal digits."""
    return f"{_random.getrandbits(64):016x}"
