"""Reading a dataset: from local disk, or from a URL through a cache of verified blocks.

    open_datasets --> Dataset --> TokenShard.slice(start, end)
                         |
              local      |      data.remote
      memory-mapped files   mirror.py --> block_cache.py --> format/remote_files.py

store.py            datasets and their shards; opening those that a run asks for
file_shares.py      which ranks look at which files at a start
mirror.py           the local copy of a remote data folder, fetched as it is read
block_cache.py      blocks on local disk, shared by all processes of a host
verify.py           checks every byte; spot_check.py checks some blocks before a run
stored_document.py  finds a document; document_index.py makes that fast for 10^8 documents and more
"""
