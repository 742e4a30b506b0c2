"""The clock that records are stamped by."""
