"""The commands: each parses, calls one function of the rooms below, and prints.

Exit status: 0 done; 1 the user's input or environment is wrong (one clear message, no traceback); 2 usage; 75 stopped
on request with a committed checkpoint. The rooms below are imported inside the commands, so that `bigtrain --help`
answers at once.
"""
