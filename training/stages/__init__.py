"""The stages of a fit, in the order in which `training/fit.py` calls them.

    sample.py                 rollouts of the frozen base on every problem
    verify.py                 which of them reach the reference answer
    score.py                  the base's entropy at every generated position
    select_rollouts.py        which rollouts teach something, how strongly, and where
    train.py                  LoRA layers around the frozen base, checkpoints
    select_checkpoint.py      the checkpoint and the gate that score best on held-out problems
    publish.py                a PEFT folder with manifest and model card
    diagnose.py               what it cost and found, and signs of known failures

    checkpoint_estimates.py   held-out estimates, which training and the selection both need

Each stage is a function of the run (`training/run.py`) and of what the stages before it have found.
It leaves its result in the run folder, and does nothing again that it finds there.
"""
