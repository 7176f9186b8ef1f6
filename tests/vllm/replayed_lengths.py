"""The answer lengths that the tests' server replays, by opaque id."""

REPLAYED = {str(i): 1 + (37 * i) % 61 for i in range(200)} | {"long": 500}
