class TransactionRequest:
    appends: list[bytes]
    group_id: str
    offsets: list[tuple[str, int, int]]
    member_id: str
    generation: int
    timeout_ms: int
    def __init__(self, request: bytes, max_partitions: int) -> None: ...

def encode_transaction(appends: list[bytes]) -> bytes: ...
