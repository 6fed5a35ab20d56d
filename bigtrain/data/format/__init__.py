"""The bytes on disk: a dataset's shards, their manifest, and the names of everything in a data folder.

    DIR/tokenizer.json                       tokenizer.py
    DIR/<source>/train/00000.tok, .doc       shards.py, columns.py: token ids, and where each document starts
    DIR/<source>/train/manifest.json         manifest.py: counts, parents, a hash of every block; written last
    DIR/<source>/train/best_fit-2048.json    pack_file.py: which parts of documents share a training row

    OUT/<source>/00000.kept                  kept_outputs.py: what a teacher said of the rows of a source

layout.py     names of files and folders, and the settings that each was built with
documents.py  a document before it is tokenized, its id, and its side of the held-out split
labels.py     what the labels of tokens are called; chat_template.py makes a text with labels of a conversation
hashing.py    identities (BLAKE2b) and checksums (xxh3)
mapping.py    local files as memory; remote_files.py reads the same files from an object store or a web server
work_folder.py  a folder of whole files that all workers of a build write, on a disk or at a URL
"""
