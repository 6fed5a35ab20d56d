"""The commands. Each parses its arguments, calls one function of another package, and prints the result.

    main.py                the program `bigtrain`: its commands, its exit status
    *_commands.py          the commands by group; doctor_command.py
    results.py             what commands print with --json, where no other package has a type for it
    json_schemas.py        the JSON schemas of all these types
    printing.py, *_table*.py, texts.py    for terminals
    reference.py           the generated pages of docs/reference/

Exit status: 0 done; 1 the user's input or environment is wrong (one clear message, no traceback); 2 usage; 75 stopped
on request with a committed checkpoint. Other packages are imported inside the commands, so that `bigtrain --help`
answers at once.
"""
