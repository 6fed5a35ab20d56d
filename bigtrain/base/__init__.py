"""What every package may use. Nothing here imports another package of bigtrain, or PyTorch.

errors              BigtrainError, the error that a user is meant to read
exit_status         what each exit status means to a launcher
launcher_protocol   the environment variables, files and signals between a launcher and its ranks
files               writes a file or a folder whole and durably
labels              the label of a position that has none
faults              fault injection, for tests and rehearsals (BIGTRAIN_FAULT)
clock               clocks that processes of one machine share
file_names          names of files that were read from a manifest or a listing
format              numbers as a person writes them
version             the version of bigtrain
"""
