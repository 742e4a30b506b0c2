"""The headers of calls: those that came, kept as bytes, and those that go out."""
