"""The paper's claims, measured on models that anyone can make: one command, one report.

    python -m research.paper --quick            one base, one seed, small
    python -m research.paper                    everything that is not there yet (hours)
    python -m research.paper --bases Qwen/Qwen2.5-1.5B ...   a hub model, on a GPU

    plan.py      which cells there are: what is done to which base with which seed
    cells.py     a cell, and where cells are kept: new ones as JSON, merged ones in two files
    measure.py   how each kind of cell is made: base, fit, grpo, footprint, intervene
    tables.py    cells -> tables, with standard errors over problems and seeds
    claims.py    each claim of the paper beside what was measured, and the verdict
    report.py    all of it as Markdown, JSON and plots
    making.py    makes the cells that are not there yet, one after the other
    merge.py     moves new cells into research/results/

    footprint.py, intervene.py   what tuning changed, token by token (base_and_tuned.py)
    grpo.py                      the baseline, TRL's GRPO

A cell that is there is never made again, so a run continues where it stopped, on any machine.
"""
