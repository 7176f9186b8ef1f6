"""What every served engine has, whatever its name: see ``docs/architecture.md``.

A middleware in the API process (``api``), the requests, plans and outcomes of one engine
(``engine``), what both say to each other (``wire``), and a server's process (``server``). The
adapters bind these to an engine.
"""
