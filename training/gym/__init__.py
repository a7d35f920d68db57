"""Reasoning Gym's problems, which a generator draws and whose answers the same generator grades.

    task.py    a generator and its options, as text
    draw.py    drawing problems, in a separate process
    entry.py   the generator's record of a problem, as JSON

`training/grading/reasoning_gym.py` grades the answers.
"""
