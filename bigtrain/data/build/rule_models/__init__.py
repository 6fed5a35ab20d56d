"""Models that rules of `clean` ask, and their training. `bigtrain data classifier` and `bigtrain data ngram` run it.

    sample_documents.py --> fasttext_features.py --> logistic_regression.py --> fasttext_file.py
     documents of paths      n-grams as fastText       a convex fit              a .bin that fastText reads
                             hashes them                                         |
                                        train_classifier.py puts them together --+

    sample_documents.py --> sentences.py --> ngram_counts.py --> backoff_model.py <-- arpa.py
                             lines as words   Kneser-Ney          a .ngram file        KenLM's text form
                                        train_ngram.py puts them together

Training runs in one process and draws nothing at random: the same documents give the same file.
"""
