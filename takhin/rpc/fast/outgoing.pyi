"""What a connection of the fast front is about to write."""

from typing import final

@final
class Outgoing: ...
