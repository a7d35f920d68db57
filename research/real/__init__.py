"""The method on real language models: every row that its critics ask for, task by task.

    reasonmaxxer reproduce --suite real --bases Qwen/Qwen2.5-Coder-0.5B-Instruct
    reasonmaxxer reproduce --suite real --only '*/base/*,*/greedy/*' --minutes 60

    tasks.py     the candidate tasks, and the rule that admits some of them
    ways.py      the ways to answer that are compared
    plan.py      which cells there are: what is measured of which base, with which seed
    measure.py   how each kind of cell is made
    vote.py      self-consistency: the answer that most of several samples give
    signal.py    where decision points lie, and how much gradient each way of training has
    sft.py       plain supervised fine-tuning on the reference answers
    tables.py    cells -> rows with standard errors
    claims.py    each claim beside what was measured, by base and task
    report.py    all of it as Markdown, JSON and a plot

Cells are those of `research.paper.cells`, and they end in the same two files.
"""
