"""Reasoning Gym: problems that are drawn by a generator and graded by its own `score_answer`.

task.py       a generator and its options, as text
draw.py       drawing problems, in a process of its own
entry.py      the generator's record of a problem, as JSON
grader.py     grading answers
"""
