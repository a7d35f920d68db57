"""Training: from a base model and problems with known answers to an adapter.

    fit.py                  the method, and its command `python -m training.fit`
    fit_config.py           its settings
    run.py                  what the stages of one fit share
    run_folder.py           where they leave their results, so that a killed run resumes
    stages/                 sample, verify, score, select_rollouts, train, select_checkpoint,
                            publish, diagnose

    objective.py            the loss, as pure tensor functions
    advantage.py            how much better a rollout went than was to be expected
    contrastive_trainer.py  the Trainer of transformers with that loss
    decision_points.py      the adapter at decision points, exactly as the server runs it
    base_cache.py           the base's keys and values, which decision points read
    lora_model.py           LoRA layers around the base
    hf_model.py             the base in transformers

    generation/             text from a model, by vLLM or by transformers
    grading/                whether answers are right
    evaluation/             graded answers of a model, and what they say
    evaluate.py             the command `python -m training.evaluate` (evaluate_config.py)
    seen_problems.py        which of its problems the adapter was fitted to
    problems/, gym/         problems from files, benchmarks, the hub and generators
    grade.py                the command `python -m training.grade`: answers made elsewhere
    calibrate.py            the command `reasonmaxxer store calibrate`: the gate of any adapter
    run_picture.py          the command `python -m training.run_picture`: a run as one picture
    gguf.py                 the command `python -m training.gguf`: a base folder of a GGUF file

    processes.py            several processes that train one adapter
    resources.py            memory and time of a fit, computed
    trackers.py             TensorBoard, wandb, Trackio, MLflow
    config.py               what all commands' settings have in common
    provenance.py           what a figure was measured on
    spawn.py                child processes that do not import the command
    split_text.py           lists in the text of a source

Each file imports what stands below it, in no circle (`tests/test_imports.py`).
"""
