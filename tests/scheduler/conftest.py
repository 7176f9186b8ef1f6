"""One hypothesis profile: the same draws each time, and no deadline, as first calls compile."""

from hypothesis import settings

settings.register_profile("lengthwise", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("lengthwise")
