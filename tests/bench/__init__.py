"""The benchmark: brewer beside loops written by hand and TextBrewer, on the same models and texts; `compare.py` is its command.

`work` makes data and models, `loops` and `sides` train on them, `measuring` measures one side in a process of its own, `reading`
compares ways to read a cache, and `report` makes figures, aims and pages of what was measured.
"""
