"""The tests, in folders by layer; helpers are imported by their full names (`tests.kit.clients`).

- `fdpass`, `ipcqueue`, `memenpsf`: one file for each noun of that package
- `conformance`: what holds at every door, stated once and run through each (`kit/doors.py`)
- `signals`: handlers and exceptions at every step of a call
- `examples`, `project`: the examples as a user runs them; layers, packaging, documents, benchmarks
- `model`: the wake-up protocol in every interleaving
- `reliability`, `fuzz`: the campaigns (`make campaigns`)
- `kit`: helpers; `data`: captured packets; `covered`: the gates of `make coverage`
"""
