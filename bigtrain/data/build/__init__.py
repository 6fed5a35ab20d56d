"""Build time: from a corpus to tokenized shards. `bigtrain data build` runs it.

    corpus/ --> clean/, filters.py --> decontaminate.py --> dedup/ --> tokenization.py --> shards --> pack/
     pieces     selection.py           evaluation_texts.py             piece_results.py    build_source.py
                                       shingles.py
                                    each piece by any worker: execute/

build.py            the order of the steps, and one build at a time in a folder
execute/            who does the work: this process, processes, or a Ray cluster
build_tokenizer.py  the tokenizer that all sources share
build_source.py     the shards of one source, resumable after a kill
label_names.py      the labels of a source, in order
examples.py         labels of tokens from spans of characters, and documents that fit into a row
progress.py         which shards are finished, and the lines of progress
funnel.py           how many documents each rule removed
rule_models/        classifiers and n-gram models that rules of clean/ ask, and their training
rule_scores.py      what such a model says of documents
"""
