"""Every file that is opened, damaged: an error of ours or a right answer, in bounded time and memory.

`mutate.py` damages, `targets.py` says what is damaged and how it is opened, `child.py` does it in a process of its
own, `run.py` watches over that and counts. An input is `TARGET:NUMBER` and a seed: the same ones, the same bytes.
"""
