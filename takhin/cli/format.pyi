from typing import final

from takhin.client.messages import Message, Records

DIRECTIVES: dict[str, str]

@final
class Format:
    def __init__(self, text: bytes) -> None: ...
    def render(self, records: Records) -> bytes: ...
    def render_messages(self, messages: list[Message]) -> bytes: ...
