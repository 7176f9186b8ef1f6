"""Studies behind the documented figures; run as python -m benchmarks.ROOM.NAME."""
