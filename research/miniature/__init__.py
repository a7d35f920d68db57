"""A miniature world: problems, a corpus of solutions, and base models pre-trained on it.

    python -m research.miniature problems --seed 1 --count 400 --out problems.jsonl
    python -m research.miniature problems --benchmark long --out long.jsonl
    python -m research.miniature corpus --out corpus.parquet
    python -m research.miniature pretrain --base qwen2 --output models/tiny-qwen2
    python -m research.miniature measure --model models/tiny-qwen2

A real base model knows how to do every step of a solution and is torn only about which step to
take. This world puts that situation into a model of under a million parameters: the corpus is
written by authors of different habits, who do every operation correctly and choose the next one
by the right rule only some of the time.

    kinds/        one file a kind of problem: its statement, its moves, its right rule
    world.py      problems, their split into train and held-out, the authors
    benchmarks.py six held-out sets of problems, from easy to hard
    corpus.py     the documents a base is pre-trained on
    tokenizer.py  byte-level BPE with a ChatML template
    pretrain.py   corpus -> tokenizer -> Trainer -> a model folder (bases/*.yaml)
    measure.py    pass@1, pass@8, entropy, exactness of single operations
    card.py       the model card
"""
