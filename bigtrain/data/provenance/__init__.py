"""What is known about the data of a step, before or after it is trained on.

provenance.py  batch --> its documents; document --> the samples that hold it; both from the plan alone
card.py        the data card of a run: sources, licences, counts, cleaning and order, as JSON and Markdown
"""
